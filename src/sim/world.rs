//! The world around the replicas: hosts, links between them, clocks, and everything that goes wrong.
//!
//! It plays what the shell of a node does, roughly: it dials until there is a link, dials beside a link that fell silent,
//! and tells the replica of refusals. A link is one direction, from a speaker to a listener; its messages arrive in order
//! unless the plan says otherwise.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;

use super::check::{self, Book, Given, Held};
use super::disk::Disk;
use super::links::{Frame, Link, Recorded};
use super::{Class, Counts, Dice, Plan, mix};
use crate::id::{Epoch, NodeId, NodeKey, Run, RunHash, Seq};
#[cfg(feature = "mutants")]
use crate::replica::Mutant;
use crate::replica::Replica;
use crate::replica::batch::{Batch, Draft};
use crate::replica::clock::{BUILD_MS, Mono, Now};
use crate::replica::event::{Input, Kept, Load, Notice, Output, Report, Timing, To};
use crate::replica::liveness::Status;
use crate::replica::message::Message;

/// The wall clock at the beginning: 200 days after the first one that is believed.
const EPOCH_MS: u64 = BUILD_MS + 200 * 24 * 3_600_000;
/// How long the mesh may take to converge once there is peace: a silent run counts as over after five minutes.
const PEACE_MS_MAX: u64 = 420_000;
/// How long digests may still settle after that, and how long there has to be silence then.
const SETTLE_MS: u64 = 45_000;
const SILENCE_MS: u64 = 30_000;
/// How often silence is waited for, where entries leave by their age all the time.
const SILENCES_MAX: usize = 4;

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
    pub links_ever: u64,
    pub walls: Vec<Wall>,
    pub book: Book,
    /// Every life there ever was, and every run that was made up.
    pub runs: BTreeSet<Run>,
    pub hashes: HashMap<RunHash, Run>,
    pub recorded: Vec<Recorded>,
    /// Drafts with keys, to be tried again anywhere.
    pub keyed: VecDeque<Draft>,
    /// Faults have ended; from `silent_from` on nothing is asked for.
    pub peace: bool,
    silent_from: Option<u64>,
    #[cfg(feature = "mutants")]
    mutant: Option<Mutant>,
}

pub(super) struct Host {
    pub node: NodeId,
    pub key: NodeKey,
    /// Its wall clock, apart from ours.
    pub skew_ms: i64,
    pub life: Option<Life>,
    pub lives: u64,
    pub disk: Option<Disk>,
    /// It makes frames up; nothing that it says of itself has to hold.
    pub hostile: bool,
    /// It dies after so many more outputs.
    pub fuse: Option<u64>,
    pub last_run: Option<Run>,
    /// It comes back when it has died.
    pub returns: bool,
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
    /// Own batches that are not known to be durable.
    pub unconfirmed: VecDeque<(Seq, Seq)>,
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
    /// A sync is done.
    Synced {
        host: usize,
        session: u64,
    },
    /// The disk has read what was asked for.
    Read {
        host: usize,
        session: u64,
        load: Load,
    },
    /// A disk that failed works again.
    Reopen {
        host: usize,
        session: u64,
    },
    /// Something of a log that was moved aside can be read.
    Found {
        host: usize,
        life: u64,
        found: Vec<Kept>,
    },
    Burst,
    Flood,
    PowerCut,
    Clone,
    Snapshot,
    DiskFails,
    Quarantine,
    Lie,
    ClockSet,
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

impl Event {
    /// Whether there is no peace before it.
    fn has_to_come(&self) -> bool {
        matches!(self, Event::Start { .. } | Event::Reopen { .. } | Event::Found { .. })
    }
}

impl World {
    pub fn new(seed: u64, plan: Plan) -> World {
        let hosts = plan.hosts();
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
            runs: BTreeSet::new(),
            hashes: HashMap::new(),
            recorded: Vec::new(),
            keyed: VecDeque::new(),
            peace: false,
            silent_from: None,
            #[cfg(feature = "mutants")]
            mutant: None,
            plan,
        };
        for index in 0..hosts {
            let hostile = index >= hosts - world.plan.hostiles;
            let key = loop {
                let mut secret = [index as u8; NodeKey::LEN];
                secret[..8].copy_from_slice(&world.dice.draw().to_le_bytes());
                let key = NodeKey::from_bytes(&secret);
                if (key.node().0[31] == super::hostile::MARK) == hostile {
                    break key;
                }
            };
            let plan = &world.plan;
            let (skew, odd) = (plan.skew_max_ms, plan.clocks.get(index).copied());
            let (retention, sync_ms, disks) = (plan.retention, plan.sync_ms, plan.disks);
            let disk = world.dice.chance(disks).then(|| Disk::new(retention, sync_ms));
            let skew_ms = world.dice.below(2 * skew + 1) as i64 - skew as i64;
            world.counts.odd_clocks += u64::from(odd.is_some());
            world.hosts.push(Host {
                node: key.node(),
                key,
                skew_ms: odd.map_or(skew_ms, |odd| odd.unwrap_or(-(EPOCH_MS as i64))),
                life: None,
                lives: 0,
                disk,
                hostile,
                fuse: None,
                last_run: None,
                returns: false,
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
        let starts = self.queue.iter().filter(|(_, event)| event.has_to_come()).map(|((at, _), _)| *at);
        let end = walls.chain(starts).max().unwrap_or(0);
        self.play_until(end)?;
        self.peace = true;
        // Whoever lies is gone now, else there was no peace.
        for host in 0..self.hosts.len() {
            if self.hosts[host].hostile {
                self.fall(host, false)?;
            }
            self.hosts[host].fuse = None;
        }
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
        for _ in 0..SILENCES_MAX {
            let end = self.silent_from.map_or(self.now, |from| from + SILENCE_MS);
            if end <= self.now {
                break;
            }
            self.play_until(end)?;
        }
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

    /// What leaves by its age, and is forgotten then, is news in the midst of silence, too: peers compare what they hold
    /// once more.
    pub fn let_go_of_some(&mut self) {
        self.silent_from = self.silent_from.map(|from| from.max(self.now + SETTLE_MS));
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
                link.queued_bytes = link.queued_bytes.saturating_sub(frame.body.len());
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
            Event::Synced { host, session } => self.synced(host, session)?,
            Event::Read { host, session, load } => self.read(host, session, load)?,
            Event::Reopen { host, session } => self.disk_works(host, session)?,
            Event::Found { host, life, found } => self.found(host, life, found)?,
            Event::PowerCut => self.power_cut()?,
            Event::Clone => self.clone_host()?,
            Event::Snapshot => self.snapshot(),
            Event::DiskFails => self.disk_fails()?,
            Event::Quarantine => self.quarantine()?,
            Event::Lie => self.lie()?,
            Event::ClockSet => self.clocks_are_set(),
            Event::Flood => self.flood()?,
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

    pub fn start(&mut self, index: usize) -> Held {
        if self.hosts[index].life.is_some() {
            return Ok(());
        }
        #[cfg_attr(not(feature = "mutants"), allow(unused_mut))]
        let mut epoch = Epoch(self.dice.draw());
        let (mono, seed) = (self.dice.below(1_000_000), self.dice.draw());
        let host = &mut self.hosts[index];
        #[cfg(feature = "mutants")]
        if self.mutant == Some(Mutant::EpochReused) {
            epoch = host.last_run.map_or(epoch, |run| run.epoch);
        }
        let run = host.key.run(epoch);
        #[cfg(feature = "mutants")]
        if let Some(disk) = host.disk.as_mut().filter(|_| self.mutant == Some(Mutant::TwinShown)) {
            disk.show_twins();
        }
        let opened = host.disk.as_mut().map(Disk::reopen);
        let mut given = Given::default();
        if let Some(opened) = &opened {
            given.open(opened);
        }
        let now = Now { mono: Mono(self.now + mono), wall_ms: wall(self.now, host.skew_ms) };
        #[cfg_attr(not(feature = "mutants"), allow(unused_mut))]
        let mut replica = Replica::new(
            now,
            host.key.clone(),
            epoch,
            format!("node {index}").into(),
            seed,
            self.plan.window_bytes,
            opened,
        );
        #[cfg(feature = "mutants")]
        if let Some(mutant) = self.mutant {
            replica.plant(mutant);
        }
        host.lives += 1;
        (host.answers, host.last_run, host.fuse) = (true, Some(run), None);
        let (drafts, unconfirmed) = (VecDeque::new(), VecDeque::new());
        host.life = Some(Life { replica, given, mono, drafts, unconfirmed });
        self.hashes.insert(run.hash(), run);
        if !self.runs.insert(run) {
            return Err(format!("{index} starts again as {run:?}"));
        }
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
            self.counts.expired += life.replica.counters().expired;
            self.counts.repaired_bytes += life.given.repaired_bytes;
            self.counts.repaired_bytes_twice += life.given.repaired_bytes_twice;
        }
    }

    /// Hands an input to the replica of a host, if it lives, and does what it wants done.
    pub fn feed(&mut self, index: usize, input: Input) -> Held {
        let now = self.now_of(index);
        let Some(life) = &mut self.hosts[index].life else { return Ok(()) };
        if let Input::Log(Report::Opened(opened)) = &input {
            life.given.open(opened);
        }
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
        check::after_step(&life.replica, at, self.plan.window_bytes, self.runs.len())
            .map_err(|what| format!("{index}: {what}"))?;
        while let Some(life) = &mut self.hosts[index].life {
            let Some(output) = life.replica.poll_output() else { break };
            let me = life.replica.me();
            self.trace = mix(self.trace ^ self.now ^ (index as u64) << 48);
            match output {
                Output::Deliver { batch, how } => {
                    life.given.deliver(&batch, how).map_err(|what| format!("{index}: {what}"))?;
                    self.counts.late += u64::from(how == Timing::Late) * u64::from(batch.count());
                    self.trace = mix(self.trace ^ batch.first().0 ^ how as u64);
                    if !self.knows(&batch) {
                        return Err(format!("{index} delivers {batch:?}, which was never said like that"));
                    }
                }
                Output::Send { to, message } => {
                    if let (To::All, Message::Batch(batch)) = (to, &message)
                        && batch.origin() == me
                    {
                        self.said(index, batch)?;
                    }
                    self.check_word(index, to, &message)?;
                    self.send(index, to, &message)?;
                }
                Output::Notify(notice) => self.notice(index, notice)?,
                Output::Log(order) => self.order(index, order)?,
            }
            if let Some(fuse) = &mut self.hosts[index].fuse {
                *fuse = fuse.saturating_sub(1);
                if *fuse == 0 {
                    return self.fall(index, false);
                }
            }
        }
        Ok(())
    }

    /// A host says something for the first time, be it to its log or to others.
    pub fn said(&mut self, index: usize, batch: &Batch) -> Held {
        let Some(life) = &mut self.hosts[index].life else { return Ok(()) };
        if self.book.knows(batch) {
            return Ok(());
        }
        life.unconfirmed.push_back((batch.first(), batch.last()));
        self.book.write(life.replica.me(), batch, &mut life.drafts)
    }

    /// Whether `batch` is what its origin said, as far as that can be known.
    pub fn knows(&self, batch: &Batch) -> bool {
        self.book.knows(batch) || self.is_hostile(batch.origin().node)
    }

    pub fn is_hostile(&self, node: NodeId) -> bool {
        self.plan.hostiles > 0 && node.0[31] == super::hostile::MARK
    }

    /// What must not be said.
    fn check_word(&self, index: usize, to: To, message: &Message) -> Held {
        let Some(life) = &self.hosts[index].life else { return Ok(()) };
        if let (To::One(to), Message::Request(_)) = (to, message) {
            let status = life.replica.known_peer(to).map(|peer| peer.status);
            if status != Some(Status::Up) && !self.hosts[index].hostile {
                return Err(format!("{index} asks {to:?}, which is {status:?}"));
            }
        }
        match message {
            Message::Heartbeat(beat) => {
                for mark in &beat.marks {
                    if let Some(run) = self.hashes.get(&mark.run) {
                        self.check_advertised(index, *run, &mark.held, &mark.volatile)?;
                    }
                }
            }
            Message::Digest(digest) => {
                for holding in &digest.holdings {
                    self.check_advertised(index, holding.run, &holding.held, &holding.volatile)?;
                }
            }
            _ => {}
        }
        let asks = matches!(
            message,
            Message::Request(_) | Message::Repair(_) | Message::Digest { .. } | Message::DigestRequest(_)
        );
        if asks && self.silent_from.is_some_and(|from| self.now > from) {
            let of = |index: usize| match (message, &self.hosts[index].life) {
                (Message::Request(request), Some(life)) => life
                    .replica
                    .audit()
                    .find(|audit| audit.run == request.origin)
                    .map_or(String::new(), |audit| super::end::describe(&audit)),
                _ => String::new(),
            };
            let asked = (0..self.hosts.len())
                .find(|at| self.hosts[*at].life.as_ref().is_some_and(|life| to == To::One(life.replica.me())));
            let has = asked.map(of).unwrap_or_default();
            return Err(format!(
                "{index} says {message:?} to {to:?} though all is quiet; it has {}, the other {has}",
                of(index)
            ));
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
                let heard = self.hosts[index].heard.iter().find(|(_, heard)| **heard == run).map(|(other, _)| *other);
                let Some(other) = heard else { return Ok(()) };
                if self.plan.class == Class::Calm && matches!(status, Some(Status::Suspect | Status::Down)) {
                    return Err(format!("{other} is {status:?} for {index} in calm weather"));
                }
                if matches!(status, Some(Status::Suspect | Status::Down)) {
                    let event = Event::Dial { listener: index, speaker: other, life: life_number, anew: true };
                    self.at(self.now + 1, event);
                }
            }
            Notice::OwnRunElsewhere(_) if self.plan.hostiles > 0 => {}
            Notice::OwnRunElsewhere(id) => return Err(format!("{index} hears of {id:?} of its own run")),
            Notice::Gap { .. } | Notice::Named { .. } => {}
        }
        Ok(())
    }
}

fn wall(now: u64, skew_ms: i64) -> u64 {
    (EPOCH_MS + now).saturating_add_signed(skew_ms)
}
