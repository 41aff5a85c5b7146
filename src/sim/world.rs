//! The world around the replicas: hosts, links between them, clocks, and everything that goes wrong.
//!
//! It plays what the shell of a node does, roughly: it dials until there is a link, dials beside a link that fell silent,
//! and tells the replica of refusals. A link is one direction, from a speaker to a listener; its messages arrive in order
//! unless the plan says otherwise.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use bytes::Bytes;

use super::check::{self, Book, Given, Held};
use super::{Class, Counts, Dice, Plan, mix};
use crate::id::{Epoch, NodeId, Run};
#[cfg(feature = "mutants")]
use crate::replica::Mutant;
use crate::replica::Replica;
use crate::replica::batch::{Batch, Draft, HEADER_BYTES};
use crate::replica::clock::{Mono, Now};
use crate::replica::event::{Input, Notice, Output, Timing, To};
use crate::replica::liveness::Status;
use crate::replica::message::Message;
use crate::wire;

/// The wall clock at the beginning: 2026-01-01.
const EPOCH_MS: u64 = 1_767_225_600_000;
/// How long the mesh may take to converge once there is peace: a silent run counts as over after five minutes.
const PEACE_MS_MAX: u64 = 420_000;
/// How long digests may still settle after that, and how long there has to be silence then.
const SETTLE_MS: u64 = 45_000;
const SILENCE_MS: u64 = 30_000;
/// Frames remembered to be replayed.
pub(super) const RECORDED_MAX: usize = 256;

pub(super) struct World {
    pub plan: Plan,
    pub now: u64,
    pub counts: Counts,
    pub trace: u64,
    pub dice: Dice,
    queue: BTreeMap<(u64, u64), Event>,
    queued: u64,
    pub hosts: Vec<Host>,
    /// By listener, then speaker.
    pub links: Vec<Vec<Option<Link>>>,
    links_ever: u64,
    pub walls: Vec<Wall>,
    book: Book,
    runs_ever: usize,
    pub recorded: Vec<Recorded>,
    /// Faults have ended; from `silent_from` on nothing is asked for.
    peace: bool,
    silent_from: Option<u64>,
    #[cfg(feature = "mutants")]
    mutant: Option<Mutant>,
}

pub(super) struct Host {
    pub node: NodeId,
    /// Its wall clock, apart from ours.
    pub skew_ms: i64,
    pub life: Option<Life>,
    pub lives: u64,
    /// Whether the machine is there to refuse a dial when no node runs on it.
    pub answers: bool,
    /// When dials to other hosts were refused, by host, of late.
    pub refused: BTreeMap<usize, Vec<u64>>,
    /// Who was last heard on each other host.
    pub heard: BTreeMap<usize, Run>,
}

pub(super) struct Life {
    pub replica: Replica,
    pub given: Given,
    /// The machine's monotonic clock at our time 0.
    pub mono: u64,
    pub drafts: VecDeque<Draft>,
    /// Drafts with keys, to be tried again.
    pub keyed: Vec<Draft>,
}

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
    /// Frames that wait for the network to come back.
    pub held: Vec<Frame>,
}

/// A message as it goes over the wire.
#[derive(Clone)]
pub(super) struct Frame {
    pub topic: String,
    pub body: Bytes,
}

pub(super) struct Recorded {
    pub listener: usize,
    pub life: u64,
    pub speaker: Run,
    pub frame: Frame,
}

/// A one-way barrier between groups of hosts, as bit masks.
#[derive(Clone)]
pub(super) struct Wall {
    pub from: u64,
    pub to: u64,
    pub until: u64,
    pub mode: WallMode,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WallMode {
    /// What is sent is lost, and links survive.
    Drop,
    /// What is sent arrives when the wall falls, as over TCP.
    Hold,
    /// Links break.
    Cut,
}

pub(super) enum Event {
    /// A host tries to hear another; `anew` beside a link that there is.
    Dial {
        listener: usize,
        speaker: usize,
        life: u64,
        anew: bool,
    },
    /// A dial gets through to the speaker.
    Accept {
        listener: usize,
        speaker: usize,
        lives: (u64, u64),
    },
    /// The listener has subscribed.
    Open {
        listener: usize,
        speaker: usize,
        number: u64,
    },
    Arrive {
        listener: usize,
        speaker: usize,
        number: u64,
        frame: Frame,
    },
    /// The listener notices that its link broke.
    LinkEnds {
        listener: usize,
        speaker: usize,
        number: u64,
        life: u64,
        run: Run,
    },
    /// The speaker notices.
    CallEnds {
        listener: usize,
        speaker: usize,
        number: u64,
        life: u64,
        run: Run,
    },
    Burst,
    Start {
        host: usize,
    },
    Crash,
    Lossy,
    Jump,
    Replay,
    WallUp,
    WallsDown,
}

impl World {
    pub fn new(seed: u64, plan: Plan) -> World {
        let hosts = plan.nodes + plan.joiners;
        let mut world = World {
            now: 0,
            counts: Counts::default(),
            trace: seed,
            dice: Dice(seed),
            queue: BTreeMap::new(),
            queued: 0,
            hosts: Vec::new(),
            links: (0..hosts).map(|_| (0..hosts).map(|_| None).collect()).collect(),
            links_ever: 0,
            walls: Vec::new(),
            book: Book::default(),
            runs_ever: 0,
            recorded: Vec::new(),
            peace: false,
            silent_from: None,
            #[cfg(feature = "mutants")]
            mutant: None,
            plan,
        };
        for index in 0..hosts {
            let mut node = [index as u8; 32];
            node[..8].copy_from_slice(&world.dice.draw().to_le_bytes());
            let skew = world.plan.skew_max_ms;
            world.hosts.push(Host {
                node: NodeId(node),
                skew_ms: world.dice.below(2 * skew + 1) as i64 - skew as i64,
                life: None,
                lives: 0,
                answers: false,
                refused: BTreeMap::new(),
                heard: BTreeMap::new(),
            });
        }
        world.script();
        world
    }

    #[cfg(feature = "mutants")]
    pub fn plant(&mut self, mutant: Mutant) {
        self.mutant = Some(mutant);
    }

    pub fn at(&mut self, at: u64, event: Event) {
        self.queued += 1;
        self.queue.insert((at.max(self.now), self.queued), event);
    }

    /// Plays the busy phase, then peace until everybody has everything, then silence.
    pub fn play(&mut self) -> Held {
        self.play_until(self.plan.busy_ms)?;
        // Walls still have to fall, and whoever is to come back has to be there.
        let walls = self.walls.iter().map(|wall| wall.until);
        let starts =
            self.queue.iter().filter(|(_, event)| matches!(event, Event::Start { .. })).map(|((at, _), _)| *at);
        let end = walls.chain(starts).max().unwrap_or(0);
        self.play_until(end)?;
        self.peace = true;
        let peace = self.now;
        loop {
            self.play_until(self.now + 1_000)?;
            match self.converged() {
                Ok(()) => break,
                Err(what) if self.now >= peace + PEACE_MS_MAX => return Err(format!("no end: {what}")),
                Err(_) => {}
            }
        }
        self.play_until(self.now + SETTLE_MS)?;
        self.silent_from = Some(self.now);
        self.play_until(self.now + SILENCE_MS)?;
        self.converged()?;
        for host in &mut self.hosts {
            if let Some(life) = host.life.take() {
                self.counts.evictions += life.replica.audit().filter(|audit| audit.floor.0 > 0).count() as u64;
                host.life = Some(life);
            }
        }
        self.at_the_end()?;
        for host in 0..self.hosts.len() {
            self.bury(host);
        }
        Ok(())
    }

    pub fn alive(&self) -> impl Iterator<Item = (usize, &Replica, &Given)> {
        self.hosts
            .iter()
            .enumerate()
            .filter_map(|(index, host)| host.life.as_ref().map(|life| (index, &life.replica, &life.given)))
    }

    fn play_until(&mut self, end: u64) -> Held {
        loop {
            let event = self.queue.first_key_value().map(|((at, _), _)| *at);
            let timer = self
                .hosts
                .iter()
                .enumerate()
                .filter_map(|(index, host)| {
                    let life = host.life.as_ref()?;
                    Some((life.replica.poll_timeout()?.0.saturating_sub(life.mono), index))
                })
                .min();
            match (event, timer) {
                (Some(at), timer) if at <= end && timer.is_none_or(|(due, _)| at <= due) => {
                    self.now = self.now.max(at);
                    if let Some((_, event)) = self.queue.pop_first() {
                        self.happen(event)?;
                    }
                }
                (_, Some((due, host))) if due <= end => {
                    self.now = self.now.max(due);
                    let now = self.now;
                    if let Some(life) = &mut self.hosts[host].life {
                        life.given.timeout(now)?;
                    }
                    self.feed(host, Input::Timeout)?;
                }
                _ => break,
            }
        }
        self.now = self.now.max(end);
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Held {
        match event {
            Event::Dial { listener, speaker, life, anew } => self.dial(listener, speaker, life, anew)?,
            Event::Accept { listener, speaker, lives } => self.accept(listener, speaker, lives)?,
            Event::Open { listener, speaker, number } => {
                let Some(link) = self.link(listener, speaker, number).filter(|link| !link.cut) else { return Ok(()) };
                link.open = true;
                let run = link.speaker;
                self.hosts[listener].heard.insert(speaker, run);
                let address = SocketAddr::from(([10, 0, 0, speaker as u8 + 1], 47474));
                self.feed(listener, Input::LinkUp { run, address })?;
            }
            Event::Arrive { listener, speaker, number, frame } => {
                let Some(link) = self.link(listener, speaker, number) else { return Ok(()) };
                let from = link.speaker;
                self.hear(listener, from, frame)?;
            }
            Event::LinkEnds { listener, speaker, number, life, run } => {
                if self.link(listener, speaker, number).is_some() {
                    self.links[listener][speaker] = None;
                    if self.hosts[listener].lives == life {
                        self.feed(listener, Input::LinkDown(run))?;
                    }
                }
                self.redial(listener, speaker, 100, false);
            }
            Event::CallEnds { listener, speaker, number, life, run } => {
                let newer = self.links[listener][speaker]
                    .as_ref()
                    .is_some_and(|link| link.number != number && link.listener == run);
                if !newer && self.hosts[speaker].lives == life {
                    self.feed(speaker, Input::Left(run))?;
                }
            }
            Event::Burst => self.burst()?,
            Event::Start { host } => self.start(host)?,
            Event::Crash => self.crash()?,
            Event::Lossy => self.lossy(),
            Event::Jump => {
                let host = self.dice.below(self.hosts.len() as u64) as usize;
                self.hosts[host].skew_ms += self.dice.below(600_000) as i64 - 300_000;
                self.counts.jumps += 1;
            }
            Event::Replay => self.replay()?,
            Event::WallUp => self.wall_up(),
            Event::WallsDown => self.walls_down(),
        }
        Ok(())
    }

    fn link(&mut self, listener: usize, speaker: usize, number: u64) -> Option<&mut Link> {
        self.links[listener][speaker].as_mut().filter(|link| link.number == number)
    }

    // Nodes.

    fn start(&mut self, index: usize) -> Held {
        let epoch = Epoch(self.dice.draw());
        let (mono, seed) = (self.dice.below(1_000_000), self.dice.draw());
        let host = &mut self.hosts[index];
        let run = Run { node: host.node, epoch };
        let now = Now { mono: Mono(self.now + mono), wall_ms: wall(self.now, host.skew_ms) };
        #[cfg_attr(not(feature = "mutants"), allow(unused_mut))]
        let mut replica = Replica::new(now, run, format!("node {index}").into(), seed, self.plan.window_bytes, None);
        #[cfg(feature = "mutants")]
        if let Some(mutant) = self.mutant {
            replica.plant(mutant);
        }
        host.lives += 1;
        host.answers = true;
        host.life = Some(Life { replica, given: Given::default(), mono, drafts: VecDeque::new(), keyed: Vec::new() });
        self.runs_ever += 1;
        let endpoints = vec![SocketAddr::from(([10, 0, 0, index as u8 + 1], 47474))];
        self.feed(index, Input::Endpoints(endpoints))?;
        for other in 0..self.hosts.len() {
            if other != index {
                self.redial(index, other, 1, false);
                // Whoever is there learns of the newcomer by mDNS.
                self.redial(other, index, 1, false);
            }
        }
        Ok(())
    }

    /// Ends a life and adds up what it counted.
    pub fn bury(&mut self, host: usize) {
        if let Some(life) = self.hosts[host].life.take() {
            self.hosts[host].lives += 1;
            self.counts.requests += life.replica.counters().requests;
            self.counts.delivered += life.given.count();
            self.counts.repaired_bytes += life.given.repaired_bytes;
            self.counts.repaired_bytes_twice += life.given.repaired_bytes_twice;
        }
    }

    /// Hands an input to the replica of a host, if it lives, and does what it wants done.
    pub fn feed(&mut self, index: usize, input: Input) -> Held {
        let now = self.now_of(index);
        let Some(life) = &mut self.hosts[index].life else { return Ok(()) };
        life.replica.handle(now, input);
        if life.replica.poll_timeout().is_none_or(|due| due <= now.mono) {
            return Err(format!("{index} is due again at once"));
        }
        self.perform(index)
    }

    pub fn now_of(&self, index: usize) -> Now {
        let host = &self.hosts[index];
        let mono = host.life.as_ref().map_or(0, |life| life.mono);
        Now { mono: Mono(self.now + mono), wall_ms: wall(self.now, host.skew_ms) }
    }

    pub fn perform(&mut self, index: usize) -> Held {
        let at = self.now_of(index).mono;
        let Some(life) = &self.hosts[index].life else { return Ok(()) };
        check::after_step(&life.replica, at, self.plan.window_bytes, self.runs_ever)?;
        while let Some(life) = &mut self.hosts[index].life {
            let Some(output) = life.replica.poll_output() else { break };
            let me = life.replica.me();
            self.trace = mix(self.trace ^ self.now ^ (index as u64) << 48);
            match output {
                Output::Deliver { batch, how } => {
                    if !self.book.knows(&batch) {
                        return Err(format!("{index} delivers {batch:?}, which was never said like that"));
                    }
                    life.given.deliver(&batch, how).map_err(|what| format!("{index}: {what}"))?;
                    self.counts.late += u64::from(how == Timing::Late) * u64::from(batch.count());
                    self.trace = mix(self.trace ^ batch.first().0 ^ how as u64);
                }
                Output::Send { to, message } => {
                    if let (To::All, Message::Batch(batch)) = (to, &message) {
                        self.book.write(me, batch, &mut life.drafts)?;
                    }
                    self.check_word(index, to, &message)?;
                    self.send(index, to, &message)?;
                }
                Output::Notify(notice) => self.notice(index, notice)?,
                Output::Log(_) => {}
            }
        }
        Ok(())
    }

    /// What must not be said.
    fn check_word(&self, index: usize, to: To, message: &Message) -> Held {
        let Some(life) = &self.hosts[index].life else { return Ok(()) };
        if let (To::One(to), Message::Request(_)) = (to, message) {
            let status = life.replica.known_peer(to).map(|peer| peer.status);
            if status != Some(Status::Up) {
                return Err(format!("{index} asks {to:?}, which is {status:?}"));
            }
        }
        let asks = matches!(
            message,
            Message::Request(_) | Message::Repair(_) | Message::Digest { .. } | Message::DigestRequest(_)
        );
        if asks && self.silent_from.is_some_and(|from| self.now > from) {
            return Err(format!("{index} says {message:?} to {to:?} though all is quiet"));
        }
        Ok(())
    }

    fn notice(&mut self, index: usize, notice: Notice) -> Held {
        let life_number = self.hosts[index].lives;
        let Some(life) = &mut self.hosts[index].life else { return Ok(()) };
        life.given.notice(&notice, &mut self.counts);
        match notice {
            Notice::Peer(run) => {
                let status = life.replica.known_peer(run).map(|peer| peer.status);
                self.trace = mix(self.trace ^ status.map_or(9, |status| status as u64));
                let Some(other) = self.hosts.iter().position(|host| host.node == run.node) else { return Ok(()) };
                if self.plan.class == Class::Calm && matches!(status, Some(Status::Suspect | Status::Down)) {
                    return Err(format!("{other} is {status:?} for {index} in calm weather"));
                }
                if matches!(status, Some(Status::Suspect | Status::Down)) {
                    let event = Event::Dial { listener: index, speaker: other, life: life_number, anew: true };
                    self.at(self.now + 1, event);
                }
            }
            Notice::OwnRunElsewhere(id) => return Err(format!("{index} hears of {id:?} of its own run")),
            Notice::Gap { .. } | Notice::Named { .. } => {}
        }
        Ok(())
    }

    // Links.

    /// Dials again after up to `wait_ms`.
    fn redial(&mut self, listener: usize, speaker: usize, wait_ms: u64, anew: bool) {
        let at = self.now + self.dice.range(wait_ms, wait_ms + 400);
        let life = self.hosts[listener].lives;
        if self.hosts[listener].life.is_some() {
            self.at(at, Event::Dial { listener, speaker, life, anew });
        }
    }

    fn dial(&mut self, listener: usize, speaker: usize, life: u64, anew: bool) -> Held {
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

    fn accept(&mut self, listener: usize, speaker: usize, lives: (u64, u64)) -> Held {
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

    fn delay(&mut self) -> u64 {
        self.dice.range(1, self.plan.delay_max_ms)
    }

    fn send(&mut self, speaker: usize, to: To, message: &Message) -> Held {
        let topic = match (to, message) {
            (_, Message::Batch(_)) => wire::TOPIC_CHAT.to_owned(),
            (To::All, _) => wire::TOPIC_MESH.to_owned(),
            (To::One(run), _) => wire::topic_to(run),
        };
        let body = wire::encode(message);
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
        let frame = Frame { topic, body };
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
        let number = link.number;
        let mut at = link.last_arrival.max(self.now + delay);
        if reorder {
            at = self.now + delay * 10;
            self.counts.reordered += 1;
        } else {
            link.last_arrival = at;
        }
        if twice {
            let again = at + delay * 5;
            self.counts.duplicates += 1;
            self.at(again, Event::Arrive { listener, speaker, number, frame: frame.clone() });
        }
        self.at(at, Event::Arrive { listener, speaker, number, frame });
    }

    pub fn hear(&mut self, listener: usize, from: Run, frame: Frame) -> Held {
        let Some(life) = &mut self.hosts[listener].life else { return Ok(()) };
        self.counts.messages += 1;
        let message = wire::decode(frame.topic.as_bytes(), &frame.body).map_err(|error| error.to_string())?;
        if let Message::Repair(repair) = &message {
            for batch in repair.batches.iter().filter_map(|(batch, _)| Batch::parse(batch.clone()).ok()) {
                let seen =
                    life.replica.audit().any(|audit| audit.run == batch.origin() && audit.seen.contains(batch.first()));
                life.given.repaired_bytes += batch.bytes().len() as u64;
                life.given.repaired_bytes_twice += if seen { batch.bytes().len() as u64 } else { 0 };
            }
        }
        let goodbye = matches!(message, Message::Goodbye(_));
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
        let status =
            self.hosts[listener].life.as_ref().and_then(|life| life.replica.known_peer(from)).map(|peer| peer.status);
        if goodbye && status != Some(Status::Down) {
            return Err(format!("{from:?} said goodbye to {listener} and is {status:?}"));
        }
        Ok(())
    }
}

fn wall(now: u64, skew_ms: i64) -> u64 {
    (EPOCH_MS + now).saturating_add_signed(skew_ms)
}
