//! What holds once faults have ended: everybody has what anybody has, and knows of the rest that it is gone.

use std::collections::{BTreeMap, BTreeSet};

use super::Class;
use super::check::Held;
use super::store;
use super::world::World;
use crate::id::{EntryId, NodeId, Run, Seq};
use crate::replica::liveness::Status;
use crate::replica::ranges::RangeSet;
use crate::replica::repair::{REQUEST_BYTES_MAX, REQUESTS_PER_PEER_MAX};
use crate::replica::{Audit, RANGES_MAX, Replica};

/// What a life may be sent twice in repairs besides a fifth of what it missed, if no longer batch was said.
const TWICE_BYTES_ALLOWED: u64 = 256 * 1024;

impl World {
    /// Whether everybody has what anybody has, and knows of the rest that it is gone.
    pub(super) fn converged(&self) -> Held {
        let mut held: BTreeMap<Run, RangeSet> = BTreeMap::new();
        let mut floors: BTreeMap<Run, Seq> = BTreeMap::new();
        for (_, replica, _) in self.alive() {
            for audit in replica.audit().filter(|audit| !self.is_hostile(audit.run.node)) {
                let all = held.entry(audit.run).or_default();
                all.union(audit.have);
                all.union(audit.stored);
                let floor = floors.entry(audit.run).or_default();
                *floor = audit.floor.max(*floor);
            }
        }
        for (host, replica, given) in self.alive() {
            let logged = self.hosts[host].disk.as_ref();
            let audits: BTreeMap<Run, _> = replica.audit().map(|audit| (audit.run, audit)).collect();
            for (run, held) in &held {
                let Some(audit) = audits.get(run) else {
                    let newest = self.book.time(*run, held.top());
                    if held.is_empty() || newest.is_some_and(|hlc| replica.refuses(self.now_of(host), *run, hlc)) {
                        continue;
                    }
                    return Err(format!("{host} does not know {run:?}"));
                };
                let say = |what: &str, ranges: &RangeSet| {
                    Err(format!("{host} {what} {} of {run:?}: {}", shown(ranges), describe(audit)))
                };
                let wanted = match logged {
                    Some(_) => held.without(audit.stored).without(&RangeSet::of(Seq(0), audit.floor)),
                    // What left this window before the reader was owed it is not wanted back.
                    None => held
                        .without(audit.seen)
                        .without(&RangeSet::of(Seq(0), audit.floor.min(Seq(audit.owed.0.saturating_sub(1))))),
                };
                if !wanted.is_empty() {
                    return say("lacks", &wanted);
                }
                let late = audit.stored.without(audit.admitted);
                if logged.is_some() && !late.is_empty() {
                    return say("has not admitted", &late);
                }
                // A tail that nobody here ever heard of just waits.
                let limit = audit.seen.top().max(floors[run].min(audit.known));
                let from = if logged.is_some() { audit.owed.max(audit.floor.next()) } else { audit.owed };
                let mut unsettled = 0;
                for (first, last) in audit.seen.missing(from, limit) {
                    unsettled += last.0 - first.0 + 1;
                    if !audit.settled.covers(first, last) {
                        return say("has not settled", &RangeSet::of(first, last));
                    }
                }
                let told = given.settled(*run);
                if told < unsettled {
                    return say(&format!("misses {unsettled} for good and told of {told}"), &RangeSet::new());
                }
                let undelivered = given.undelivered(*run, audit.seen, audit.floor);
                if !undelivered.is_empty() {
                    return say("has seen and not delivered", &undelivered);
                }
            }
            let (ranges, set) = replica.ranges();
            if ranges > RANGES_MAX + 1 {
                return Err(format!("{host} remembers {ranges} ranges of what is {set} of one stream"));
            }
            if replica.is_repairing() {
                return Err(format!("{host} still repairs"));
            }
            if let Some(disk) = logged {
                store::agrees(replica, disk).map_err(|what| format!("the log of {host}: {what}"))?;
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
    pub(super) fn at_the_end(&mut self) -> Held {
        for host in 0..self.hosts.len() {
            let now = self.now_of(host).mono;
            let right = self.hosts[host].life.as_mut().is_none_or(|life| life.replica.hashes_are_right(now));
            if !right {
                return Err(format!("{host} says hashes that are not those of what it holds"));
            }
        }
        for (host, replica, given) in self.alive() {
            if !self.plan.retains() && self.plan.hostiles == 0 {
                self.check_holders(host, replica)?;
            }
            let missed = given.repaired_bytes - given.repaired_bytes_twice;
            // Answers may be on their way while their source dies, or seems to, and another is asked.
            let longest = self.book.longest as u64;
            let on_their_way = REQUESTS_PER_PEER_MAX as u64 * u64::from(REQUEST_BYTES_MAX).max(longest);
            let allowed =
                TWICE_BYTES_ALLOWED.max(longest) + (self.counts.crashes + self.counts.partitions) * on_their_way;
            if !self.plan.repeats() && given.repaired_bytes_twice > missed / 5 + allowed {
                return Err(format!(
                    "{host} missed {missed} bytes and got {} again in repairs",
                    given.repaired_bytes_twice
                ));
            }
        }
        self.check_keys()?;
        for (index, host) in self.hosts.iter().enumerate().filter(|(_, host)| !host.hostile) {
            if let Some(disk) = &host.disk {
                disk.check_durable().map_err(|what| format!("the log of {index}: {what}"))?;
            }
        }
        if self.plan.class == Class::Calm && self.counts.missing > 0 {
            return Err(format!("{} entries lost in calm weather", self.counts.missing));
        }
        Ok(())
    }

    /// Each key is shown once, and the same one everywhere where it was not let go.
    fn check_keys(&mut self) -> Held {
        let mut everywhere = None;
        for (index, host) in self.hosts.iter().enumerate().filter(|(_, host)| host.life.is_some()) {
            let Some(disk) = &host.disk else { continue };
            self.counts.twins += disk.synced.twins();
            let shown = disk.synced.shown().map_err(|what| format!("the log of {index}: {what}"))?;
            if self.plan.retains() || self.plan.hostiles > 0 {
                continue;
            }
            let (other, there, same) = everywhere.get_or_insert_with(|| (index, &disk.synced, shown.clone()));
            for key in shown.keys().chain(same.keys()) {
                let (here, elsewhere) = (shown.get(key).copied(), same.get(key).copied());
                // Whoever was alone with a clock that was far ahead has let go of it.
                let gone =
                    here.is_none_or(|id| there.has_let_go(id)) && elsewhere.is_none_or(|id| disk.synced.has_let_go(id));
                if here != elsewhere && !gone {
                    return Err(format!("of {key:?} {index} shows {here:?} and {other} {elsewhere:?}"));
                }
            }
        }
        Ok(())
    }

    /// Every holder that lives is known to hold what it holds, and nobody else but those that did.
    fn check_holders(&self, host: usize, replica: &Replica) -> Held {
        for batch in replica.window().step_by(1 + replica.window_size().1 / 32) {
            let id = EntryId { run: batch.origin(), seq: batch.last() };
            let others = |node: &NodeId| *node != replica.me().node && *node != id.run.node;
            let holds = |other: &Replica| {
                other
                    .audit()
                    .any(|audit| audit.run == id.run && (audit.have.contains(id.seq) || audit.stored.contains(id.seq)))
            };
            let now: BTreeSet<NodeId> =
                self.alive().filter(|(_, other, _)| holds(other)).map(|(_, other, _)| other.me().node).collect();
            let ever = self.hosts.iter().filter(|host| host.disk.as_ref().is_some_and(|d| d.had_ever(id.run, id.seq)));
            let ever: BTreeSet<NodeId> = ever.map(|host| host.node).chain(now.iter().copied()).collect();
            let claim = replica.held_by(id);
            let (least, most) =
                (now.iter().filter(|node| others(node)).count(), ever.iter().filter(|node| others(node)).count());
            if claim < least || claim > most {
                return Err(format!("{host} says {claim} others hold {id:?}, {least} do, {most} ever did"));
            }
        }
        Ok(())
    }
}

pub(super) fn describe(audit: &Audit<'_>) -> String {
    let Audit { run: _, seen, have, taken, stored, admitted, settled, owed, floor, known } = audit;
    let sets = [("seen", seen), ("have", have), ("taken", taken), ("stored", stored), ("admitted", admitted)];
    let sets: Vec<String> = sets.iter().map(|(name, set)| format!("{name} {}", shown(set))).collect();
    format!("{}, settled {}, owed {owed:?}, floor {floor:?}, known {known:?}", sets.join(", "), shown(settled))
}

fn shown(set: &RangeSet) -> String {
    let ranges: Vec<(u64, u64)> = set.iter().map(|(first, last)| (first.0, last.0)).take(20).collect();
    format!("{ranges:?}")
}
