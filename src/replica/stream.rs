//! One origin's entries as this node has them: what is held, on disk, seen, delivered next.
//!
//! Promises: a batch is delivered once and kept once; batches are delivered in seq order, except those that come after a gap
//! was given up; what is admitted was stored, and so was everything before it that is to be had.

use std::collections::BTreeMap;
use std::time::Duration;

use super::batch::Batch;
use super::clock::{Hlc, Mono};
use super::event::{Kept, OnDisk, Timing};
use super::hashes::Part;
use super::ranges::RangeSet;
use crate::id::{RunHash, Seq};

/// Ranges of what was seen of one stream. Beyond, only what fills a hole or goes on where something ends is taken.
pub const RANGES_MAX: usize = 1024;
/// How long a live reader waits for what is missing before it is told of a gap.
pub(crate) const GAP_WAIT: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Stream {
    pub hash: RunHash,
    /// The batches in the window, by their first seq.
    held: BTreeMap<Seq, Held>,
    /// The seqs of `held`.
    pub have: RangeSet,
    /// Everything that this life was ever given, or found on its disk: never delivered again.
    pub seen: RangeSet,
    /// What needs not be had from others: seen and, where there is a log, in it or on the way into it.
    pub taken: RangeSet,
    /// What is on disk.
    pub stored: RangeSet,
    /// What of it has local numbers.
    pub admitted: RangeSet,
    /// Everything up to here was let go: by retention, or by the window where there is no log.
    pub floor: Seq,
    /// What is missing for good and was reported.
    pub settled: RangeSet,
    /// What of it only came in a batch that contradicts what is held: not asked for again. The first body stays.
    pub contradicted: RangeSet,
    /// The first seq not yet delivered in order.
    pub next: Seq,
    /// Since when something behind `next` waits for it.
    pub waiting_since: Option<Mono>,
    /// The last seq, by the origin's own word.
    pub sent: Seq,
    /// The last seq that anybody has.
    pub top: Seq,
    /// The time of the newest entry seen.
    pub newest: Hlc,
    /// From here on live readers are owed every entry; what is before may be from before this node's life.
    pub owed: Seq,
    /// Whether `owed` was settled at the first word of this stream.
    pub met: bool,
    /// The origin said goodbye.
    pub goodbye: bool,
    /// Others say that its run is over; its own next word says otherwise.
    pub over: bool,
    /// When the origin was last heard over a link of its own, or this stream was made.
    pub alive_at: Mono,
    /// When what is held last changed.
    pub changed_at: Mono,
    /// Its part in the hashes over all streams.
    pub part: Part,
    /// It waits to be listed in a heartbeat.
    pub moved: bool,
    /// It takes more ranges than a mark has room for, and its turn has come to be told of in parts: the next mark is that
    /// part of it that begins at or below `told_to`.
    pub in_part: bool,
    pub told_to: Seq,
    /// What nobody is known to have, and since when.
    pub lost: (Mono, RangeSet),
}

#[derive(Debug)]
struct Held {
    batch: Batch,
    arrived_ms: u64,
    taken_at: Mono,
    /// Came as a repair, so it may be older than this node's life.
    repaired: bool,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    New,
    /// It was seen before, but is not in the log any more.
    Anew,
    /// All of it was seen before.
    Again,
    /// One more hole is too much for this stream: it is taken when others are filled.
    Torn,
    /// It contradicts what was seen: other borders, or another body.
    Conflict,
}

/// Something to deliver, or the gap before it.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    Deliver(Batch, Timing),
    /// So many are not there yet.
    Gap(u64),
    /// So many are missing for good, which nobody was told, because nobody waited for them when that was found out.
    Lost(u64),
}

impl Stream {
    pub fn new(now: Mono, hash: RunHash) -> Stream {
        Stream {
            hash,
            held: BTreeMap::new(),
            have: RangeSet::new(),
            seen: RangeSet::new(),
            taken: RangeSet::new(),
            stored: RangeSet::new(),
            admitted: RangeSet::new(),
            floor: Seq(0),
            settled: RangeSet::new(),
            contradicted: RangeSet::new(),
            next: Seq(1),
            waiting_since: None,
            sent: Seq(0),
            top: Seq(0),
            newest: Hlc::default(),
            owed: Seq(u64::MAX),
            met: false,
            goodbye: false,
            over: false,
            alive_at: now,
            changed_at: now,
            part: Part::default(),
            moved: false,
            in_part: false,
            told_to: Seq(u64::MAX),
            lost: (now, RangeSet::new()),
        }
    }

    /// Takes over what a disk holds, when it is opened or opened again; answers what it does not know to be settled.
    pub fn open(&mut self, now: Mono, disk: OnDisk) -> RangeSet {
        let OnDisk { run: _, floor, stored, admitted, settled, newest } = disk;
        if self.seen.is_empty() {
            self.next = stored.top().max(floor).next();
        }
        self.seen.union(&stored);
        let untold = self.settled.without(&settled).without(&stored).without(&RangeSet::of(Seq(1), floor));
        self.settled.union(&settled);
        self.settled = self.settled.without(&stored);
        (self.floor, self.newest) = (self.floor.max(floor), self.newest.max(newest));
        self.top = self.top.max(stored.top()).max(floor);
        (self.taken, self.stored, self.admitted, self.changed_at) = (stored.clone(), stored, admitted, now);
        untold
    }

    /// The first word of where this stream stands: `top` of time `newest` (none: unknown). What was said before `start` is
    /// nothing that live readers wait for.
    pub fn meet(&mut self, top: Seq, newest: Option<Hlc>, start: Hlc) {
        if self.met {
            return;
        }
        if top == Seq(0) || newest.is_some_and(|newest| newest < start) {
            self.met = true;
            self.owed = self.owed.min(top.next());
            if self.next <= top && self.held.range(..=top).next().is_none() {
                self.next = top.next();
            }
        }
    }

    /// Takes a batch into the window, if it is new.
    pub fn take(&mut self, now: Mono, kept: Kept, repaired: bool, logged: bool) -> Taken {
        let Kept { batch, arrived_ms } = kept;
        let (first, last) = (batch.first(), batch.last());
        if last < self.wanted_from(logged) {
            return Taken::Again;
        }
        let known = self.seen.touches(first, last);
        if known {
            let same = self.seen.covers(first, last)
                && self.held.get(&first).is_none_or(|held| held.batch.body_hash() == batch.body_hash());
            if !same || self.taken.covers(first, last) {
                return if same { Taken::Again } else { Taken::Conflict };
            }
        }
        // The first that is missed is never too much.
        let lowest = self.wanted_from(logged);
        let alone = |set: &RangeSet| first != lowest && !set.touches(Seq(first.0 - 1), last.next());
        let full = |set: &RangeSet| set.ranges_len() >= RANGES_MAX && alone(set);
        if full(&self.seen) || full(&self.taken) {
            return Taken::Torn;
        }
        self.taken.insert(first, last);
        self.settled.remove(first, last);
        self.changed_at = now;
        if known {
            return Taken::Anew;
        }
        self.seen.insert(first, last);
        self.have.insert(first, last);
        self.top = self.top.max(last);
        self.newest = self.newest.max(batch.hlc_last());
        self.held.insert(first, Held { batch, arrived_ms, taken_at: now, repaired });
        Taken::New
    }

    /// A batch of `first..=last` contradicts what is held; answers what of it cannot be had any more.
    pub fn contradict(&mut self, first: Seq, last: Seq, logged: bool) -> Vec<(Seq, Seq)> {
        if self.contradicted.ranges_len() >= RANGES_MAX {
            return Vec::new();
        }
        let missing = self.seen.missing(first.max(self.wanted_from(logged)), last);
        let missing: Vec<_> = missing.into_iter().flat_map(|(a, b)| self.settled.missing(a, b)).collect();
        for (first, last) in &missing {
            self.contradicted.insert(*first, *last);
        }
        missing
    }

    /// Somebody holds these: what was settled of them is asked for again, unless it would contradict what is held or be
    /// refused.
    pub fn unsettle(&mut self, first: Seq, last: Seq, logged: bool) {
        let full = self.is_full();
        for (first, last) in self.contradicted.missing(first, last) {
            for (first, last) in self.settled.within(first, last).iter() {
                // Whoever claims a little here and a little there does not make us remember it all.
                if self.settled.ranges_len() < RANGES_MAX / 2 && (!full || self.goes_on(first, logged)) {
                    self.settled.remove(first, last);
                }
            }
        }
    }

    /// `first..=last` is on disk now.
    pub fn store(&mut self, now: Mono, first: Seq, last: Seq) {
        if last > self.floor {
            self.stored.insert(first, last);
            self.taken.insert(first, last);
            self.changed_at = now;
        }
    }

    /// What can have local numbers now: all before it is stored, lost or expired. Each stretch with whether it is late.
    pub fn admit(&mut self, beyond_holes: bool) -> Vec<(Seq, Seq, bool)> {
        let mut end = if beyond_holes { self.stored.top() } else { self.floor };
        // Walks both sets at once, as each may have many ranges.
        let (mut stored, mut settled) = (self.stored.iter().peekable(), self.settled.iter().peekable());
        loop {
            let further = |range: &(Seq, Seq)| range.0 <= end.next();
            let next = stored.next_if(further).or_else(|| settled.next_if(further));
            let Some((_, last)) = next else { break };
            end = end.max(last);
        }
        let mut fresh = Vec::new();
        for (first, last) in self.stored.iter().take_while(|(first, _)| *first <= end) {
            let late = |(first, last): (Seq, Seq)| (first, last, first < self.admitted.top());
            fresh.extend(self.admitted.missing(first, last).into_iter().map(late));
        }
        for (first, last, _) in &fresh {
            self.admitted.insert(*first, *last);
        }
        fresh
    }

    /// How many entries up to `floor` readers are owed that never came and were not reported as missing for good.
    pub fn owed_holes(&self, floor: Seq) -> u64 {
        let holes = self.seen.missing(self.owed.max(self.floor.next()), floor);
        let unsettled = holes.into_iter().flat_map(|(first, last)| self.settled.missing(first, last));
        unsettled.fold(0, |sum, (first, last)| sum.saturating_add((last.0 - first.0).saturating_add(1)))
    }

    /// Everything up to `floor` was let go; answers what can be delivered now.
    pub fn expire(&mut self, now: Mono, floor: Seq, start: Hlc) -> Vec<Step> {
        // What is gone counts as had: in the eyes of others nothing changes, unless there was a hole.
        let mut had = self.taken.clone();
        had.union(&self.settled);
        had.insert(Seq(1), self.floor);
        if !had.covers(Seq(1), floor) {
            self.changed_at = now;
        }
        self.floor = self.floor.max(floor);
        self.seen.insert(Seq(1), floor);
        for set in [&mut self.stored, &mut self.taken, &mut self.admitted, &mut self.settled, &mut self.contradicted] {
            set.remove(Seq(0), floor);
        }
        let mut steps = Vec::new();
        if self.next <= floor {
            self.next = floor.next();
            self.advance(start, &mut steps);
        }
        steps
    }

    /// What is to be had from here.
    pub fn held(&self) -> RangeSet {
        let mut held = self.stored.clone();
        held.union(&self.have);
        held
    }

    /// What can be delivered now that the batch at `first` was taken.
    pub fn deliver(&mut self, first: Seq, start: Hlc) -> Vec<Step> {
        let mut steps = Vec::new();
        if first < self.next {
            if let Some(held) = self.held.get(&first) {
                let timing = if self.is_history(held, start) { Timing::History } else { Timing::Late };
                steps.push(Step::Deliver(held.batch.clone(), timing));
            }
            return steps;
        }
        self.advance(start, &mut steps);
        steps
    }

    /// Stops waiting for what is missing before the next batch.
    pub fn give_up(&mut self, start: Hlc) -> Vec<Step> {
        let mut steps = Vec::new();
        if let Some((&first, held)) = self.held.range(self.next..).next() {
            if !self.is_history(held, start) {
                // Whoever waited for what is missing is owed it; before the first word of a stream nobody waits.
                let from = self.next.max(self.owed);
                let missing: u64 = self.settled_less(from, first);
                if missing > 0 {
                    steps.push(Step::Gap(missing));
                }
            }
            self.next = first;
            self.advance(start, &mut steps);
        }
        steps
    }

    fn settled_less(&self, from: Seq, before: Seq) -> u64 {
        if from >= before {
            return 0;
        }
        self.settled.missing(from, Seq(before.0 - 1)).iter().map(|(first, last)| last.0 - first.0 + 1).sum()
    }

    fn settled_within(&self, from: Seq, before: Seq) -> u64 {
        before.0 - from.0 - self.settled_less(from, before)
    }

    fn advance(&mut self, start: Hlc, steps: &mut Vec<Step>) {
        loop {
            if let Some(held) = self.held.get(&self.next) {
                let history = self.is_history(held, start);
                let timing = if history { Timing::History } else { Timing::Live };
                let batch = held.batch.clone();
                let (first, owed) = (batch.first(), self.owed);
                if !history {
                    self.met = true;
                    self.owed = owed.min(first);
                }
                self.next = batch.last().next();
                steps.push(Step::Deliver(batch, timing));
                let untold = if self.owed < owed { self.settled_within(first, owed) } else { 0 };
                if untold > 0 {
                    steps.push(Step::Lost(untold));
                }
            } else if let Some((_, last)) = self.settled.range_of(self.next)
                // Somebody may have made us believe that there is no end.
                && self.next < Seq(u64::MAX)
            {
                self.next = last.next();
            } else {
                break;
            }
        }
        self.waiting_since = self.held.range(self.next..).next().map(|(_, held)| held.taken_at);
    }

    /// Whether a batch is from before this node's life.
    fn is_history(&self, held: &Held, start: Hlc) -> bool {
        held.repaired && held.batch.last() < self.owed && held.batch.hlc_last() < start
    }

    /// Declares `first..=last` missing for good.
    pub fn settle(&mut self, first: Seq, last: Seq, start: Hlc) -> Vec<Step> {
        self.settled.insert(first, last);
        if !self.met {
            // Gone before anybody here waited for it.
            (self.met, self.owed) = (true, self.owed.min(last.next()));
        }
        let mut steps = Vec::new();
        self.advance(start, &mut steps);
        steps
    }

    /// Lets the batch at `first` leave the window; answers what has to be delivered before it goes. Where there is no log it
    /// is gone then.
    pub fn evict(&mut self, now: Mono, first: Seq, start: Hlc, logged: bool) -> Vec<Step> {
        let mut steps = Vec::new();
        while self.next <= first && self.waiting_since.is_some() {
            steps.extend(self.give_up(start));
        }
        if let Some(held) = self.held.remove(&first) {
            let last = held.batch.last();
            self.have.remove(first, last);
            if !logged {
                self.floor = self.floor.max(last);
                self.changed_at = now;
            }
        }
        steps
    }

    /// The batches held that touch `first..=last`, ascending, with when they arrived.
    pub fn kept(&self, first: Seq, last: Seq) -> impl Iterator<Item = Kept> + '_ {
        self.batches(first, last).map(|batch| {
            let arrived_ms = self.held.get(&batch.first()).map_or(0, |held| held.arrived_ms);
            Kept { batch: batch.clone(), arrived_ms }
        })
    }

    /// The batches held that touch `first..=last`, ascending.
    pub fn batches(&self, first: Seq, last: Seq) -> impl Iterator<Item = &Batch> {
        let from = self.held.range(..=first).next_back().map_or(first, |(at, _)| *at);
        self.held
            .range(from..=last.max(from))
            .map(|(_, held)| &held.batch)
            .filter(move |batch| batch.last() >= first && batch.first() <= last)
    }

    /// The batch whose first seq is `first`.
    pub fn batch(&self, first: Seq) -> Option<&Batch> {
        self.held.get(&first).map(|held| &held.batch)
    }

    /// What was seen, and what left before it could be: the ranges that hashes and cursors speak of.
    pub fn covered(&self) -> RangeSet {
        let mut covered = self.seen.clone();
        covered.insert(Seq(1), self.floor);
        covered
    }

    /// What is missing up to `limit` and not settled. History below the floor is not missed: it would not stay.
    pub fn missing(&self, limit: Seq, logged: bool) -> Vec<(Seq, Seq)> {
        let known = self.taken.missing(self.wanted_from(logged), limit);
        if self.settled.is_empty() {
            return known;
        }
        known.into_iter().flat_map(|(first, last)| self.settled.missing(first, last)).collect()
    }

    /// Whether it has so many holes that only what fills them from below is taken.
    pub fn is_full(&self) -> bool {
        self.seen.ranges_len() >= RANGES_MAX || self.taken.ranges_len() >= RANGES_MAX
    }

    /// Whether `first` fills a hole from below: that is never too much.
    pub fn goes_on(&self, first: Seq, logged: bool) -> bool {
        first == self.wanted_from(logged) || self.taken.contains(Seq(first.0.saturating_sub(1)))
    }

    /// Nothing before this is missed. Without a log the floor may have passed what live readers are owed.
    pub fn wanted_from(&self, logged: bool) -> Seq {
        if logged { self.floor.next() } else { self.floor.next().min(self.owed.max(Seq(1))) }
    }

    /// Whether anything is missing up to `limit` and not settled.
    pub fn lacks(&self, limit: Seq, logged: bool) -> bool {
        !self.taken.covers(self.wanted_from(logged), limit) && !self.missing(limit, logged).is_empty()
    }

    /// Whether nothing of it is held.
    pub fn is_bare(&self) -> bool {
        self.held.is_empty() && self.stored.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Epoch, NodeKey, Room};
    use crate::replica::batch::{Author, Draft};

    #[test]
    fn a_hole_settled_before_anybody_waited_for_it_is_told_when_readers_pass_it() {
        let key = NodeKey::from_bytes(&[1; 32]);
        let origin = key.run(Epoch(2));
        let batch = |first: u64, count: usize| {
            let author = Author {
                key: &key,
                origin,
                name: "ada",
                first: Seq(first),
                hlc: Hlc::at(1_000 + first),
                previous: [0; 32],
            };
            author.encode(&vec![Draft::new(Room::lobby(), "hi"); count])
        };
        let (start, now) = (Hlc::at(1), Mono(0));
        let mut stream = Stream::new(now, origin.hash());
        assert_eq!(stream.settle(Seq(18), Seq(29), start), []);
        let (early, later) = (batch(1, 17), batch(30, 4));
        let mut given = |batch: &Batch| {
            let kept = Kept { batch: batch.clone(), arrived_ms: 0 };
            assert_eq!(stream.take(now, kept, true, true), Taken::New);
            stream.deliver(batch.first(), start)
        };
        let live = |batch: &Batch| Step::Deliver(batch.clone(), Timing::Live);
        assert_eq!(given(&later), []);
        assert_eq!(given(&early), [live(&early), Step::Lost(12), live(&later)]);
        // Once told is told.
        assert_eq!(stream.settle(Seq(34), Seq(40), start), []);
    }
}
