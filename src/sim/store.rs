//! What stands between a replica and its disk: orders on their way, syncs, reads, failures.

use super::check::Held;
use super::world::{Event, World};
use crate::id::{EntryId, Run, Seq};
use crate::replica::Replica;
use crate::replica::event::{Input, Kept, Order, Report};
use crate::replica::ranges::RangeSet;

/// Per mille of syncs that take seconds.
const STALLS: u64 = 5;

impl World {
    /// An order of the replica on a host.
    pub(super) fn order(&mut self, index: usize, order: Order) -> Held {
        let session = match &self.hosts[index].disk {
            Some(disk) => disk.session,
            None => return Err(format!("{index} has no disk and orders {order:?}")),
        };
        let run = self.hosts[index].life.as_ref().map(|life| life.replica.me());
        match &order {
            Order::Load(load) => {
                self.counts.loads += 1;
                let at = self.now + self.dice.range(1, self.plan.read_ms_max);
                self.at(at, Event::Read { host: index, session, load: *load });
                return Ok(());
            }
            Order::Append(kept) => {
                if run == Some(kept.batch.origin()) {
                    self.said(index, &kept.batch)?;
                }
                if !self.knows(&kept.batch) {
                    return Err(format!("{index} appends {:?}, which was never said like that", kept.batch));
                }
            }
            Order::Admit { late, .. } => self.counts.lates += u64::from(*late),
            Order::Settle(span) => {
                self.counts.settled = self.counts.settled.saturating_add(span.last.0 - span.first.0 + 1)
            }
            Order::Forget { .. } => self.let_go_of_some(),
            Order::Retain { .. } | Order::Expire(_) => {}
        }
        let Some(disk) = &mut self.hosts[index].disk else { return Ok(()) };
        if disk.order(order).map_err(|what| format!("the log of {index}: {what}"))? {
            self.sync(index);
        }
        Ok(())
    }

    fn sync(&mut self, index: usize) {
        let stall = self.dice.chance(STALLS);
        let Some(disk) = &self.hosts[index].disk else { return };
        let (session, (min, max)) = (disk.session, disk.sync_ms);
        let takes = if stall { self.dice.range(1_000, 4_000) } else { self.dice.range(min, max) };
        self.at(self.now + takes, Event::Synced { host: index, session });
    }

    pub(super) fn synced(&mut self, index: usize, session: u64) -> Held {
        let Some(disk) = self.hosts[index].disk.as_mut().filter(|disk| disk.session == session) else { return Ok(()) };
        let (reports, more) = disk.synced();
        if more {
            self.sync(index);
        }
        for report in reports {
            if let Report::Stored(spans) = &report {
                self.counts.stored += spans.len() as u64;
            }
            if matches!(report, Report::Expired { .. }) {
                self.let_go_of_some();
            }
            self.feed(index, Input::Log(report))?;
        }
        self.take_note_of_durable(index)
    }

    pub(super) fn read(&mut self, index: usize, session: u64, load: crate::replica::event::Load) -> Held {
        let Some(disk) = self.hosts[index].disk.as_ref().filter(|disk| disk.session == session) else { return Ok(()) };
        let report = disk.load(load);
        self.feed(index, Input::Log(report))
    }

    /// Whoever published what is stored by now was told so.
    pub(super) fn take_note_of_durable(&mut self, index: usize) -> Held {
        let host = &mut self.hosts[index];
        let (Some(life), Some(disk)) = (&mut host.life, &mut host.disk) else { return Ok(()) };
        let me = life.replica.me();
        while let Some(&(first, last)) = life.unconfirmed.front() {
            if !life.replica.is_stored(EntryId { run: me, seq: last }) {
                break;
            }
            life.unconfirmed.pop_front();
            disk.durable.entry(me).or_default().insert(first, last);
        }
        Ok(())
    }

    /// Who is said to hold an entry on disk has had it there.
    pub(super) fn check_claim(&mut self, index: usize) -> Held {
        let Some(life) = &self.hosts[index].life else { return Ok(()) };
        let streams = life.replica.size().0 as u64;
        let pick = self.dice.below(streams) as usize;
        let Some(audit) = life.replica.audit().nth(pick) else { return Ok(()) };
        let (run, top) = (audit.run, audit.seen.top());
        if top == Seq(0) || self.is_hostile(run.node) || self.plan.hostiles > 0 {
            return Ok(());
        }
        let seq = Seq(top.0 - self.dice.below(top.0.min(20)));
        let claimed = life.replica.stored_by(EntryId { run, seq });
        let mut nodes: Vec<_> = self
            .hosts
            .iter()
            .filter(|host| host.node != run.node)
            .filter(|host| host.disk.as_ref().is_some_and(|disk| disk.had_ever(run, seq)))
            .map(|host| host.node)
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        if claimed > nodes.len() {
            return Err(format!("{index} says {claimed} have {seq:?} of {run:?} on disk, {} have", nodes.len()));
        }
        Ok(())
    }

    /// What a host advertises as on disk survives if the power fails now.
    pub(super) fn check_advertised(&self, index: usize, run: Run, held: &RangeSet, volatile: &RangeSet) -> Held {
        let advertised = held.without(volatile);
        let host = &self.hosts[index];
        if advertised.is_empty() || host.hostile || host.disk.as_ref().is_some_and(|disk| !disk.open) {
            return Ok(());
        }
        let there = host.disk.as_ref().map(|disk| disk.synced.had(run)).unwrap_or_default();
        let lie = advertised.without(&there);
        match lie.is_empty() {
            true => Ok(()),
            false => Err(format!("{index} advertises {lie:?} of {run:?}, which a power cut would take")),
        }
    }

    /// The disk of some host fails: nothing is taken until it works again.
    pub(super) fn disk_fails(&mut self) -> Held {
        let Some(index) = self.host_with_disk() else { return Ok(()) };
        self.counts.disk_failures += 1;
        let Some(disk) = &mut self.hosts[index].disk else { return Ok(()) };
        disk.fail(&mut self.dice).map_err(|what| format!("the failing log of {index}: {what}"))?;
        let session = disk.session;
        let at = self.now + self.dice.range(1_000, 15_000);
        self.at(at, Event::Reopen { host: index, session });
        self.feed(index, Input::Log(Report::Closed))
    }

    pub(super) fn disk_works(&mut self, index: usize, session: u64) -> Held {
        let Some(disk) = self.hosts[index].disk.as_mut().filter(|disk| disk.session == session) else { return Ok(()) };
        let opened = disk.reopen();
        self.feed(index, Input::Log(Report::Opened(opened)))?;
        self.take_note_of_durable(index)
    }

    /// The log of some host is found damaged and moved aside, and what of it can be read is taken back.
    pub(super) fn quarantine(&mut self) -> Held {
        let Some(index) = self.host_with_disk() else { return Ok(()) };
        self.counts.quarantines += 1;
        let Some(disk) = &mut self.hosts[index].disk else { return Ok(()) };
        let mut rest = disk.quarantine(&mut self.dice);
        let session = disk.session;
        self.feed(index, Input::Log(Report::Closed))?;
        self.disk_works(index, session)?;
        let (readable, chunk) = (self.dice.below(1_001), self.dice.range(1, 100) as usize);
        rest.retain(|_| self.dice.chance(readable));
        let life = self.hosts[index].lives;
        let mut at = self.now;
        for found in rest.chunks(chunk) {
            at += self.dice.range(1, 2_000);
            self.at(at, Event::Found { host: index, life, found: found.to_vec() });
        }
        Ok(())
    }

    pub(super) fn found(&mut self, index: usize, life: u64, found: Vec<Kept>) -> Held {
        match self.hosts[index].lives == life {
            true => self.feed(index, Input::Log(Report::Found(found))),
            false => Ok(()),
        }
    }

    pub(super) fn snapshot(&mut self) {
        for host in &mut self.hosts {
            if let Some(disk) = &mut host.disk {
                disk.snapshot();
            }
        }
    }

    fn host_with_disk(&mut self) -> Option<usize> {
        let open: Vec<usize> = (0..self.hosts.len())
            .filter(|index| {
                let host = &self.hosts[*index];
                host.life.is_some() && host.disk.as_ref().is_some_and(|disk| disk.open)
            })
            .collect();
        open.get(self.dice.below(open.len() as u64) as usize).copied()
    }
}

/// Whether a log and its replica agree on what is there.
pub(super) fn agrees(replica: &Replica, disk: &super::disk::Disk) -> Held {
    let known: std::collections::BTreeMap<Run, _> = replica.audit().map(|audit| (audit.run, audit)).collect();
    for (run, stored, admitted, floor) in disk.synced.list() {
        let Some(audit) = known.get(&run) else {
            return Err(format!("{run:?} is on disk and not known"));
        };
        if audit.stored != stored || audit.admitted.without(&RangeSet::of(Seq(0), floor)) != *admitted {
            return Err(format!(
                "of {run:?} stored {stored:?}, admitted {admitted:?}, and known as {:?}, {:?}",
                audit.stored, audit.admitted
            ));
        }
    }
    Ok(())
}
