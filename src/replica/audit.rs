//! What the simulator sees of a replica, beyond what programs see.

use super::Replica;
use super::batch::Batch;
use super::clock::{Hlc, Now};
use super::ranges::RangeSet;
use super::stream::Stream;
use crate::id::{Run, Seq};

/// One stream as the simulator sees it.
pub(crate) struct Audit<'a> {
    pub run: Run,
    pub seen: &'a RangeSet,
    pub have: &'a RangeSet,
    pub taken: &'a RangeSet,
    pub stored: &'a RangeSet,
    pub admitted: &'a RangeSet,
    pub settled: &'a RangeSet,
    pub owed: Seq,
    pub floor: Seq,
    /// The last seq that anybody was ever known to have.
    pub known: Seq,
}

impl Replica {
    /// What is known of each stream, for the simulator.
    pub(crate) fn audit(&self) -> impl Iterator<Item = Audit<'_>> {
        self.streams.iter().map(|(run, stream)| {
            let Stream { seen, have, taken, stored, admitted, settled, owed, floor, sent, top, .. } = stream;
            let known = seen.top().max(*sent).max(*top);
            Audit { run: *run, seen, have, taken, stored, admitted, settled, owed: *owed, floor: *floor, known }
        })
    }

    /// Whether a batch is here already or is not wanted, for the simulator.
    pub(crate) fn has(&self, batch: &Batch) -> bool {
        let (first, last, logged) = (batch.first(), batch.last(), self.log.is_there());
        let stream = self.streams.get(&batch.origin());
        stream.is_some_and(|stream| last < stream.wanted_from(logged) || stream.taken.covers(first, last))
    }

    /// Whether what `run` said at `hlc` is refused for its age, for the simulator.
    pub(crate) fn refuses(&self, now: Now, run: Run, hlc: Hlc) -> bool {
        self.is_old(now, run, hlc)
    }

    /// Whether requests are out, for the simulator.
    pub(crate) fn is_repairing(&self) -> bool {
        !self.repairs.flights.is_empty()
    }

    /// How much state there is, for the simulator: streams, peers, requests out, bytes in the window.
    pub(crate) fn size(&self) -> (usize, usize, usize, usize) {
        (self.streams.len(), self.peers.len(), self.repairs.flights.len(), self.window.bytes())
    }

    /// The most ranges that a stream is remembered with, and what has them, for the simulator. What is in the window is
    /// bounded by its bytes.
    pub(crate) fn ranges(&self) -> (usize, &'static str) {
        let most = |stream: &Stream| {
            let Stream { seen, taken, stored, admitted, settled, contradicted, .. } = stream;
            let sets = [
                (seen, "seen"),
                (taken, "taken"),
                (stored, "stored"),
                (admitted, "admitted"),
                (settled, "settled"),
                (contradicted, "contradicted"),
            ];
            sets.into_iter().map(|(set, name)| (set.ranges_len(), name)).max()
        };
        self.streams.values().filter_map(most).max().unwrap_or((0, ""))
    }

    /// How many things are remembered in all, apart from ranges and the bytes of the window, for the simulator.
    #[cfg(test)]
    pub(crate) fn remembered(&self) -> usize {
        let sets = [&self.lacking, &self.unplanned, &self.waiting].map(|set| set.len()).into_iter().sum::<usize>();
        let holds: usize = self.peers.values().map(|peer| 1 + peer.holds.len()).sum();
        let tables = self.streams.len() + self.runs.len() + self.newcomers.len() + self.unwelcome.len();
        tables + sets + holds + self.moved.len() + self.window.len() + self.outputs.len() + self.repairs.remembered()
    }
}
