//! The links between hosts: dialled, walled off, cut, with a queue of bounded bytes.
//!
//! A link is one direction, from a speaker to a listener; its messages arrive in order unless the plan says otherwise.

use bytes::Bytes;

use super::check::Held;
use super::mix;
use super::world::{Event, Host, WallMode, World};
use crate::id::Run;
use crate::replica::batch::{BatchError, HEADER_BYTES};
use crate::replica::event::{Input, To};
use crate::replica::liveness::Status;
use crate::replica::message::Message;
use crate::wire::{self, WireError};

/// Frames remembered to be replayed.
const RECORDED_MAX: usize = 256;

pub(super) struct Link {
    pub number: u64,
    pub listener: Run,
    pub speaker: Run,
    /// The listener has subscribed.
    pub open: bool,
    /// Broken, whether noticed or not.
    pub cut: bool,
    pub last_arrival: u64,
    pub lossy_until: u64,
    /// Bytes on their way.
    pub queued_bytes: usize,
    /// Frames that wait for the network to come back.
    pub held: Vec<Frame>,
}

/// A message as it goes over the wire.
#[derive(Clone)]
pub(super) struct Frame {
    pub topic: String,
    pub body: Bytes,
}

impl Frame {
    pub fn of(to: To, message: &Message) -> Frame {
        let topic = match (to, message) {
            (_, Message::Batch(_)) => wire::TOPIC_CHAT.to_owned(),
            (To::All, _) => wire::TOPIC_MESH.to_owned(),
            (To::One(run), _) => wire::topic_to(run),
        };
        Frame { topic, body: wire::encode(message) }
    }
}

pub(super) struct Recorded {
    pub listener: usize,
    pub life: u64,
    pub speaker: Run,
    pub frame: Frame,
}

impl World {
    // Links.

    /// Dials again after up to `wait_ms`.
    pub fn redial(&mut self, listener: usize, speaker: usize, wait_ms: u64, anew: bool) {
        let at = self.now + self.dice.range(wait_ms, wait_ms + 400);
        let life = self.hosts[listener].lives;
        if self.hosts[listener].life.is_some() {
            self.at(at, Event::Dial { listener, speaker, life, anew });
        }
    }

    pub fn dial(&mut self, listener: usize, speaker: usize, life: u64, anew: bool) -> Held {
        let linked = self.links[listener][speaker].is_some();
        if self.hosts[listener].lives != life || (linked && !anew) {
            return Ok(());
        }
        let reached = self.wall(listener, speaker).is_none() && self.wall(speaker, listener).is_none();
        let target = &self.hosts[speaker];
        if reached && target.life.is_some() {
            let lives = (life, target.lives);
            let at = self.now + self.delay();
            self.at(at, Event::Accept { listener, speaker, lives });
        } else if reached && target.answers {
            let now = self.now;
            let times = self.hosts[listener].refused.entry(speaker).or_default();
            times.retain(|at| at + 3_000 > now);
            times.push(now);
            let sure = times.len() >= 3;
            if let Some(run) = self.hosts[listener].heard.get(&speaker).copied().filter(|_| sure) {
                self.feed(listener, Input::Refused(run))?;
            }
            self.redial(listener, speaker, 300, anew);
        } else if self.hosts[speaker].lives > 0 {
            self.redial(listener, speaker, 1_000, anew);
        }
        Ok(())
    }

    pub fn accept(&mut self, listener: usize, speaker: usize, lives: (u64, u64)) -> Held {
        let there = (self.hosts[listener].lives, self.hosts[speaker].lives) == lives;
        let walled = self.wall(listener, speaker).is_some() || self.wall(speaker, listener).is_some();
        if !there || walled {
            self.redial(listener, speaker, 500, true);
            return Ok(());
        }
        let run = |host: &Host| host.life.as_ref().map(|life| life.replica.me());
        let (Some(hearing), Some(speaking)) = (run(&self.hosts[listener]), run(&self.hosts[speaker])) else {
            return Ok(());
        };
        if let Some(old) = self.links[listener][speaker].take() {
            if old.speaker != speaking {
                self.feed(listener, Input::LinkDown(old.speaker))?;
            }
            if old.listener != hearing {
                self.feed(speaker, Input::Left(old.listener))?;
            }
        }
        self.links_ever += 1;
        let number = self.links_ever;
        self.links[listener][speaker] = Some(Link {
            number,
            listener: hearing,
            speaker: speaking,
            open: false,
            cut: false,
            last_arrival: 0,
            lossy_until: 0,
            queued_bytes: 0,
            held: Vec::new(),
        });
        let at = self.now + self.delay();
        self.at(at, Event::Open { listener, speaker, number });
        self.feed(speaker, Input::Called(hearing))
    }

    /// Breaks a link; both ends notice within `notice_ms`.
    pub fn cut(&mut self, listener: usize, speaker: usize, notice_ms: (u64, u64)) {
        let lives = (self.hosts[listener].lives, self.hosts[speaker].lives);
        let ends = [self.dice.range(notice_ms.0, notice_ms.1), self.dice.range(notice_ms.0, notice_ms.1)];
        let Some(link) = &mut self.links[listener][speaker] else { return };
        link.cut = true;
        let (number, heard, calling) = (link.number, link.speaker, link.listener);
        // What is on the way arrives before the end of the link is noticed.
        let from = link.last_arrival.max(self.now);
        let run = heard;
        self.at(from + ends[0], Event::LinkEnds { listener, speaker, number, life: lives.0, run });
        let run = calling;
        self.at(self.now + ends[1], Event::CallEnds { listener, speaker, number, life: lives.1, run });
    }

    pub fn delay(&mut self) -> u64 {
        self.dice.range(1, self.plan.delay_max_ms)
    }

    pub fn send(&mut self, speaker: usize, to: To, message: &Message) -> Held {
        let frame = Frame::of(to, message);
        let body = &frame.body;
        if matches!(message, Message::Heartbeat(_)) && body.len() > wire::HEARTBEAT_BYTES_MAX {
            return Err(format!("a heartbeat of {} bytes", body.len()));
        }
        if body.len() > wire::FRAME_BYTES_MAX {
            return Err(format!("a frame of {} bytes: {message:?}", body.len()));
        }
        // A batch is told from another by its header; everything else counts to the last byte.
        let told =
            &body[..body.len().min(if matches!(message, Message::Batch(_)) { HEADER_BYTES } else { body.len() })];
        self.trace = told.chunks(8).fold(self.trace, |trace, bytes| {
            mix(trace ^ bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
        });
        for listener in 0..self.hosts.len() {
            let open = self.links[listener][speaker].as_ref().is_some_and(|link| {
                let wanted = match to {
                    To::All => true,
                    To::One(run) => link.listener == run,
                };
                wanted && link.open && !link.cut
            });
            if open {
                self.transmit(listener, speaker, frame.clone());
            }
        }
        Ok(())
    }

    pub fn transmit(&mut self, listener: usize, speaker: usize, frame: Frame) {
        let wall = self.wall(speaker, listener);
        let (loss, twice, reorder) = match self.peace {
            true => (0, 0, 0),
            false => (self.plan.loss, self.plan.duplicate, self.plan.reorder),
        };
        let delay = self.delay();
        let (lose, twice, reorder) = (self.dice.chance(loss), self.dice.chance(twice), self.dice.chance(reorder));
        let Some(link) = &mut self.links[listener][speaker] else { return };
        match wall {
            Some(WallMode::Hold) => return link.held.push(frame),
            Some(_) => return,
            None => {}
        }
        if lose || link.lossy_until > self.now {
            self.counts.losses += 1;
            return;
        }
        // A queue holds so much, and the line takes so much in a millisecond: the rest is dropped.
        let bytes = frame.body.len();
        if link.queued_bytes > 0 && link.queued_bytes + bytes > self.plan.link_bytes_max {
            self.counts.link_drops += 1;
            return;
        }
        link.queued_bytes += bytes;
        let number = link.number;
        let mut at = link.last_arrival.max(self.now + delay) + bytes as u64 / self.plan.link_bytes_per_ms;
        if reorder {
            at = self.now + delay * 10;
            self.counts.reordered += 1;
        } else {
            link.last_arrival = at;
        }
        if twice {
            let again = at + delay * 5;
            self.counts.duplicates += 1;
            link.queued_bytes += bytes;
            self.at(again, Event::Arrive { listener, speaker, number, frame: frame.clone() });
        }
        self.at(at, Event::Arrive { listener, speaker, number, frame });
    }

    pub fn hear(&mut self, listener: usize, from: Run, frame: Frame) -> Held {
        let Some(life) = &mut self.hosts[listener].life else { return Ok(()) };
        self.counts.messages += 1;
        let message = match wire::decode(frame.topic.as_bytes(), &frame.body) {
            Ok(message) => message,
            Err(WireError::Batch(BatchError::Signature)) if self.is_hostile(from.node) => return Ok(()),
            Err(error) => return Err(format!("{listener} hears of {from:?} {error}")),
        };
        if let Message::Repair(repair) = &message {
            for (batch, _) in &repair.batches {
                let bytes = batch.bytes().len() as u64;
                life.given.repaired_bytes += bytes;
                life.given.repaired_bytes_twice += if life.replica.has(batch) { bytes } else { 0 };
            }
        }
        let goodbye = matches!(message, Message::Goodbye(_));
        let told = matches!(message, Message::Heartbeat(_) | Message::Digest(_));
        if self.plan.replays > 0 {
            let old = Recorded { listener, life: self.hosts[listener].lives, speaker: from, frame };
            let at = self.dice.below(2 * RECORDED_MAX as u64) as usize;
            if self.recorded.len() < RECORDED_MAX {
                self.recorded.push(old);
            } else if let Some(slot) = self.recorded.get_mut(at) {
                *slot = old;
            }
        }
        self.feed(listener, Input::Message { from, message })?;
        if told {
            self.check_claim(listener)?;
        }
        let Some(life) = &self.hosts[listener].life else { return Ok(()) };
        let status = life.replica.known_peer(from).map(|peer| peer.status);
        if goodbye && status != Some(Status::Down) && !self.is_hostile(from.node) {
            return Err(format!("{from:?} said goodbye to {listener} and is {status:?}"));
        }
        Ok(())
    }
}
