//! What somebody has seen: a cursor, a version vector that any node of the mesh understands.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;

use super::batch::{Batch, CODING};
use super::clock::Hlc;
use super::ranges::RangeSet;
use crate::id::{Run, RunHash, Seq};

/// What a reader was given or skipped as covered, by run. Opaque text outside: base64url of at most 4 KiB.
///
/// Runs that do not fit are replaced, those longest silent first, by one time up to which they count as seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    runs: HashMap<RunHash, Covered>,
    /// Runs that are not listed count as seen up to here.
    unlisted: Hlc,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Covered {
    seqs: RangeSet,
    newest: Hlc,
}

/// The text is no cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor")]
pub struct CursorError;

/// The longest text of a cursor, in bytes.
pub const CURSOR_BYTES_MAX: usize = 4096;
const CURSOR_VERSION: u8 = 1;

#[derive(bincode::Encode, bincode::Decode)]
struct WireCursor {
    version: u8,
    unlisted: u64,
    /// Run hash, newest time, ranges; a single range from 1 is its end alone.
    runs: Vec<(u64, u64, WireRanges)>,
}

#[derive(bincode::Encode, bincode::Decode)]
enum WireRanges {
    UpTo(u64),
    List(Vec<(u64, u64)>),
}

impl Cursor {
    /// The cursor of somebody who has seen nothing.
    pub fn new() -> Cursor {
        Cursor::default()
    }

    /// Whether nothing is covered.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.unlisted == Hlc::default()
    }

    /// Adds `first..=last` of `run`, the newest of which is of time `newest`.
    pub fn add(&mut self, run: RunHash, first: Seq, last: Seq, newest: Hlc) {
        let covered = self.runs.entry(run).or_default();
        covered.seqs.insert(first, last);
        covered.newest = covered.newest.max(newest);
    }

    /// Whether the entry `seq` of `run`, said at `hlc`, is covered.
    pub fn covers(&self, run: RunHash, seq: Seq, hlc: Hlc) -> bool {
        match self.runs.get(&run) {
            Some(covered) => covered.seqs.contains(seq),
            None => hlc <= self.unlisted,
        }
    }

    /// Whether `run` is listed with what is covered of it; else it is covered up to a time.
    pub fn lists(&self, run: RunHash) -> bool {
        self.runs.contains_key(&run)
    }

    /// What of `stored` is not covered, if `run` is listed; else all of it.
    pub fn missing(&self, run: RunHash, stored: &RangeSet) -> RangeSet {
        self.runs.get(&run).map_or_else(|| stored.clone(), |covered| stored.without(&covered.seqs))
    }

    /// Covers `gone`, entries of `run` that are not to be had any more, the newest of time `newest`; answers how many of
    /// them the holder was not given. Who has seen nothing yet was promised nothing.
    pub fn give_up(&mut self, run: RunHash, gone: &RangeSet, newest: Hlc) -> u64 {
        let listed = self.runs.contains_key(&run);
        if self.is_empty() || (!listed && self.unlisted > Hlc::default()) {
            return 0;
        }
        let known = self.runs.get(&run).map(|covered| covered.seqs.clone()).unwrap_or_default();
        for (first, last) in gone.iter() {
            self.add(run, first, last, newest);
        }
        gone.without(&known).count()
    }

    /// How much of `batch` is covered; `origin` is the hash of its origin.
    pub fn coverage(&self, origin: RunHash, batch: &Batch) -> Coverage {
        let (all, any) = match self.runs.get(&origin) {
            Some(Covered { seqs, .. }) => {
                (seqs.covers(batch.first(), batch.last()), seqs.touches(batch.first(), batch.last()))
            }
            None => (batch.hlc_last() <= self.unlisted, batch.hlc() <= self.unlisted),
        };
        match (all, any) {
            (true, _) => Coverage::All,
            (false, true) => Coverage::Part,
            (false, false) => Coverage::None,
        }
    }

    /// Adds all that `other` covers.
    pub fn merge(&mut self, other: &Cursor) {
        for (run, theirs) in &other.runs {
            let ours = self.runs.entry(*run).or_default();
            ours.seqs.union(&theirs.seqs);
            ours.newest = ours.newest.max(theirs.newest);
        }
        self.unlisted = self.unlisted.max(other.unlisted);
    }

    /// As bytes, at most `bytes_max`. Runs that do not fit are cut as in the text.
    pub fn to_bytes(&self, bytes_max: usize) -> Vec<u8> {
        let mut runs: Vec<(&RunHash, &Covered)> = self.runs.iter().collect();
        // Newest first, so that what does not fit is cut off at the end.
        runs.sort_by_key(|(hash, covered)| (std::cmp::Reverse(covered.newest), **hash));
        let mut unlisted = self.unlisted;
        loop {
            let bytes = self.wire(&runs, unlisted);
            if bytes.len() <= bytes_max || runs.is_empty() {
                return bytes;
            }
            let keep = runs.len() - 1 - runs.len() / 8;
            unlisted = runs[keep..].iter().map(|(_, covered)| covered.newest).fold(unlisted, Hlc::max);
            runs.truncate(keep);
        }
    }

    /// From [`Cursor::to_bytes`].
    ///
    /// # Errors
    /// [`CursorError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Cursor, CursorError> {
        let (wire, used): (WireCursor, usize) = bincode::decode_from_slice(bytes, CODING).map_err(|_| CursorError)?;
        if used != bytes.len() || wire.version != CURSOR_VERSION {
            return Err(CursorError);
        }
        let runs = wire.runs.into_iter().map(|(hash, newest, ranges)| {
            let seqs = match ranges {
                WireRanges::UpTo(last) => RangeSet::of(Seq(1), Seq(last)),
                WireRanges::List(ranges) => ranges.into_iter().map(|(first, last)| (Seq(first), Seq(last))).collect(),
            };
            (RunHash(hash), Covered { seqs, newest: Hlc(newest) })
        });
        Ok(Cursor { runs: runs.collect(), unlisted: Hlc(wire.unlisted) })
    }

    fn wire(&self, runs: &[(&RunHash, &Covered)], unlisted: Hlc) -> Vec<u8> {
        let runs = runs
            .iter()
            .map(|(hash, covered)| {
                let ranges: Vec<(u64, u64)> = covered.seqs.iter().map(|(first, last)| (first.0, last.0)).collect();
                let ranges = match ranges[..] {
                    [(1, last)] => WireRanges::UpTo(last),
                    _ => WireRanges::List(ranges),
                };
                (hash.0, covered.newest.0, ranges)
            })
            .collect();
        let wire = WireCursor { version: CURSOR_VERSION, unlisted: unlisted.0, runs };
        bincode::encode_to_vec(wire, CODING).unwrap_or_default()
    }
}

/// How much of something is covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// Every entry.
    All,
    /// Some entries.
    Part,
    /// No entry.
    None,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64URL_NOPAD.encode(&self.to_bytes(CURSOR_BYTES_MAX / 4 * 3)))
    }
}

impl FromStr for Cursor {
    type Err = CursorError;
    fn from_str(text: &str) -> Result<Cursor, CursorError> {
        if text.len() > CURSOR_BYTES_MAX {
            return Err(CursorError);
        }
        Cursor::from_bytes(&BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| CursorError)?)
    }
}

/// Hashes of runs, computed once for each run.
#[derive(Clone, Debug, Default)]
pub struct RunHashes(HashMap<Run, RunHash>);

impl RunHashes {
    /// The hash of `run`.
    pub fn of(&mut self, run: Run) -> RunHash {
        // A reader meets few runs again and again; a forgotten table is only slower.
        if self.0.len() >= 4096 {
            self.0.clear();
        }
        *self.0.entry(run).or_insert_with(|| run.hash())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_the_way_through_text() {
        let mut cursor = Cursor::new();
        cursor.add(RunHash(7), Seq(1), Seq(9), Hlc::at(5));
        cursor.add(RunHash(8), Seq(3), Seq(4), Hlc::at(6));
        cursor.add(RunHash(8), Seq(8), Seq(8), Hlc::at(7));
        let text = cursor.to_string();
        assert_eq!(text.parse::<Cursor>(), Ok(cursor));
        assert!("%%".parse::<Cursor>().is_err() && format!("{text}AA").parse::<Cursor>().is_err());
    }

    #[test]
    fn two_cursors_together_cover_what_each_did() {
        let (mut one, mut other) = (Cursor::new(), Cursor::new());
        one.add(RunHash(7), Seq(1), Seq(4), Hlc::at(5));
        other.add(RunHash(7), Seq(6), Seq(6), Hlc::at(7));
        other.add(RunHash(8), Seq(1), Seq(1), Hlc::at(6));
        one.merge(&other);
        let covers = |run, seq| one.covers(RunHash(run), Seq(seq), Hlc::at(9));
        assert!(covers(7, 4) && !covers(7, 5) && covers(7, 6) && covers(8, 1) && !covers(8, 2));
        assert_eq!(Cursor::from_bytes(&one.to_bytes(1000)), Ok(one));
    }

    #[test]
    fn what_is_gone_counts_once_for_those_who_have_seen_something() {
        let gone = RangeSet::of(Seq(1), Seq(20));
        assert_eq!(Cursor::new().give_up(RunHash(7), &gone, Hlc::at(9)), 0);
        let mut cursor = Cursor::new();
        cursor.add(RunHash(7), Seq(1), Seq(5), Hlc::at(5));
        assert_eq!(cursor.give_up(RunHash(7), &gone, Hlc::at(9)), 15);
        assert_eq!(cursor.give_up(RunHash(7), &gone, Hlc::at(9)), 0);
        assert_eq!(cursor.give_up(RunHash(8), &RangeSet::of(Seq(1), Seq(3)), Hlc::at(9)), 3);
    }

    #[test]
    fn a_cursor_over_very_many_runs_stays_small_and_covers_what_it_covered() {
        let mut cursor = Cursor::new();
        for run in 0..2_000 {
            cursor.add(RunHash(run), Seq(1), Seq(10), Hlc::at(1_000 + run));
        }
        let text = cursor.to_string();
        assert!(text.len() <= CURSOR_BYTES_MAX);
        let read: Cursor = text.parse().unwrap();
        for run in 0..2_000 {
            assert!(read.covers(RunHash(run), Seq(10), Hlc::at(1_000 + run)), "{run}");
        }
        assert!(!read.covers(RunHash(1_999), Seq(11), Hlc::at(9_000)));
        assert!(!read.covers(RunHash(9_999), Seq(1), Hlc::at(9_000)));
    }
}
