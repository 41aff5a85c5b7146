//! The table of streams: who gets one, who has to leave it, whose run is over, and which lack something.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::batch::Batch;
use super::clock::{self, Hlc, Mono, Now};
use super::event::{Missing, Notice};
use super::liveness::{self, Status};
use super::stream::Stream;
use super::{DAY_MS, RUNS_PER_DAY_MAX, Replica, STREAMS_MAX};
use crate::id::{Epoch, Run, Seq};

/// Ended streams begin to leave when there is room for so many more only.
const ROOM: usize = 256;
/// So many are picked at once.
const LEAVERS: usize = 1024;
/// And not sooner after a look that found too few.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Streams that have to make room for others.
#[derive(Debug, Default)]
pub(crate) struct Leavers {
    /// Whose turn is next.
    queue: VecDeque<Run>,
    /// Those that leave as soon as nothing of them is left.
    leaving: BTreeSet<Run>,
    /// When they were looked for last, if there were few.
    looked_at: Option<Mono>,
}

impl Replica {
    /// The stream of `origin`, made if there is room for it.
    pub(super) fn stream(&mut self, now: Now, origin: Run) -> Option<&mut Stream> {
        if !self.streams.contains_key(&origin) {
            let welcome = self.is_welcome(now, origin);
            if welcome && self.streams.len() + ROOM >= STREAMS_MAX {
                self.make_room(now);
            }
            if !welcome || self.streams.len() >= STREAMS_MAX {
                self.counters.refused += 1;
                return None;
            }
            let hash = origin.hash();
            self.runs.insert(hash, origin);
            self.streams.insert(origin, Stream::new(now.mono, hash));
        }
        self.streams.get_mut(&origin)
    }

    /// Whether a node may have one more run: it may have [`RUNS_PER_DAY_MAX`] new ones a day.
    pub(super) fn is_welcome(&mut self, now: Now, origin: Run) -> bool {
        let day = Duration::from_millis(DAY_MS);
        if self.newcomers.len() >= STREAMS_MAX {
            self.newcomers.retain(|_, (_, since)| now.mono - *since < day);
        }
        if self.newcomers.len() >= STREAMS_MAX {
            self.newcomers.clear();
        }
        let (count, since) = self.newcomers.entry(origin.node).or_insert((0, now.mono));
        if now.mono - *since >= day {
            (*count, *since) = (0, now.mono);
        }
        *count += 1;
        *count <= RUNS_PER_DAY_MAX
    }

    /// Makes room for one more: forgets the stream that ended longest ago and has nothing left; if there is none, lets go of
    /// the one that ended longest ago.
    fn make_room(&mut self, now: Now) {
        if self.leavers.queue.is_empty() && self.leavers.looked_at.is_none_or(|at| now.mono - at >= LOOK_EVERY) {
            // Looking at all of them is dear, so many are picked at once.
            let going = &self.leavers.leaving;
            let over =
                |(run, _): &(&Run, &Stream)| **run != self.me && !going.contains(run) && self.is_over(now, **run);
            let key = |(run, stream): (&Run, &Stream)| (!stream.is_bare(), stream.newest, *run);
            let mut ended: Vec<_> = self.streams.iter().filter(over).map(key).collect();
            if ended.len() > LEAVERS {
                ended.select_nth_unstable(LEAVERS);
                ended.truncate(LEAVERS);
            }
            ended.sort_unstable();
            self.leavers.queue = ended.into_iter().map(|(.., run)| run).collect();
            // With many to let go, the next look may come as soon as they have left.
            self.leavers.looked_at = (self.leavers.queue.len() < LEAVERS).then_some(now.mono);
        }
        while let Some(run) = self.leavers.queue.pop_front() {
            if !self.streams.contains_key(&run) || !self.is_over(now, run) {
                continue;
            }
            let Some(stream) = self.streams.get(&run) else { continue };
            self.leavers.leaving.insert(run);
            if stream.is_bare() {
                self.leave(run);
            } else {
                let top = stream.held().top();
                self.counters.let_go += 1;
                self.let_go(now, run, top);
            }
            return;
        }
    }

    /// What was told to go may not have been heard by a log that closed.
    pub(super) fn stay(&mut self) {
        self.leavers.leaving.clear();
    }

    /// Forgets a stream that has to go once nothing of it is left.
    pub(super) fn leave(&mut self, run: Run) {
        if self.leavers.leaving.contains(&run) && self.streams.get(&run).is_none_or(Stream::is_bare) {
            self.forget(run);
        }
    }

    /// Drops the record of a stream of which nothing is left; what it was does not come back.
    pub(super) fn forget(&mut self, run: Run) {
        let Some(stream) = self.streams.remove(&run) else { return };
        self.runs.remove(&stream.hash);
        self.hashes.forget(run, &stream);
        self.horizon = self.horizon.max(stream.newest.plus(DAY_MS << 16));
        for set in [&mut self.lacking, &mut self.unplanned, &mut self.waiting] {
            set.remove(&run);
        }
        self.leavers.leaving.remove(&run);
        // Those that were forgotten leave the queue in their turn.
        if self.moved.len() > 2 * self.streams.len() + 1024 {
            self.moved.retain(|moved| self.streams.contains_key(moved));
        }
        for peer in self.peers.values_mut() {
            peer.unlearn(run);
        }
        self.forget_on_disk(run);
    }

    /// Whether what an unknown run said at `hlc` is from before what this node has let go.
    pub(super) fn is_old(&self, now: Now, run: Run, hlc: Hlc) -> bool {
        let past = hlc.plus(DAY_MS << 16) <= self.horizon && hlc.wall_ms() >= clock::BUILD_MS;
        past && !self.streams.contains_key(&run) && self.is_over(now, run)
    }

    /// Whether nothing more can come from this run itself.
    pub(super) fn is_over(&self, now: Now, run: Run) -> bool {
        if self.peers.get(&run).is_some_and(|peer| peer.live) {
            return false;
        }
        let Some(stream) = self.streams.get(&run) else { return true };
        let silent = now.mono - stream.alive_at;
        let of_node = |epoch| Run { node: run.node, epoch: Epoch(epoch) };
        let again =
            || run.node == self.me.node || self.peers.range(of_node(0)..=of_node(u64::MAX)).any(|(_, peer)| peer.live);
        stream.goodbye || stream.over || silent >= liveness::OVER_AFTER || (silent >= liveness::DOWN_AFTER && again())
    }

    /// Keeps up to date which streams lack something and what is hashed, after one of them changed.
    pub(super) fn look_for_holes(&mut self, origin: Run) {
        self.hashes.touch(origin);
        let Some(stream) = self.streams.get(&origin) else { return };
        if stream.waiting_since.is_some() {
            self.waiting.insert(origin);
        } else {
            self.waiting.remove(&origin);
        }
        if stream.lacks(self.limit(origin), self.log.is_there()) {
            self.lacking.insert(origin);
            self.unplanned.insert(origin);
        } else {
            self.lacking.remove(&origin);
        }
    }

    /// Up to which seq of `origin` something may be missing. Where the origin itself is heard, its word counts: what
    /// others have of it is most often on its way to us, too.
    pub(super) fn limit(&self, origin: Run) -> Seq {
        let Some(stream) = self.streams.get(&origin) else { return Seq(0) };
        let own = stream.sent.max(stream.seen.top());
        let live =
            self.peers.get(&origin).is_some_and(|peer| peer.live && matches!(peer.status, Status::Up | Status::OneWay));
        if live { own } else { own.max(stream.top) }
    }

    /// Lets go of a stream up to `top`: of one with more holes than can be remembered, or of one that has to make room.
    pub(super) fn let_go(&mut self, now: Now, run: Run, top: Seq) {
        if self.log.is_there() {
            return self.expire_all(run);
        }
        let start = self.start;
        let Some(stream) = self.streams.get_mut(&run) else { return };
        let gone: Vec<Seq> = stream.batches(Seq(1), top).map(Batch::first).collect();
        for first in gone {
            self.evict(now, run, first);
        }
        if let Some(stream) = self.streams.get_mut(&run) {
            let missing = stream.owed_holes(top);
            let steps = stream.expire(now.mono, top, start);
            self.hashes.touch(run);
            if missing > 0 {
                self.counters.missing = self.counters.missing.saturating_add(missing);
                self.notify(Notice::Gap { origin: run, missing, reason: Missing::Expired });
            }
            self.step(run, steps);
        }
        self.leave(run);
    }
}
