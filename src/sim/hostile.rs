//! A host that lies: its frames are made up by the world, beside those of a replica that keeps it in the mesh.
//!
//! It can say anything of itself and claim anything of others. Entries in another's name it makes up, too, but it cannot
//! sign them; and it repeats what others really said.

use super::check::Held;
use super::links::Frame;
use super::world::World;
use crate::id::{Epoch, NodeId, NodeKey, Room, Run, RunHash, Seq};
use crate::replica::batch::{Author, Draft};
use crate::replica::clock::Hlc;
use crate::replica::event::To;
use crate::replica::message::{BUCKETS, Digest, Heartbeat, Holding, Mark, Message, Repair, Request};
use crate::replica::ranges::RangeSet;

/// The last byte of the names of hosts and runs that are made up.
pub(super) const MARK: u8 = 0xee;

impl World {
    /// Some hostile host says something made up, to everybody or to one.
    pub(super) fn lie(&mut self) -> Held {
        let liars: Vec<usize> =
            (0..self.hosts.len()).filter(|at| self.hosts[*at].hostile && self.hosts[*at].life.is_some()).collect();
        let Some(&liar) = liars.get(self.dice.below(liars.len() as u64) as usize) else { return Ok(()) };
        let Some(me) = self.hosts[liar].life.as_ref().map(|life| life.replica.me()) else { return Ok(()) };
        let listeners: Vec<usize> = (0..self.hosts.len())
            .filter(|at| self.links[*at][liar].as_ref().is_some_and(|link| link.open && !link.cut))
            .collect();
        if listeners.is_empty() {
            return Ok(());
        }
        let one = listeners[self.dice.below(listeners.len() as u64) as usize];
        let to_all = self.dice.chance(500);
        for message in self.lies_of(liar, me) {
            // What it says twice it says differently.
            for &listener in listeners.iter().filter(|listener| to_all || **listener == one) {
                self.counts.lies += 1;
                let Some(run) = self.links[listener][liar].as_ref().map(|link| link.listener) else { continue };
                let to = if matches!(message, Message::Heartbeat(_)) { To::All } else { To::One(run) };
                self.transmit(listener, liar, Frame::of(to, &message));
            }
        }
        Ok(())
    }

    fn lies_of(&mut self, liar: usize, me: Run) -> Vec<Message> {
        let key = self.hosts[liar].key.clone();
        let time = Hlc::at(self.hosts[0].skew_ms.unsigned_abs().max(self.now_of(0).wall_ms));
        match self.dice.below(12) {
            // Its own stream with other borders and other words.
            0 | 1 => {
                let first = self.dice.range(1, 60);
                vec![Message::Batch(self.made_up(&key, me, Seq(first), time))]
            }
            // Every second seq of it missing for good.
            2 => {
                let first = self.dice.range(1_000, 100_000);
                (0..300).map(|at| Message::Batch(self.made_up_one(&key, me, Seq(first + 2 * at), time))).collect()
            }
            // Repairs that nobody asked for: of runs that never were.
            3 | 4 => {
                let origin = Run { node: me.node, epoch: Epoch(self.dice.below(30)) };
                let first = Seq(self.dice.range(1, 40));
                let batch = self.made_up(&key, origin, first, time);
                let batches = vec![(batch.clone(), self.dice.draw() >> self.dice.below(64))];
                let through = Seq(self.dice.draw() >> self.dice.below(64)).max(first);
                vec![Message::Repair(Repair { origin, first, from: first, through, batches })]
            }
            // Times that cannot be.
            5 => {
                let epoch = Epoch(self.dice.below(30));
                let time =
                    [Hlc(u64::MAX), Hlc(0), Hlc::at(time.wall_ms() + 30_000_000_000)][self.dice.below(3) as usize];
                let batch = self.made_up_one(&key, Run { node: me.node, epoch }, Seq(1), time);
                let (origin, first, through) = (batch.origin(), batch.first(), batch.last());
                let batches = vec![(batch.clone(), u64::MAX)];
                vec![
                    Message::Repair(Repair { origin, first, from: first, through, batches }),
                    Message::Heartbeat(Heartbeat { sent: Seq(1), wall_ms: self.dice.draw(), ..Heartbeat::default() }),
                ]
            }
            // A crowd of runs.
            6 => {
                let holdings = (0..40)
                    .map(|_| {
                        let mut node = [MARK; 32];
                        node[..8].copy_from_slice(&self.dice.draw().to_le_bytes());
                        let run = Run { node: NodeId(node), epoch: Epoch(self.dice.draw()) };
                        self.runs.insert(run);
                        self.claim(run, time)
                    })
                    .collect();
                vec![Message::Digest(Digest {
                    holdings,
                    all: self.dice.chance(500),
                    same: self.dice.draw(),
                    answers: 0,
                })]
            }
            // What others have and have not, of runs that there are.
            7 | 8 => {
                let runs: Vec<Run> = self.runs.iter().copied().collect();
                let picked: Vec<Run> = (0..20).map(|_| runs[self.dice.below(runs.len() as u64) as usize]).collect();
                let holdings: Vec<Holding> = picked.into_iter().map(|run| self.claim(run, time)).collect();
                let mark = |Holding { run, floor, held, volatile, .. }: &Holding| Mark {
                    run: run.hash(),
                    floor: *floor,
                    held: held.clone(),
                    volatile: volatile.clone(),
                };
                let marks = holdings.iter().map(mark).collect();
                let beat = Heartbeat { sent: Seq(self.dice.below(100)), marks, settled: 0, wall_ms: time.wall_ms() };
                vec![Message::Heartbeat(beat), Message::Digest(Digest { holdings, all: false, same: 0, answers: 0 })]
            }
            // Questions without end.
            9 => {
                let hashes = (0..2_000).map(|_| RunHash(self.dice.draw())).collect();
                let runs: Vec<Run> = self.runs.iter().copied().collect();
                let origin = runs[self.dice.below(runs.len() as u64) as usize];
                let absurd = Request { origin, first: Seq(u64::MAX), last: Seq(1), bytes_max: 0 };
                let all = Request { origin, first: Seq(0), last: Seq(u64::MAX), bytes_max: u32::MAX };
                vec![
                    Message::DigestRequest(hashes),
                    Message::Compare(Box::new([self.dice.draw(); BUCKETS])),
                    Message::Request(absurd),
                    Message::Request(all),
                ]
            }
            // What another never said, where it has not come to yet.
            10 => {
                let runs: Vec<Run> =
                    self.hosts.iter().filter_map(|host| host.life.as_ref()).map(|life| life.replica.me()).collect();
                let origin = runs[self.dice.below(runs.len() as u64) as usize];
                let first = Seq(self.dice.range(1, 60));
                let batch = self.made_up(&key, origin, first, time);
                let batches = vec![(batch.clone(), 0)];
                vec![Message::Repair(Repair { origin, first, from: first, through: batch.last(), batches })]
            }
            // What another really said, as an answer that nobody asked for.
            _ => {
                let Some(life) = &self.hosts[0].life else { return Vec::new() };
                let held = life.replica.window_size().1 as u64;
                let pick = self.dice.below(held) as usize;
                let Some(batch) = life.replica.window().nth(pick).cloned() else { return Vec::new() };
                let (origin, first, through) = (batch.origin(), batch.first(), batch.last());
                let batches = vec![(batch.clone(), 0)];
                vec![Message::Repair(Repair { origin, first, from: first, through, batches })]
            }
        }
    }

    fn made_up(&mut self, key: &NodeKey, origin: Run, first: Seq, hlc: Hlc) -> crate::replica::batch::Batch {
        let count = self.dice.range(1, 6);
        let drafts: Vec<Draft> =
            (0..count).map(|_| Draft::new(Room::lobby(), format!("{:x}", self.dice.draw()))).collect();
        self.runs.insert(origin);
        Author { key, origin, name: "liar", first, hlc, previous: [0; 32] }.encode(&drafts)
    }

    fn made_up_one(&mut self, key: &NodeKey, origin: Run, first: Seq, hlc: Hlc) -> crate::replica::batch::Batch {
        self.runs.insert(origin);
        let drafts = [Draft::new(Room::lobby(), "x")];
        Author { key, origin, name: "liar", first, hlc, previous: [0; 32] }.encode(&drafts)
    }

    fn claim(&mut self, run: Run, time: Hlc) -> Holding {
        let top = self.dice.draw() >> self.dice.below(64);
        let held: RangeSet = (0..self.dice.below(40))
            .map(|_| {
                let first = self.dice.draw() >> self.dice.below(64);
                (Seq(first), Seq(first.saturating_add(self.dice.below(1_000))))
            })
            .chain([(Seq(1), Seq(top))])
            .collect();
        let floor = Seq([0, self.dice.below(50), u64::MAX][self.dice.below(3) as usize]);
        let volatile = if self.dice.chance(500) { held.clone() } else { RangeSet::new() };
        let newest = [time, Hlc(u64::MAX), Hlc(0)][self.dice.below(3) as usize];
        Holding { run, floor, held, volatile, newest, over: self.dice.chance(500) }
    }
}
