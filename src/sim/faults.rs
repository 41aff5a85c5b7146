//! What people say in the mesh and what befalls it: bursts, crashes, walls, losses, frames from the past.

use super::Plan;
use super::check::{self, Held};
use super::links::{Frame, Recorded};
use super::world::{Event, Wall, WallMode, World};
use crate::id::{Key, Room, Run};
use crate::replica::batch::Draft;
use crate::replica::event::Input;
use crate::replica::message::{Message, Repair};
use crate::wire;

/// Drafts with keys that may be tried again.
const KEYED_MAX: usize = 16;

impl World {
    /// Puts everything that the plan has in store into the queue.
    pub(super) fn script(&mut self) {
        let Plan { nodes, joiners, clones, hostiles, busy_ms, .. } = self.plan;
        let start = (0..nodes).chain(nodes + joiners + clones..nodes + joiners + clones + hostiles);
        for host in start {
            let at = self.dice.below(1_000);
            self.at(at, Event::Start { host });
        }
        for host in nodes..nodes + joiners {
            let at = self.dice.range(busy_ms / 2, busy_ms);
            self.at(at, Event::Start { host });
            self.counts.joins += 1;
        }
        let plan = &self.plan;
        let faults: [(u64, fn() -> Event); 14] = [
            (plan.bursts, || Event::Burst),
            (plan.lossy_spells, || Event::Lossy),
            (plan.partitions, || Event::WallUp),
            (plan.crashes, || Event::Crash),
            (plan.power_cuts, || Event::PowerCut),
            (plan.snapshots, || Event::Snapshot),
            (plan.clones as u64, || Event::Clone),
            (plan.disk_failures, || Event::DiskFails),
            (plan.quarantines, || Event::Quarantine),
            (plan.jumps, || Event::Jump),
            (plan.replays, || Event::Replay),
            (plan.floods, || Event::Flood),
            (plan.lies, || Event::Lie),
            (u64::from(plan.clocks.contains(&None)), || Event::ClockSet),
        ];
        for (times, event) in faults {
            for _ in 0..times {
                let at = self.dice.range(500, busy_ms);
                self.at(at, event());
            }
        }
    }

    pub(super) fn crash(&mut self) -> Held {
        let living: Vec<usize> = self.alive().map(|(index, ..)| index).collect();
        if living.len() < 3 {
            return Ok(());
        }
        let host = living[self.dice.below(living.len() as u64) as usize];
        self.hosts[host].returns = self.dice.chance(700);
        match self.dice.below(8) {
            0 | 1 => {
                self.counts.goodbyes += 1;
                self.feed(host, Input::Stop)?;
                self.fall(host, false)
            }
            2 | 3 => self.fall(host, true),
            4 => self.fall(host, false),
            // At whatever step it is then.
            _ => {
                self.hosts[host].fuse = Some(self.dice.range(1, 40));
                Ok(())
            }
        }
    }

    /// A host dies. A killed process leaves a machine that closes its connections and refuses dials; a dead machine, which
    /// is `quiet`, does neither.
    pub(super) fn fall(&mut self, host: usize, quiet: bool) -> Held {
        if self.hosts[host].life.is_none() {
            return Ok(());
        }
        self.counts.crashes += 1;
        self.bury(host);
        self.hosts[host].fuse = None;
        if let Some(disk) = &mut self.hosts[host].disk {
            self.counts.lost_orders +=
                disk.crash(&mut self.dice).map_err(|what| format!("the log of {host}: {what}"))?;
            if self.dice.chance(self.plan.restores) {
                self.counts.restores += 1;
                disk.go_back(&mut self.dice, false);
            } else if self.dice.chance(self.plan.lost_disks) {
                self.counts.lost_disks += 1;
                disk.go_back(&mut self.dice, true);
            }
        }
        self.hosts[host].answers = !quiet;
        for other in 0..self.hosts.len() {
            for (listener, speaker) in [(host, other), (other, host)] {
                self.cut(listener, speaker, if quiet { (10_000, 20_000) } else { (1, 100) });
            }
        }
        if std::mem::take(&mut self.hosts[host].returns) {
            let at = self.now + self.dice.range(10, 20_000);
            self.at(at, Event::Start { host });
            self.counts.restarts += 1;
        }
        Ok(())
    }

    /// All hosts die at once, in the middle of what they do, and come back.
    pub(super) fn power_cut(&mut self) -> Held {
        self.counts.power_cuts += 1;
        for host in 0..self.hosts.len() {
            self.hosts[host].returns = self.hosts[host].life.is_some();
            self.fall(host, true)?;
        }
        Ok(())
    }

    /// A second host starts with a copy of another's disk.
    pub(super) fn clone_host(&mut self) -> Held {
        let Plan { nodes, joiners, clones, .. } = self.plan;
        let Some(free) = (nodes + joiners..nodes + joiners + clones).find(|host| self.hosts[*host].lives == 0) else {
            return Ok(());
        };
        let from = self.dice.below(nodes as u64) as usize;
        let Some(copy) = self.hosts[from].disk.as_ref().map(|disk| disk.copy()) else { return Ok(()) };
        self.counts.clones += 1;
        let (node, key) = (self.hosts[from].node, self.hosts[from].key.clone());
        let clone = &mut self.hosts[free];
        (clone.disk, clone.node, clone.key) = (Some(copy), node, key);
        self.start(free)
    }

    /// The machines that showed 1970 are told the time.
    pub(super) fn clocks_are_set(&mut self) {
        for host in 0..self.plan.clocks.len() {
            if self.plan.clocks[host].is_none() {
                self.hosts[host].skew_ms = 0;
            }
        }
    }

    /// One host says far more than the others.
    pub(super) fn flood(&mut self) -> Held {
        self.counts.floods += 1;
        let drafts = (0..self.plan.flood_max).map(|_| self.draft()).collect();
        self.publish(0, drafts)
    }

    pub(super) fn burst(&mut self) -> Held {
        let living: Vec<usize> = self.alive().map(|(index, ..)| index).collect();
        if living.is_empty() {
            return Ok(());
        }
        let index = living[self.dice.below(living.len() as u64) as usize];
        let mut drafts = Vec::new();
        for _ in 0..self.dice.range(1, self.plan.burst_max) {
            drafts.push(self.draft());
        }
        self.publish(index, drafts)
    }

    fn publish(&mut self, index: usize, drafts: Vec<Draft>) -> Held {
        let now = self.now_of(index);
        let Some(life) = &mut self.hosts[index].life else { return Ok(()) };
        let published = life.replica.publish(now, drafts.clone());
        let known: Vec<usize> = published.known.iter().map(|(at, _)| *at).collect();
        let fresh: Vec<Draft> =
            drafts.into_iter().enumerate().filter(|(at, _)| !known.contains(at)).map(|(_, draft)| draft).collect();
        if published.count != fresh.len() as u64 {
            return Err(format!("{index} published {} of {} drafts", published.count, fresh.len()));
        }
        self.counts.published += published.count;
        self.keyed.extend(fresh.iter().filter(|draft| draft.key.is_some()).take(3).cloned());
        self.keyed.drain(..self.keyed.len().saturating_sub(KEYED_MAX));
        life.drafts.extend(fresh);
        self.perform(index)?;
        match self.hosts[index].life.as_ref().is_none_or(|life| life.drafts.is_empty()) {
            true => self.take_note_of_durable(index),
            false => Err(format!("{index} kept drafts to itself")),
        }
    }

    /// Something to say, or to say again: of late, there or elsewhere.
    fn draft(&mut self) -> Draft {
        let retry = self.dice.chance(30);
        let pick = self.dice.below(self.keyed.len() as u64) as usize;
        if let Some(draft) = self.keyed.get(pick).filter(|_| retry) {
            return draft.clone();
        }
        let len = match self.dice.below(100) {
            0 => self.dice.range(10_000, 100_000),
            1..10 => self.dice.range(500, 3_000),
            _ => self.dice.range(0, 100),
        };
        let text = format!("{:x}", self.dice.draw()).repeat(1 + len as usize / 16);
        let mut draft = Draft::new(Room::lobby(), text);
        draft.key = self.dice.chance(50).then(|| Key([self.dice.draw() as u8; 16]));
        if let Some(Key(bytes)) = &mut draft.key {
            bytes[8..].copy_from_slice(&self.dice.draw().to_le_bytes());
        }
        draft
    }

    /// A run of messages is lost on one link.
    pub(super) fn lossy(&mut self) {
        let hosts = self.hosts.len() as u64;
        let (listener, speaker) = (self.dice.below(hosts) as usize, self.dice.below(hosts) as usize);
        let until = self.now + self.dice.range(100, 4_000);
        if let Some(link) = &mut self.links[listener][speaker] {
            link.lossy_until = until;
        }
    }

    /// A frame that was heard before is heard again: by the same life, over the link to whoever said it, or, if it
    /// carried entries, as a repair from somebody else.
    pub(super) fn replay(&mut self) -> Held {
        if self.recorded.is_empty() {
            return Ok(());
        }
        let at = self.dice.below(self.recorded.len() as u64) as usize;
        let Recorded { listener, life, speaker, ref frame } = self.recorded[at];
        let mut frame = frame.clone();
        if self.hosts[listener].lives != life {
            return Ok(());
        }
        let mut from = speaker;
        let mut entries = false;
        if let Ok(Message::Batch(batch)) = wire::decode(frame.topic.as_bytes(), &frame.body) {
            entries = true;
            let others: Vec<Run> = self.links[listener].iter().flatten().map(|link| link.speaker).collect();
            if self.dice.chance(500) && !others.is_empty() {
                from = others[self.dice.below(others.len() as u64) as usize];
                let (origin, first, through) = (batch.origin(), batch.first(), batch.last());
                let batches = vec![(batch.clone(), 0)];
                let repair = Repair { origin, first, from: first, through, batches };
                frame = Frame { topic: wire::topic_to(origin), body: wire::encode(&Message::Repair(repair)) };
            }
        }
        let linked = self.links[listener].iter().flatten().any(|link| link.speaker == from && link.open);
        if !linked {
            return Ok(());
        }
        self.counts.replays += 1;
        let picture = |world: &World| {
            world.hosts[listener].life.as_ref().map(|life| (check::fingerprint(&life.replica), life.given.count()))
        };
        let before = picture(self);
        self.hear(listener, from, frame)?;
        if entries && picture(self) != before {
            return Err(format!("{listener} took an old frame of {from:?} for new"));
        }
        Ok(())
    }

    pub(super) fn wall_up(&mut self) {
        let all = (1u64 << self.hosts.len()) - 1;
        let group = self.dice.draw() & all;
        let one_way = self.dice.chance(300);
        let mode = [WallMode::Drop, WallMode::Hold, WallMode::Cut][self.dice.below(3) as usize];
        let until =
            self.now + [self.dice.range(500, 5_000), self.dice.range(5_000, 60_000)][self.dice.below(2) as usize];
        self.counts.partitions += 1;
        self.counts.one_way += u64::from(one_way);
        self.walls.push(Wall { from: group, to: all & !group, until, mode });
        if !one_way {
            self.walls.push(Wall { from: all & !group, to: group, until, mode });
        }
        if mode == WallMode::Cut {
            let hosts = self.hosts.len();
            for (listener, speaker) in (0..hosts).flat_map(|a| (0..hosts).map(move |b| (a, b))) {
                if self.wall(listener, speaker).is_some() || self.wall(speaker, listener).is_some() {
                    self.cut(listener, speaker, (100, 15_000));
                }
            }
        }
        self.at(until, Event::WallsDown);
    }

    pub(super) fn walls_down(&mut self) {
        let now = self.now;
        self.walls.retain(|wall| wall.until > now);
        for listener in 0..self.hosts.len() {
            for speaker in 0..self.hosts.len() {
                if self.wall(speaker, listener).is_some() {
                    continue;
                }
                let Some(link) = &mut self.links[listener][speaker] else { continue };
                for frame in std::mem::take(&mut link.held) {
                    self.transmit(listener, speaker, frame);
                }
            }
        }
    }

    pub(super) fn wall(&self, from: usize, to: usize) -> Option<WallMode> {
        let hit = |wall: &&Wall| wall.from >> from & 1 == 1 && wall.to >> to & 1 == 1;
        self.walls.iter().find(hit).map(|wall| wall.mode)
    }
}
