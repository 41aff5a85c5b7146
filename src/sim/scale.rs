//! What a full mesh costs: messages, bytes and time for so many nodes, without faults but one cable that is pulled.
//!
//! The same [`Replica`]s, bytes of [`crate::wire`] and disks as in the rest of the simulator, but made for a thousand
//! nodes: a message is encoded and decoded once, however many hear it. What the shell does is modelled: mDNS tells of
//! others, up to 256 of them are dialled, 16 at a time, and up to 512 callers are let in. A message takes 1 ms, a sync
//! 5 ms. Counted are topic and body of each message, when it is published and each time it is heard; the frame headers of
//! ZMTP and all below come on top.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;

use super::disk::{Disk, Retention};
use super::links::Frame;
use super::{Dice, mix};
use crate::id::{Epoch, NodeKey, Room, Run};
use crate::replica::batch::Draft;
use crate::replica::clock::{BUILD_MS, Mono, Now};
use crate::replica::event::{Input, Load, Notice, Order, Output, Report, To};
use crate::replica::liveness::Status;
use crate::replica::message::Message;
use crate::replica::{PEERS_MAX, Replica, WINDOW_BYTES_MAX};
use crate::wire;

/// The wall clock of all at the beginning.
const START_MS: u64 = BUILD_MS + 200 * 24 * 3_600_000;
/// Peers that a node dials at most, as in `net/discovery/ladder.rs`.
const DIALLED_MAX: usize = 256;
/// Dials that begin in a millisecond: 16 at a time, 4 ms each.
const DIALS_PER_MS: u64 = 4;
const DIAL_MS: u64 = 4;
/// Callers that a node lets in, as in `net/gate/limits.rs`.
const CALLERS_MAX: usize = 512;
const LATENCY_MS: u64 = 1;
const SYNC_MS: u64 = 5;
const READ_MS: u64 = 2;
/// The first ones start within so long, as after a power cut.
const STARTS_MS: u64 = 1_000;
/// So long is waited for all to be up, and for all logs to be equal.
const WAIT_MS: u64 = 15_000;
/// After a goodbye.
const PAUSE_MS: u64 = 2_000;
/// Long enough for what was said to settle.
const SETTLE_MS: u64 = 12_000;
/// One hello of each node falls into it.
const IDLE_MS: u64 = 30_000;
const TALK_MS: u64 = 5_000;
/// So long they talk before it is measured, so that heartbeats have found their pace, in milliseconds.
pub const TALK_LEAD_MS: u64 = 1_000;
/// One message of each that talks in so long.
const TALK_EVERY_MS: u64 = 1_000;
const CUT_MS: u64 = 60_000;
/// While a node is cut off, the mesh says a message in so long.
const CUT_SAY_EVERY_MS: u64 = 1_000;
/// When the cable is back, each peer is dialled within this.
const REDIAL_MS: (u64, u64) = (100, 2_000);
/// Bytes of a message that is said.
const SAID_BYTES: usize = 64;
/// In a crowd beyond a full mesh only so many talk, and all that is waited for is shorter: what they say shows how far it
/// gets.
const CROWD_VOICES: usize = 5;
const CROWD_TALK_MS: u64 = 3_000;
const CROWD_WAIT_MS: u64 = 5_000;

/// Sorts of messages, as they are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sort {
    /// What was said, from its author.
    Chat,
    /// Heartbeats: those of each second, and those with news.
    Heartbeat,
    /// Who is there and who hears whom, goodbyes included.
    Hello,
    /// Hashes to compare, digests, requests for them.
    Digest,
    /// Requests for entries.
    Request,
    /// Entries that were asked for.
    Repair,
}

impl Sort {
    /// All of them, in the order in which they are counted.
    pub const ALL: [Sort; 6] = [Sort::Chat, Sort::Heartbeat, Sort::Hello, Sort::Digest, Sort::Request, Sort::Repair];

    fn of(message: &Message) -> Sort {
        match message {
            Message::Batch(_) => Sort::Chat,
            Message::Heartbeat(_) | Message::Ping(_) | Message::Pong(_) => Sort::Heartbeat,
            Message::Hello(_) | Message::Goodbye(_) => Sort::Hello,
            Message::DigestRequest(_) | Message::Digest(_) | Message::Compare(_) => Sort::Digest,
            Message::Request(_) => Sort::Request,
            Message::Repair(_) => Sort::Repair,
        }
    }
}

/// Messages and their bytes, summed over a mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Messages that nodes put out, each once however many hear it.
    pub published: u64,
    /// Their bytes.
    pub published_bytes: u64,
    /// Messages that nodes heard.
    pub heard: u64,
    /// Their bytes: what the network carries.
    pub heard_bytes: u64,
}

impl std::ops::Add for Traffic {
    type Output = Traffic;

    fn add(self, other: Traffic) -> Traffic {
        Traffic {
            published: self.published + other.published,
            published_bytes: self.published_bytes + other.published_bytes,
            heard: self.heard + other.heard,
            heard_bytes: self.heard_bytes + other.heard_bytes,
        }
    }
}

/// What a mesh did for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// What it was about.
    pub name: &'static str,
    /// How long it took, in virtual time.
    pub ms: u64,
    /// Whether what it waits for came; true if it only lasts.
    pub done: bool,
    /// Entries that were said in it.
    pub said: u64,
    /// Milliseconds in which something happened to a node, summed over the mesh: how often it had to be awake.
    pub woken: u64,
    /// Of the traffic, what one node heard that the phase is about: the newcomer, or the one that was cut off.
    pub heard_by_one: (u64, u64),
    traffic: [Traffic; Sort::ALL.len()],
}

impl Phase {
    /// The traffic of one sort.
    pub fn of(&self, sort: Sort) -> Traffic {
        self.traffic[sort as usize]
    }

    /// All traffic.
    pub fn all(&self) -> Traffic {
        self.traffic.iter().fold(Traffic::default(), |sum, traffic| sum + *traffic)
    }

    /// All but what was said.
    pub fn control(&self) -> Traffic {
        self.traffic[1..].iter().fold(Traffic::default(), |sum, traffic| sum + *traffic)
    }
}

/// What a mesh of so many nodes costs. Without a full mesh there is no newcomer and no repair to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Nodes.
    pub nodes: usize,
    /// What links and starts were drawn from.
    pub seed: u64,
    /// All start within a second, with empty logs; its time counts from the last start until all are up with all.
    pub join: Phase,
    /// The fewest and the most peers that a node knew after that.
    pub known: (usize, usize),
    /// The fewest and the most peers that a node was up with.
    pub up: (usize, usize),
    /// Nodes that were up with nobody.
    pub alone: usize,
    /// Nobody says anything, each has said one thing before.
    pub idle: Phase,
    /// One leaves, and a new one with an empty log comes; until it is up with all, and all logs are equal.
    pub newcomer: Option<Phase>,
    /// Each says 64 bytes a second.
    pub talk: Phase,
    /// How many talked.
    pub voices: usize,
    /// In how many logs all that one of them had said was in the end: of the one for whom they were fewest, and most.
    pub reach: (usize, usize),
    /// A node was cut off for a minute and comes back; until all logs are equal.
    pub repair: Option<Phase>,
    /// Entries that logs lacked when it came back.
    pub missing: u64,
    /// Bytes of batches that repairs brought then, and how many of them were there already.
    pub repaired_bytes: (u64, u64),
}

/// Plays a mesh of `nodes`, and tells of each phase when it ends.
///
/// # Errors
/// What a disk refused, or a message that does not decode; never, unless the core is wrong.
pub fn scale(nodes: usize, seed: u64, told: &mut dyn FnMut(&Phase)) -> Result<Scale, String> {
    let full = nodes <= PEERS_MAX + 1;
    let mut mesh = Mesh::new(nodes, seed);
    let join = mesh.join(STARTS_MS)?;
    told(&join);
    let spread = |of: fn(&Replica) -> usize| {
        let counts: Vec<usize> = mesh.hosts.iter().map(|host| of(&host.replica)).collect();
        (counts.iter().min().copied().unwrap_or(0), counts.iter().max().copied().unwrap_or(0))
    };
    let (known, up) = (spread(|replica| replica.peers().count()), spread(ups));
    let alone = mesh.hosts.iter().filter(|host| ups(&host.replica) == 0).count();

    let voices = if full { nodes } else { CROWD_VOICES };
    // In a crowd those who came first know each other, so voices are taken from all.
    let speakers: Vec<usize> = (0..voices).map(|voice| voice * nodes / voices).collect();
    mesh.say(&speakers, voices as u64, STARTS_MS)?;
    mesh.play(SETTLE_MS)?;
    let mut newcomer = None;
    if full {
        let phase = mesh.newcomer(nodes / 2)?;
        told(&phase);
        newcomer = Some(phase);
        mesh.play(SETTLE_MS)?;
    }

    mesh.begin(None);
    mesh.play(IDLE_MS)?;
    let idle = mesh.end("idle", true);
    told(&idle);

    let talk_ms = if full { TALK_MS } else { CROWD_TALK_MS };
    mesh.say(&speakers, voices as u64 * TALK_LEAD_MS / TALK_EVERY_MS, TALK_LEAD_MS)?;
    mesh.begin(None);
    mesh.say(&speakers, voices as u64 * talk_ms / TALK_EVERY_MS, talk_ms)?;
    let talk = mesh.end("talk", true);
    told(&talk);
    mesh.wait(Mesh::is_equal, mesh.wait_ms())?;
    let reach = mesh.reach(&speakers);

    let (mut repair, mut missing, mut repaired_bytes) = (None, 0, (0, 0));
    if full {
        let (phase, lacked) = mesh.cut_off(&speakers)?;
        told(&phase);
        (repair, missing, repaired_bytes) = (Some(phase), lacked, mesh.repaired);
    }
    Ok(Scale {
        nodes,
        seed,
        join,
        known,
        up,
        alone,
        idle,
        newcomer,
        talk,
        voices,
        reach,
        repair,
        missing,
        repaired_bytes,
    })
}

/// Plays how `nodes` that all know one of them, and each other by what they are told only, become a full mesh; they start
/// within `starts_ms`. Its time counts from the last start.
///
/// # Errors
/// As [`scale`].
pub fn gossip(nodes: usize, seed: u64, starts_ms: u64) -> Result<Phase, String> {
    let mut mesh = Mesh::new(nodes, seed);
    mesh.gossip = true;
    mesh.join(starts_ms)
}

/// With how many peers a node is up.
fn ups(replica: &Replica) -> usize {
    replica.peers().filter(|(_, peer)| peer.status == Status::Up).count()
}

struct Host {
    replica: Replica,
    disk: Disk,
    /// The machine's monotonic clock at our time 0.
    mono: u64,
    due: u64,
    started: bool,
    /// When something happened to it last.
    woken_at: u64,
    /// Whom it dials, up to [`DIALLED_MAX`].
    dialled: BTreeSet<usize>,
    /// Its next dial, counted in [`DIALS_PER_MS`].
    next_dial: u64,
    callers: BTreeSet<usize>,
    /// Who hears it.
    listeners: BTreeSet<usize>,
    /// Entries in its log.
    stored: u64,
}

enum Event {
    Start(usize),
    Learn { host: usize, other: usize },
    Accept { listener: usize, speaker: usize },
    Open { listener: usize, speaker: usize },
    Arrive { speaker: usize, from: Run, to: Option<usize>, message: Message, bytes: u64 },
    Synced(usize),
    Read(usize, Load),
}

struct Mesh {
    now: u64,
    dice: Dice,
    hosts: Vec<Host>,
    places: HashMap<Run, usize>,
    queue: BTreeMap<u64, Vec<Event>>,
    said: u64,
    /// Nodes learn of the first by themselves, and of others by hellos only.
    gossip: bool,
    /// Who is without a cable.
    apart: Option<usize>,
    repaired: (u64, u64),
    // Of the phase under way.
    began: u64,
    said_before: u64,
    traffic: [Traffic; Sort::ALL.len()],
    woken: u64,
    one: Option<usize>,
    heard_by_one: (u64, u64),
}

impl Mesh {
    fn new(nodes: usize, seed: u64) -> Mesh {
        let mut mesh = Mesh {
            now: 0,
            dice: Dice(mix(seed)),
            hosts: Vec::new(),
            places: HashMap::new(),
            queue: BTreeMap::new(),
            said: 0,
            gossip: false,
            apart: None,
            repaired: (0, 0),
            began: 0,
            said_before: 0,
            traffic: Default::default(),
            woken: 0,
            one: None,
            heard_by_one: (0, 0),
        };
        for place in 0..nodes {
            let host = mesh.host(place);
            mesh.hosts.push(host);
        }
        mesh
    }

    /// A node that never ran before.
    fn host(&mut self, place: usize) -> Host {
        let mut secret = [0; NodeKey::LEN];
        secret[..8].copy_from_slice(&self.dice.draw().to_be_bytes());
        let (key, epoch) = (NodeKey::from_bytes(&secret), Epoch(self.dice.draw()));
        let everything = Retention { age_ms: u64::MAX, bytes: u64::MAX };
        let mut disk = Disk::new(everything, (SYNC_MS, SYNC_MS));
        let (mono, seed) = (self.dice.below(1_000_000), self.dice.draw());
        let now = Now { mono: Mono(self.now + mono), wall_ms: START_MS + self.now };
        let name = format!("node {place}").into();
        let replica = Replica::new(now, key, epoch, name, seed, WINDOW_BYTES_MAX, Some(disk.reopen()));
        self.places.insert(replica.me(), place);
        Host {
            replica,
            disk,
            mono,
            due: u64::MAX,
            started: false,
            woken_at: 0,
            dialled: BTreeSet::new(),
            next_dial: 0,
            callers: BTreeSet::new(),
            listeners: BTreeSet::new(),
            stored: 0,
        }
    }

    // What is measured.

    fn join(&mut self, starts_ms: u64) -> Result<Phase, String> {
        self.begin(None);
        for place in 0..self.hosts.len() {
            let others = self.hosts.len().saturating_sub(1).max(1) as u64;
            let at = self.now + starts_ms * place as u64 / others;
            self.at(at, Event::Start(place));
        }
        self.play(starts_ms)?;
        let done = self.wait(Mesh::is_up, self.wait_ms())?;
        let mut phase = self.end("join", done);
        phase.ms -= starts_ms;
        Ok(phase)
    }

    fn newcomer(&mut self, place: usize) -> Result<Phase, String> {
        self.feed(place, Input::Stop)?;
        self.play(LATENCY_MS + 1)?;
        let gone = self.hosts[place].replica.me();
        for other in (0..self.hosts.len()).filter(|other| *other != place) {
            if self.hosts[place].listeners.contains(&other) {
                self.feed(other, Input::LinkDown(gone))?;
            }
            if self.hosts[other].listeners.remove(&place) {
                self.feed(other, Input::Left(gone))?;
            }
            let host = &mut self.hosts[other];
            host.dialled.remove(&place);
            host.callers.remove(&place);
        }
        self.places.remove(&gone);
        self.hosts[place] = self.host(place);
        self.play(PAUSE_MS)?;
        self.begin(Some(place));
        self.at(self.now + 1, Event::Start(place));
        self.play(2)?;
        let done = self.wait(|mesh| mesh.is_up() && mesh.is_equal(), WAIT_MS)?;
        Ok(self.end("newcomer", done))
    }

    fn cut_off(&mut self, speakers: &[usize]) -> Result<(Phase, u64), String> {
        let place = self.hosts.len() / 3;
        self.apart = Some(place);
        self.say(speakers, CUT_MS / CUT_SAY_EVERY_MS, CUT_MS)?;
        self.apart = None;
        let missing = self.hosts.iter().map(|host| self.said - host.stored).sum();
        self.repaired = (0, 0);
        for other in (0..self.hosts.len()).filter(|other| *other != place) {
            for (listener, speaker) in [(place, other), (other, place)] {
                // The connection from before is dead; it is replaced by a new one.
                if self.hosts[speaker].listeners.remove(&listener) {
                    let at = self.now + self.dice.range(REDIAL_MS.0, REDIAL_MS.1);
                    self.at(at, Event::Accept { listener, speaker });
                }
            }
        }
        self.begin(Some(place));
        let done = self.wait(|mesh| mesh.is_up() && mesh.is_equal(), 4 * WAIT_MS)?;
        let phase = self.end("repair", done);
        Ok((phase, missing))
    }

    fn begin(&mut self, one: Option<usize>) {
        (self.began, self.said_before, self.traffic) = (self.now, self.said, Default::default());
        (self.one, self.heard_by_one, self.woken) = (one, (0, 0), 0);
    }

    fn end(&mut self, name: &'static str, done: bool) -> Phase {
        let (ms, said) = (self.now - self.began, self.said - self.said_before);
        Phase { name, ms, done, said, woken: self.woken, heard_by_one: self.heard_by_one, traffic: self.traffic }
    }

    fn is_up(&self) -> bool {
        self.hosts.iter().all(|host| ups(&host.replica) == self.hosts.len() - 1)
    }

    fn wait_ms(&self) -> u64 {
        if self.hosts.len() > PEERS_MAX + 1 { CROWD_WAIT_MS } else { WAIT_MS }
    }

    /// In how many logs all is that one of `speakers` has said: the fewest and the most.
    fn reach(&self, speakers: &[usize]) -> (usize, usize) {
        let logs = |place: &usize| {
            let run = self.hosts[*place].replica.me();
            let said = self.hosts[*place].disk.synced.stored(run);
            self.hosts.iter().filter(|host| host.disk.synced.stored(run) == said).count()
        };
        let counts = || speakers.iter().map(logs);
        (counts().min().unwrap_or(0), counts().max().unwrap_or(0))
    }

    /// Whether all logs hold all that was said.
    fn is_equal(&self) -> bool {
        let rows = |host: &Host| host.disk.synced.list().map(|(run, stored, ..)| (run, stored.clone())).collect();
        let first: Vec<_> = rows(&self.hosts[0]);
        self.hosts.iter().all(|host| host.stored == self.said) && self.hosts.iter().all(|host| rows(host) == first)
    }

    // Time.

    fn at(&mut self, at: u64, event: Event) {
        self.queue.entry(at.max(self.now + 1)).or_default().push(event);
    }

    fn play(&mut self, ms: u64) -> Result<(), String> {
        for now in self.now + 1..=self.now + ms {
            self.now = now;
            for event in self.queue.remove(&now).unwrap_or_default() {
                self.happen(event)?;
            }
            for place in 0..self.hosts.len() {
                if self.hosts[place].started && self.hosts[place].due <= now {
                    self.feed(place, Input::Timeout)?;
                }
            }
        }
        Ok(())
    }

    /// Plays until something is so, or for so long; answers whether it is.
    fn wait(&mut self, so: impl Fn(&Mesh) -> bool, ms: u64) -> Result<bool, String> {
        let end = self.now + ms;
        while !so(self) {
            if self.now >= end {
                return Ok(false);
            }
            self.play(5)?;
        }
        Ok(true)
    }

    /// `speakers` say so many messages within `ms`, one after the other.
    fn say(&mut self, speakers: &[usize], messages: u64, ms: u64) -> Result<(), String> {
        let began = self.now;
        for turn in 0..messages {
            let place = speakers[turn as usize % speakers.len()];
            let draft = Draft::new(Room::lobby(), format!("{:>SAID_BYTES$}", self.said));
            let now = self.now_of(place);
            self.hosts[place].replica.publish(now, vec![draft]);
            self.said += 1;
            self.perform(place)?;
            self.play(began + (turn + 1) * ms / messages - self.now)?;
        }
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Start(place) => {
                self.hosts[place].started = true;
                self.feed(place, Input::Endpoints(vec![address(place)]))?;
                if self.gossip {
                    if place > 0 {
                        self.at(self.now + 1, Event::Learn { host: place, other: 0 });
                    }
                    return Ok(());
                }
                for other in 0..self.hosts.len() {
                    if other != place && self.hosts[other].started {
                        let (soon, later) = (self.now + self.dice.range(1, 3), self.now + self.dice.range(10, 50));
                        self.at(soon, Event::Learn { host: other, other: place });
                        self.at(later, Event::Learn { host: place, other });
                    }
                }
            }
            Event::Learn { host, other } => self.dial(host, other),
            Event::Accept { listener, speaker } => {
                let hearing = self.hosts[listener].replica.me();
                let callers = &mut self.hosts[speaker].callers;
                if callers.len() >= CALLERS_MAX && !callers.contains(&listener) {
                    return Ok(());
                }
                callers.insert(listener);
                self.at(self.now + LATENCY_MS, Event::Open { listener, speaker });
                self.feed(speaker, Input::Called(hearing))?;
                self.dial(speaker, listener);
            }
            Event::Open { listener, speaker } => {
                self.hosts[speaker].listeners.insert(listener);
                let run = self.hosts[speaker].replica.me();
                self.feed(listener, Input::LinkUp { run, address: address(speaker) })?;
            }
            Event::Arrive { speaker, from, to, message, bytes } => self.arrive(speaker, from, to, message, bytes)?,
            Event::Synced(place) => {
                let (reports, more) = self.hosts[place].disk.synced();
                if more {
                    self.at(self.now + SYNC_MS, Event::Synced(place));
                }
                for report in reports {
                    if let Report::Stored(spans) = &report {
                        let entries = spans.iter().map(|span| span.last.0 - span.first.0 + 1).sum::<u64>();
                        self.hosts[place].stored += entries;
                    }
                    self.feed(place, Input::Log(report))?;
                }
            }
            Event::Read(place, load) => {
                let report = self.hosts[place].disk.load(load);
                self.feed(place, Input::Log(report))?;
            }
        }
        Ok(())
    }

    /// A node has learnt of another: it dials it if it has room for one more.
    fn dial(&mut self, host: usize, other: usize) {
        let now = self.now;
        let dialling = &mut self.hosts[host];
        if dialling.dialled.len() >= DIALLED_MAX || !dialling.dialled.insert(other) {
            return;
        }
        dialling.next_dial = dialling.next_dial.max(now * DIALS_PER_MS) + 1;
        let at = dialling.next_dial / DIALS_PER_MS + DIAL_MS;
        self.at(at, Event::Accept { listener: host, speaker: other });
    }

    // Nodes.

    fn now_of(&self, place: usize) -> Now {
        Now { mono: Mono(self.now + self.hosts[place].mono), wall_ms: START_MS + self.now }
    }

    fn feed(&mut self, place: usize, input: Input) -> Result<(), String> {
        let now = self.now_of(place);
        let host = &mut self.hosts[place];
        self.woken += u64::from(std::mem::replace(&mut host.woken_at, self.now) != self.now);
        host.replica.handle(now, input);
        self.perform(place)
    }

    fn perform(&mut self, place: usize) -> Result<(), String> {
        while let Some(output) = self.hosts[place].replica.poll_output() {
            match output {
                Output::Send { to, message } => self.send(place, to, &message)?,
                Output::Log(Order::Load(load)) => self.at(self.now + READ_MS, Event::Read(place, load)),
                Output::Log(order) => {
                    if self.hosts[place].disk.order(order)? {
                        self.at(self.now + SYNC_MS, Event::Synced(place));
                    }
                }
                Output::Notify(Notice::Named { run, .. }) if self.gossip => {
                    if let Some(other) = self.places.get(&run).copied() {
                        self.at(self.now + 1, Event::Learn { host: place, other });
                    }
                }
                Output::Deliver { .. } | Output::Notify(_) => {}
            }
        }
        let host = &mut self.hosts[place];
        host.due = host.replica.poll_timeout().map_or(u64::MAX, |due| due.0.saturating_sub(host.mono));
        Ok(())
    }

    /// Encodes and decodes a message once, for all that will hear it.
    fn send(&mut self, speaker: usize, to: To, message: &Message) -> Result<(), String> {
        let Frame { topic, body } = Frame::of(to, message);
        let bytes = (topic.len() + body.len()) as u64;
        let sort = Sort::of(message);
        let traffic = &mut self.traffic[sort as usize];
        traffic.published += 1;
        traffic.published_bytes += bytes;
        let to = match to {
            To::All => None,
            To::One(run) => match self.places.get(&run) {
                Some(place) => Some(*place),
                None => return Ok(()),
            },
        };
        let message = wire::decode(topic.as_bytes(), &body).map_err(|error| format!("{speaker} says {error}"))?;
        let from = self.hosts[speaker].replica.me();
        self.at(self.now + LATENCY_MS, Event::Arrive { speaker, from, to, message, bytes });
        Ok(())
    }

    fn arrive(
        &mut self,
        speaker: usize,
        from: Run,
        to: Option<usize>,
        message: Message,
        bytes: u64,
    ) -> Result<(), String> {
        let apart = self.apart;
        if apart == Some(speaker) {
            return Ok(());
        }
        let hears = &self.hosts[speaker].listeners;
        let mut wanted: Vec<usize> = match to {
            Some(place) => hears.get(&place).copied().into_iter().collect(),
            None => hears.iter().copied().collect(),
        };
        wanted.retain(|listener| Some(*listener) != apart);
        let sort = Sort::of(&message);
        for listener in wanted {
            let traffic = &mut self.traffic[sort as usize];
            traffic.heard += 1;
            traffic.heard_bytes += bytes;
            if self.one == Some(listener) {
                self.heard_by_one.0 += 1;
                self.heard_by_one.1 += bytes;
            }
            if let Message::Repair(repair) = &message {
                for (batch, _) in &repair.batches {
                    let bytes = batch.bytes().len() as u64;
                    self.repaired.0 += bytes;
                    self.repaired.1 += if self.hosts[listener].replica.has(batch) { bytes } else { 0 };
                }
            }
            self.feed(listener, Input::Message { from, message: message.clone() })?;
        }
        Ok(())
    }
}

fn address(place: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, (place >> 8) as u8, place as u8], 47474))
}
