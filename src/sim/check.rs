//! What must hold: the book of everything said, and of what each life was given.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::world::World;
use super::{Class, Counts};
use crate::id::{EntryId, Run, Seq};
use crate::replica::batch::{Batch, Draft};
use crate::replica::clock::Mono;
use crate::replica::event::{Missing, Notice, Timing};
use crate::replica::liveness::Status;
use crate::replica::ranges::RangeSet;
use crate::replica::repair::{REQUEST_BYTES_MAX, REQUESTS_MAX};
use crate::replica::{PEERS_MAX, Replica, STREAMS_MAX};

/// An invariant broke, in words.
pub(super) type Broken = String;
pub(super) type Held = Result<(), Broken>;

/// A node wakes up at most so often in one second of virtual time.
const TIMEOUTS_PER_SECOND_MAX: u64 = 400;
/// What a life may be sent twice in repairs besides a fifth of what it missed.
const TWICE_BYTES_ALLOWED: u64 = 256 * 1024;
/// What a window may cost besides its bound: the batch that came last.
const WINDOW_SLACK_BYTES: usize = 300 * 1024;

/// Everything that was ever said, by the word of who said it.
#[derive(Default)]
pub(super) struct Book {
    batches: HashMap<Run, BTreeMap<Seq, Batch>>,
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
        Ok(())
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
            of.told += missing;
            if *reason == Missing::Late {
                counts.gaps += 1;
            } else {
                of.settled += missing;
                counts.missing += missing;
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

    /// A hash of what was delivered.
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
    if many || bytes > window_bytes + WINDOW_SLACK_BYTES {
        return Err(format!("state: {streams} streams, {peers} peers, {flights} requests, {bytes} bytes"));
    }
    Ok(())
}

/// What a replica has of every stream, as far as frames from the past must not change it.
pub(super) fn fingerprint(replica: &Replica) -> Vec<(Run, RangeSet, RangeSet, Seq)> {
    let known = replica.audit().filter(|audit| !audit.seen.is_empty());
    known.map(|audit| (audit.run, audit.seen.clone(), audit.have.clone(), audit.floor)).collect()
}

impl World {
    /// Whether everybody has what anybody has, and knows of the rest that it is gone.
    pub(super) fn converged(&self) -> Held {
        let mut held: BTreeMap<Run, RangeSet> = BTreeMap::new();
        let mut floors: BTreeMap<Run, Seq> = BTreeMap::new();
        for (_, replica, _) in self.alive() {
            for audit in replica.audit() {
                held.entry(audit.run).or_default().union(audit.have);
                let floor = floors.entry(audit.run).or_default();
                *floor = audit.floor.max(*floor);
            }
        }
        for (host, replica, given) in self.alive() {
            let audits: BTreeMap<Run, _> = replica.audit().map(|audit| (audit.run, audit)).collect();
            for (run, held) in &held {
                let Some(audit) = audits.get(run) else {
                    if held.is_empty() {
                        continue;
                    }
                    return Err(format!("{host} does not know {run:?}"));
                };
                let mut wanted = held.without(audit.seen);
                // What left this window before the reader was owed it is not wanted back.
                wanted.remove(Seq(0), audit.floor.min(Seq(audit.owed.0.saturating_sub(1))));
                if !wanted.is_empty() {
                    return Err(format!(
                        "{host} lacks {:?} of {run:?}: seen {:?}, settled {:?}, owed {:?}, floor {:?}",
                        ranges(&wanted),
                        ranges(audit.seen),
                        ranges(audit.settled),
                        audit.owed,
                        audit.floor
                    ));
                }
                let limit = audit.seen.top().max(floors[run]);
                let mut unsettled = 0;
                for (first, last) in audit.seen.missing(audit.owed, limit) {
                    unsettled += last.0 - first.0 + 1;
                    if !audit.settled.covers(first, last) {
                        return Err(format!("{host} has not settled {:?} of {run:?}", (first, last)));
                    }
                }
                let told = given.origins.get(run).map_or(0, |of| of.settled);
                if told < unsettled {
                    return Err(format!(
                        "{host} misses {unsettled} of {run:?} for good and told of {told}: seen {:?}, settled {:?}, owed {:?}",
                        ranges(audit.seen),
                        ranges(audit.settled),
                        audit.owed
                    ));
                }
                let undelivered =
                    audit.seen.without(given.origins.get(run).map_or(&RangeSet::new(), |of| &of.delivered));
                if !undelivered.is_empty() {
                    return Err(format!("{host} has seen and not delivered {:?} of {run:?}", ranges(&undelivered)));
                }
            }
            if replica.is_repairing() {
                return Err(format!("{host} still repairs"));
            }
        }
        self.all_up()
    }

    /// Whether all who live know it of each other, and of the dead.
    fn all_up(&self) -> Held {
        for (host, replica, _) in self.alive() {
            for (other, peer, _) in self.alive().filter(|(other, ..)| *other != host) {
                let status = replica.known_peer(peer.me()).map(|peer| peer.status);
                if status != Some(Status::Up) {
                    return Err(format!("{other} is {status:?} for {host}"));
                }
            }
            for (run, peer) in replica.peers() {
                if !matches!(peer.status, Status::Down | Status::New)
                    && !self.alive().any(|(_, replica, _)| replica.me() == run)
                {
                    return Err(format!("the dead {run:?} is {:?} for {host}", peer.status));
                }
            }
        }
        Ok(())
    }

    /// What holds at the end, besides [`World::converged`].
    pub(super) fn at_the_end(&self) -> Held {
        for (host, replica, given) in self.alive() {
            for batch in replica.window().step_by(1 + replica.window_size().1 / 32) {
                let id = EntryId { run: batch.origin(), seq: batch.last() };
                let held =
                    |other: &Replica| other.audit().any(|audit| audit.run == id.run && audit.have.contains(id.seq));
                let truth = self
                    .alive()
                    .filter(|(other, replica, _)| *other != host && held(replica) && replica.me().node != id.run.node);
                let (claim, truth) = (replica.held_by(id), truth.count());
                if claim != truth {
                    return Err(format!("{host} says {claim} others hold {id:?}, {truth} do"));
                }
            }
            let missed = given.repaired_bytes - given.repaired_bytes_twice;
            // An answer may be on its way while its source dies and another is asked.
            let allowed = TWICE_BYTES_ALLOWED + self.plan.crashes * u64::from(REQUEST_BYTES_MAX);
            if !self.plan.repeats() && given.repaired_bytes_twice > missed / 5 + allowed {
                return Err(format!(
                    "{host} missed {missed} bytes and got {} again in repairs",
                    given.repaired_bytes_twice
                ));
            }
        }
        if self.plan.class == Class::Calm && self.counts.missing > 0 {
            return Err(format!("{} entries lost in calm weather", self.counts.missing));
        }
        Ok(())
    }
}

fn ranges(set: &RangeSet) -> Vec<(u64, u64)> {
    set.iter().map(|(first, last)| (first.0, last.0)).take(20).collect()
}
