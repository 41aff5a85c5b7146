//! The table of streams: who gets one, who has to leave it, whose run is over, and which lack something.

use std::time::Duration;

use super::batch::Batch;
use super::clock::{self, Hlc, Now};
use super::liveness::{self, Status};
use super::stream::Stream;
use super::{DAY_MS, RUNS_PER_DAY_MAX, Replica, STREAMS_MAX};
use crate::id::{Epoch, Run, Seq};

impl Replica {
    /// The stream of `origin`, made if there is room for it.
    pub(super) fn stream(&mut self, now: Now, origin: Run) -> Option<&mut Stream> {
        if !self.streams.contains_key(&origin) {
            if !self.is_welcome(now, origin) || (self.streams.len() >= STREAMS_MAX && !self.forget_oldest(now)) {
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

    /// Makes room: forgets the stream that ended longest ago and has nothing left; if there is none, lets the one go that
    /// ended longest ago.
    pub(super) fn forget_oldest(&mut self, now: Now) -> bool {
        let over = |(run, _): &(&Run, &Stream)| **run != self.me && self.is_over(now, **run);
        let oldest = self.streams.iter().filter(over).min_by_key(|(_, stream)| (!stream.is_bare(), stream.newest));
        let Some((run, bare)) = oldest.map(|(run, stream)| (*run, stream.is_bare())) else { return false };
        if bare {
            self.forget(run);
        } else {
            self.expire_all(run);
        }
        bare
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
        self.moved.retain(|moved| *moved != run);
        for peer in self.peers.values_mut() {
            peer.holds.remove(&run);
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

    /// Lets go of a stream with more holes than can be remembered, up to `top`; the holes were reported before.
    pub(super) fn let_go(&mut self, now: Now, run: Run, top: Seq) {
        if self.log.is_there() {
            return self.expire_all(run);
        }
        let Some(stream) = self.streams.get_mut(&run) else { return };
        let gone: Vec<Seq> = stream.batches(Seq(1), top).map(Batch::first).collect();
        for first in gone {
            self.evict(now, run, first);
        }
        if let Some(stream) = self.streams.get_mut(&run) {
            stream.expire(now.mono, top);
            self.hashes.touch(run);
        }
    }
}
