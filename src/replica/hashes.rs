//! What is held of all streams in a few hashes, that peers compare before they tell each other more.
//!
//! Each stream has its part in them, reckoned anew only when something of that stream changed: a beat costs what happened
//! since the last one, however many streams there are.

use std::collections::BTreeSet;
use std::time::Duration;

use super::clock::Mono;
use super::message::BUCKETS;
use super::ranges::RangeSet;
use super::stream::Stream;
use super::{Mutant, Replica, mix};
use crate::id::{Run, RunHash, Seq};

/// A stream that did not change for this long is settled.
const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// Ranges of one stream in a mark or holding. Fewer are all that is held; so many are what is held between their ends, and
/// say nothing of what is beyond.
pub(super) const RANGES_MAX: usize = 24;

/// The hashes, and whose part in them is to be reckoned anew.
#[derive(Debug, Default)]
pub(crate) struct Hashes {
    settled: u64,
    /// Streams that changed, or did so less than [`SETTLED_AFTER`] ago.
    restless: BTreeSet<Run>,
    held: Buckets,
    changed: BTreeSet<Run>,
}

#[derive(Debug)]
struct Buckets([u64; BUCKETS]);

impl Default for Buckets {
    fn default() -> Buckets {
        Buckets([0; BUCKETS])
    }
}

/// The part of one stream.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Part {
    settled: u64,
    held: u64,
}

impl Hashes {
    /// The hash of what is held of all streams that did not change lately, as of the last beat.
    pub fn settled(&self) -> u64 {
        self.settled
    }

    /// Something of this stream changed.
    pub fn touch(&mut self, run: Run) {
        self.restless.insert(run);
        self.changed.insert(run);
    }

    /// The stream of `run` is forgotten.
    pub fn forget(&mut self, run: Run, stream: &Stream) {
        self.restless.remove(&run);
        self.changed.remove(&run);
        self.settled ^= stream.part.settled;
        self.held.0[bucket(stream.hash)] ^= stream.part.held;
    }
}

impl Replica {
    /// What is held, as a hash for each bucket of origins.
    pub(super) fn bucket_hashes(&mut self) -> [u64; BUCKETS] {
        for run in std::mem::take(&mut self.hashes.changed) {
            let Some(hash) = self.streams.get(&run).map(|stream| self.held_hash(stream)) else { continue };
            let Some(stream) = self.streams.get_mut(&run) else { continue };
            self.hashes.held.0[bucket(stream.hash)] ^= stream.part.held ^ hash;
            stream.part.held = hash;
        }
        self.hashes.held.0
    }

    fn held_hash(&self, stream: &Stream) -> u64 {
        let (held, volatile) = (stream.held(), self.volatile(stream));
        if stream.floor == Seq(0) && held.is_empty() {
            return 0;
        }
        let sets = held.iter().chain([(Seq(0), stream.floor)]).chain(volatile.iter());
        sets.fold(stream.hash.0, |hash, (first, last)| mix(mix(hash ^ first.0) ^ last.0))
    }

    /// What of a stream is in memory only, by our own word.
    pub(super) fn volatile(&self, stream: &Stream) -> RangeSet {
        if self.bug(Mutant::SentAdvertised) {
            return RangeSet::new();
        }
        stream.have.without(&stream.stored)
    }

    /// Reckons anew the hash of what is settled.
    pub(super) fn hash_settled(&mut self, now: Mono) {
        let Replica { hashes, streams, .. } = self;
        let settled = &mut hashes.settled;
        hashes.restless.retain(|run| {
            let Some(stream) = streams.get_mut(run) else { return false };
            let rests = now - stream.changed_at >= SETTLED_AFTER;
            let hash = if rests && stream.top > Seq(0) { settled_hash(stream) } else { 0 };
            *settled ^= stream.part.settled ^ hash;
            stream.part.settled = hash;
            !rests
        });
    }

    /// Whether the hashes are what they would be if reckoned anew from all streams, for the simulator.
    #[cfg(feature = "sim")]
    pub(crate) fn hashes_are_right(&mut self, now: Mono) -> bool {
        self.hash_settled(now);
        let (known, buckets) = (self.hashes.settled, self.bucket_hashes());
        let rests = |stream: &&Stream| stream.top > Seq(0) && now - stream.changed_at >= SETTLED_AFTER;
        let anew = self.streams.values().filter(rests).fold(0, |sum, stream| sum ^ settled_hash(stream));
        let mut held = [0; BUCKETS];
        for stream in self.streams.values() {
            held[bucket(stream.hash)] ^= self.held_hash(stream);
        }
        known == anew && buckets == held
    }
}

/// What is gone for good counts as had: two that differ in nothing to be had have one hash.
fn settled_hash(stream: &Stream) -> u64 {
    let mut ranges = stream.taken.clone();
    ranges.insert(Seq(1), stream.floor);
    ranges.union(&stream.settled);
    ranges.iter().fold(stream.hash.0, |hash, (first, last)| mix(mix(hash ^ first.0) ^ last.0))
}

/// The hash of hashes, by which an answer to them is known.
pub(super) fn token(hashes: &[u64; BUCKETS]) -> u64 {
    hashes.iter().fold(1, |token, hash| mix(token ^ hash))
}

/// The bucket of an origin.
pub(super) fn bucket(run: RunHash) -> usize {
    (run.0 % BUCKETS as u64) as usize
}

/// The highest ranges of a set, as many as a message takes.
pub(super) fn highest(set: RangeSet) -> RangeSet {
    if set.ranges_len() <= RANGES_MAX {
        return set;
    }
    set.iter().rev().take(RANGES_MAX).collect()
}

/// The ranges that begin at or below `at`, as many as a message takes: the highest of them, or the lowest of all.
pub(super) fn part(set: &RangeSet, at: Seq) -> RangeSet {
    let below = set.iter().take_while(|(first, _)| *first <= at).count();
    set.iter().skip(below.saturating_sub(RANGES_MAX)).take(RANGES_MAX).collect()
}

/// A set in lists as a message takes them. The first counts as all that there is; the others add to it, each from the
/// lowest range of the one before.
pub(super) fn parts(set: RangeSet) -> Vec<RangeSet> {
    if set.ranges_len() < RANGES_MAX {
        return vec![set];
    }
    let mut parts: Vec<RangeSet> = vec![set.iter().rev().take(RANGES_MAX - 1).collect()];
    while let Some(lowest) = parts.last().map(RangeSet::bottom).filter(|lowest| *lowest > set.bottom()) {
        parts.push(part(&set, lowest));
    }
    parts
}

/// What of the part `held` of a stream is in memory only, in as many ranges as a message takes: more than that, if it
/// takes too many ranges to say.
pub(super) fn coarse(volatile: &RangeSet, held: &RangeSet) -> RangeSet {
    let (first, last) = (held.bottom(), held.top());
    let set = volatile.within(first, last);
    let Some((_, below)) = set.iter().rev().nth(RANGES_MAX - 1).filter(|_| set.ranges_len() > RANGES_MAX) else {
        return set;
    };
    let mut coarse: RangeSet = set.iter().rev().take(RANGES_MAX - 1).collect();
    coarse.insert(first, below);
    coarse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_many_ranges_leaves_out_the_lowest_of_what_is_held_and_none_of_what_is_volatile() {
        let set: RangeSet = (1..=60).map(|at| (Seq(at * 10), Seq(at * 10 + 3))).collect();
        let (few, all) = (highest(set.clone()), coarse(&set, &set));
        assert_eq!((few.ranges_len(), all.ranges_len()), (RANGES_MAX, RANGES_MAX));
        assert!(few.without(&set).is_empty() && few.covers(Seq(600), Seq(603)) && !few.contains(Seq(10)));
        assert!(set.without(&all).is_empty() && !all.contains(Seq(599)));
    }

    #[test]
    fn the_parts_of_a_set_leave_nothing_unsaid_between_its_ends() {
        for count in [0, 1, 23, 24, 25, 46, 47, 60, 1_024] {
            let set: RangeSet = (1..=count).map(|at| (Seq(at * 10), Seq(at * 10 + 3))).collect();
            let parts = parts(set.clone());
            let (mut told, mut said) = (parts[0].clone(), RangeSet::new());
            said.insert(told.bottom(), Seq(u64::MAX));
            for part in &parts[1..] {
                assert_eq!(part.ranges_len(), RANGES_MAX);
                told.union(part);
                said.insert(part.bottom(), part.top());
            }
            assert!(parts[0].ranges_len() < RANGES_MAX);
            assert_eq!((told, said), (set.clone(), RangeSet::of(set.bottom(), Seq(u64::MAX))), "{count}");
        }
    }
}
