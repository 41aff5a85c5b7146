//! What must hold: the book of everything said, and of what each life was given.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::Counts;
use crate::id::{Run, Seq};
use crate::replica::batch::{BATCH_BYTES_MAX, Batch, Draft};
use crate::replica::clock::{Hlc, Mono};
use crate::replica::event::{Missing, Notice, Opened, Timing};
use crate::replica::ranges::RangeSet;
use crate::replica::repair::REQUESTS_MAX;
use crate::replica::{PEERS_MAX, Replica, STREAMS_MAX};

/// An invariant broke, in words.
pub(super) type Broken = String;
pub(super) type Held = Result<(), Broken>;

/// A node wakes up at most so often in one second of virtual time.
const TIMEOUTS_PER_SECOND_MAX: u64 = 400;

/// Everything that was ever said, by the word of who said it.
#[derive(Default)]
pub(super) struct Book {
    batches: HashMap<Run, BTreeMap<Seq, Batch>>,
    /// The length of the longest one.
    pub longest: usize,
}

impl Book {
    /// `run` says `batch`, made from the next of `drafts`.
    pub fn write(&mut self, run: Run, batch: &Batch, drafts: &mut VecDeque<Draft>) -> Held {
        if batch.origin() != run {
            return Err(format!("{run:?} says {batch:?} in another's name"));
        }
        let said = self.batches.entry(run).or_default();
        let next = said.values().next_back().map_or(Seq(1), |last| last.last().next());
        if batch.first() != next {
            return Err(format!("{run:?} says {batch:?} where {next:?} is next"));
        }
        for entry in batch.entries() {
            let entry = entry.map_err(|error| format!("{batch:?}: {error}"))?;
            let draft = drafts.pop_front().ok_or_else(|| format!("{:?} was never drafted", entry.id))?;
            if (&entry.room, &entry.payload, entry.key) != (&draft.room, &draft.payload, draft.key) {
                return Err(format!("{:?} is not what was drafted", entry.id));
            }
        }
        said.insert(batch.first(), batch.clone());
        self.longest = self.longest.max(batch.bytes().len());
        Ok(())
    }

    /// The time of an entry.
    pub fn time(&self, run: Run, seq: Seq) -> Option<Hlc> {
        let (_, batch) = self.batches.get(&run)?.range(..=seq).next_back()?;
        Some(batch.hlc_last())
    }

    /// Whether `batch` is, byte for byte, what its origin said.
    pub fn knows(&self, batch: &Batch) -> bool {
        let said = self.batches.get(&batch.origin()).and_then(|said| said.get(&batch.first()));
        said.is_some_and(|said| said.bytes() == batch.bytes())
    }
}

/// What one life was given, from its start.
#[derive(Default)]
pub(super) struct Given {
    origins: BTreeMap<Run, GivenOf>,
    second: u64,
    timeouts: u64,
    pub repaired_bytes: u64,
    pub repaired_bytes_twice: u64,
}

#[derive(Default)]
struct GivenOf {
    delivered: RangeSet,
    /// What was on disk when it was opened.
    found: RangeSet,
    live_to: Seq,
    /// Entries that the reader was told are missing, less those that it then saw skipped.
    told: u64,
    /// Entries that were declared missing for good.
    settled: u64,
}

impl Given {
    pub fn deliver(&mut self, batch: &Batch, how: Timing) -> Held {
        let (first, last) = (batch.first(), batch.last());
        let of = self.origins.entry(batch.origin()).or_default();
        if of.delivered.touches(first, last) {
            return Err(format!("{batch:?} delivered twice, now {how:?}"));
        }
        if how == Timing::Live {
            if first <= of.live_to {
                return Err(format!("{batch:?} delivered live after {:?}", of.live_to));
            }
            if of.live_to > Seq(0) {
                let skipped: u64 =
                    of.delivered.missing(of.live_to.next(), Seq(first.0 - 1)).iter().map(|(a, b)| b.0 - a.0 + 1).sum();
                if skipped > of.told {
                    return Err(format!(
                        "{batch:?} delivered live after {:?}, {skipped} skipped, {} told",
                        of.live_to, of.told
                    ));
                }
                of.told -= skipped;
            }
            of.live_to = last;
        }
        of.delivered.insert(first, last);
        Ok(())
    }

    pub fn notice(&mut self, notice: &Notice, counts: &mut Counts) {
        if let Notice::Gap { origin, missing, reason } = notice {
            let of = self.origins.entry(*origin).or_default();
            of.told = of.told.saturating_add(*missing);
            if *reason == Missing::Late {
                counts.gaps += 1;
            } else {
                of.settled = of.settled.saturating_add(*missing);
                counts.missing = counts.missing.saturating_add(*missing);
            }
        }
    }

    pub fn timeout(&mut self, at_ms: u64) -> Held {
        if self.second != at_ms / 1_000 {
            (self.second, self.timeouts) = (at_ms / 1_000, 0);
        }
        self.timeouts += 1;
        if self.timeouts > TIMEOUTS_PER_SECOND_MAX {
            return Err("timeouts spin".into());
        }
        Ok(())
    }

    /// What is on disk at a start counts as given.
    pub fn open(&mut self, opened: &Opened) {
        for stream in &opened.streams {
            self.origins.entry(stream.run).or_default().found.union(&stream.stored);
        }
    }

    /// How many entries of `run` were declared missing for good.
    pub fn settled(&self, run: Run) -> u64 {
        self.origins.get(&run).map_or(0, |of| of.settled)
    }

    /// What of `seen` was neither delivered nor found on disk.
    pub fn undelivered(&self, run: Run, seen: &RangeSet, floor: Seq) -> RangeSet {
        let Some(of) = self.origins.get(&run) else { return seen.clone() };
        seen.without(&of.delivered).without(&of.found).without(&RangeSet::of(Seq(0), floor))
    }

    /// How many entries were delivered.
    pub fn count(&self) -> u64 {
        self.origins.values().map(|of| of.delivered.count()).sum()
    }
}

/// What holds after each step of a replica.
pub(super) fn after_step(replica: &Replica, at: Mono, window_bytes: usize, runs_ever: usize) -> Held {
    let deadline = replica.poll_timeout().ok_or("no deadline")?;
    // What is due this very moment may be left to the timeout, but nothing from before.
    if deadline < at {
        return Err(format!("deadline {deadline:?} at {at:?}"));
    }
    let (streams, peers, flights, bytes) = replica.size();
    let many = streams > STREAMS_MAX.min(runs_ever) || peers > PEERS_MAX.min(runs_ever) || flights > REQUESTS_MAX;
    // The last batch stays, however long it is.
    let alone = if replica.window_size().1 == 1 { BATCH_BYTES_MAX + 256 } else { 0 };
    if many || bytes > window_bytes.max(alone) {
        return Err(format!("state: {streams} streams, {peers} peers, {flights} requests, {bytes} bytes"));
    }
    Ok(())
}

/// What a replica has of every stream, as far as frames from the past must not change it.
pub(super) fn fingerprint(replica: &Replica) -> Vec<(Run, RangeSet, RangeSet, Seq)> {
    let known = replica.audit().filter(|audit| !audit.seen.is_empty());
    known.map(|audit| (audit.run, audit.seen.clone(), audit.have.clone(), audit.floor)).collect()
}
