//! What people say in the mesh and what befalls it: bursts, crashes, walls, losses, frames from the past.

use super::Plan;
use super::check::{self, Held};
use super::world::{Event, Frame, Recorded, Wall, WallMode, World};
use crate::id::{Key, Room, Run};
use crate::replica::batch::Draft;
use crate::replica::event::Input;
use crate::replica::message::{Message, Repair};
use crate::wire;

impl World {
    /// Puts everything that the plan has in store into the queue.
    pub(super) fn script(&mut self) {
        let Plan { nodes, joiners, busy_ms, bursts, lossy_spells, partitions, crashes, jumps, replays, .. } = self.plan;
        for host in 0..nodes {
            let at = self.dice.below(1_000);
            self.at(at, Event::Start { host });
        }
        for host in nodes..nodes + joiners {
            let at = self.dice.range(busy_ms / 2, busy_ms);
            self.at(at, Event::Start { host });
            self.counts.joins += 1;
        }
        let faults: [(u64, fn() -> Event); 6] = [
            (bursts, || Event::Burst),
            (lossy_spells, || Event::Lossy),
            (partitions, || Event::WallUp),
            (crashes, || Event::Crash),
            (jumps, || Event::Jump),
            (replays, || Event::Replay),
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
        let how = self.dice.below(4);
        if how == 0 {
            self.counts.goodbyes += 1;
            self.feed(host, Input::Stop)?;
        } else {
            self.counts.crashes += 1;
        }
        self.bury(host);
        // A killed process leaves a machine that closes its connections and refuses dials; a dead machine does neither.
        let quiet = how == 3;
        self.hosts[host].answers = !quiet;
        for other in 0..self.hosts.len() {
            for (listener, speaker) in [(host, other), (other, host)] {
                self.cut(listener, speaker, if quiet { (10_000, 20_000) } else { (1, 100) });
            }
        }
        if self.dice.chance(700) {
            let at = self.now + self.dice.range(10, 20_000);
            self.at(at, Event::Start { host });
            self.counts.restarts += 1;
        }
        Ok(())
    }

    pub(super) fn burst(&mut self) -> Held {
        let living: Vec<usize> = self.alive().map(|(index, ..)| index).collect();
        if living.is_empty() {
            return Ok(());
        }
        let index = living[self.dice.below(living.len() as u64) as usize];
        let mut drafts = Vec::new();
        for _ in 0..self.dice.range(1, self.plan.burst_max) {
            drafts.push(self.draft(index));
        }
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
        life.keyed.extend(fresh.iter().filter(|draft| draft.key.is_some()).take(3).cloned());
        life.drafts.extend(fresh);
        self.perform(index)?;
        match self.hosts[index].life.as_ref().is_some_and(|life| life.drafts.is_empty()) {
            true => Ok(()),
            false => Err(format!("{index} kept drafts to itself")),
        }
    }

    fn draft(&mut self, index: usize) -> Draft {
        let retry = self.dice.chance(30);
        let keyed = self.hosts[index].life.as_ref().map(|life| &life.keyed[..]).unwrap_or_default();
        if let Some(draft) = keyed.get(self.dice.below(keyed.len() as u64) as usize).filter(|_| retry) {
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
                let batches = vec![(batch.bytes().clone(), 0)];
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
