//! What a replica says of itself and makes of what it hears: heartbeats, hellos, digests, requests.

use std::cmp::Reverse;
use std::net::SocketAddr;
use std::ops::Bound;
use std::time::Duration;

use super::batch::{Batch, NAME_BYTES_MAX};
use super::clock::{Hlc, Now};
use super::event::{Kept, Notice, To};
use super::hashes::{RANGES_MAX, bucket, coarse, highest, part, parts, token};
use super::liveness::{Holds, Peer, Status};
use super::message::{BUCKETS, Digest, Heartbeat, Hello, Holding, Mark, Message};
use super::ranges::RangeSet;
use super::stream::Stream;
use super::{Mutant, Replica, Source};
use crate::id::{EntryId, Run, RunHash, Seq};

/// A heartbeat goes out this often.
pub(crate) const BEAT_EVERY: Duration = Duration::from_secs(1);
/// Whoever hears a heartbeat and has one of its own due within this sends it at once: a mesh that has nothing to do wakes up
/// once a second, all together, and not each node for each other one.
const BEAT_WITH_OTHERS: Duration = Duration::from_millis(500);
/// And so soon after something was stored.
const BEAT_AFTER_NEWS: Duration = Duration::from_millis(50);
/// A hello goes out this often.
pub(crate) const HELLO_EVERY: Duration = Duration::from_secs(30);
/// And so soon after something in it changed.
const HELLO_AFTER_NEWS: Duration = Duration::from_millis(20);
/// A peer that called and does not say that it hears us gets a hello again after these.
const GREETINGS: [Duration; 5] = [
    Duration::from_millis(5),
    Duration::from_millis(20),
    Duration::from_millis(60),
    Duration::from_millis(200),
    Duration::from_millis(600),
];
/// A digest is asked of one peer at most this often because hashes differ.
const DIGEST_EVERY: Duration = Duration::from_secs(10);
/// Somebody who never told what it holds is asked this often.
const DIGEST_AGAIN: Duration = Duration::from_secs(2);
/// All that is held is told to one peer at most this often.
const DIGEST_ANSWER_EVERY: Duration = Duration::from_millis(500);
/// Bytes of marks in one heartbeat, estimated high.
const MARK_BYTES_MAX: usize = 900;
/// Streams that did not change, in one heartbeat.
const MARKS_IN_TURN: usize = 4;
/// Streams in one digest message.
const HOLDINGS_MAX: usize = 200;
/// Runs that were refused and are remembered.
const UNWELCOME_MAX: usize = 16 * 1024;
/// Peers named in a greeting, those whose state changed last.
const KNOWS_MAX: usize = 64;
/// And in a hello that goes to all because something changed.
const KNOWS_OF_NEWS: usize = 16;
/// Addresses of one peer named in one hello.
const ADDRESSES_MAX: usize = 8;

impl Replica {
    /// Takes note of a message.
    pub(super) fn hear(&mut self, now: Now, from: Run, message: Message) {
        if from == self.me {
            return;
        }
        let mut goodbye = false;
        if let Some(stream) = self.stream(now, from) {
            (stream.alive_at, stream.over) = (now.mono, false);
            goodbye = stream.goodbye;
        }
        let Some(peer) = self.peer(now, from) else { return };
        // Whoever asks us or answers us has heard us: its hello may have been lost.
        let hears_us = matches!(
            message,
            Message::DigestRequest(_)
                | Message::Compare(_)
                | Message::Digest(_)
                | Message::Request(_)
                | Message::Repair(_)
        );
        // After its goodbye only its last words may still come.
        if !goodbye {
            peer.heard_at = Some(now.mono);
            peer.hears_us |= hears_us;
            let first_word = !std::mem::replace(&mut peer.live, true);
            self.judge(now, from);
            if first_word {
                self.greet(now, from);
                self.greet_soon(now);
                self.ask_for_all(now, from);
                self.reconsider(from);
            }
        }
        match message {
            Message::Batch(batch) => self.hear_batch(now, from, batch),
            Message::Heartbeat(beat) => self.hear_beat(now, from, beat),
            Message::Hello(hello) => self.hear_hello(now, from, hello),
            Message::Goodbye(sent) => self.hear_goodbye(now, from, sent),
            Message::DigestRequest(hashes) => self.answer_digest(now, from, &hashes),
            Message::Compare(hashes) => self.answer_compare(now, from, &hashes),
            Message::Digest(digest) => self.hear_digest(now, from, digest),
            Message::Request(request) => self.serve(from, request),
            Message::Repair(repair) => self.hear_repair(now, from, repair),
            // Round trips are measured by the event loop.
            Message::Ping(_) | Message::Pong(_) => {}
        }
    }

    fn hear_batch(&mut self, now: Now, from: Run, batch: Batch) {
        // On `chat` a peer speaks for itself; what others said comes as a repair.
        if batch.origin() != from {
            self.counters.conflicts += 1;
            return;
        }
        if let Some(peer) = self.peers.get_mut(&from) {
            let holds = peer.holds.entry(from).or_default();
            holds.held.insert(batch.first(), batch.last());
            holds.volatile.insert(batch.first(), batch.last());
        }
        self.store(now, Kept { batch, arrived_ms: now.wall_ms }, Source::Author);
    }

    fn hear_beat(&mut self, now: Now, from: Run, beat: Heartbeat) {
        let Heartbeat { sent, marks, settled, wall_ms } = beat;
        self.hear_time(now, from, wall_ms);
        // Not where there is news: heartbeats are more frequent then, and one draws the other after it.
        if self.beat_at == self.regular_at && self.beat_at <= now.mono + BEAT_WITH_OTHERS {
            (self.beat_at, self.regular_at) = (now.mono, now.mono);
            self.deadline = now.mono;
        }
        if let Some(stream) = self.streams.get_mut(&from) {
            stream.sent = stream.sent.max(sent);
        }
        if sent == Seq(0) {
            self.meet(from, sent, None);
        }
        let mut unknown = Vec::new();
        for Mark { run, floor, held, volatile } in marks {
            match self.runs.get(&run).copied() {
                Some(origin) => self.learn(from, origin, Holds { floor, held, volatile }),
                None if self.unwelcome.contains(&run) => {}
                None => unknown.push(run),
            }
        }
        self.look_for_holes(from);
        if !unknown.is_empty() {
            self.send(To::One(from), Message::DigestRequest(unknown));
        }
        let often = self.bug(Mutant::DigestOnEveryBeat);
        let mine = self.hashes.settled();
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.differed = if settled == mine { 0 } else { peer.differed + 1 };
        let since = peer.asked_at.map(|at| now.mono - at);
        // The answer to the question at the first word may have been lost.
        let untold = !peer.told_all && since.is_none_or(|since| since >= DIGEST_AGAIN);
        let differs = peer.differed >= 2
            && since.is_none_or(|since| since >= DIGEST_EVERY)
            && peer.told_for != Some((mine, settled));
        if (peer.is_source() && (untold || differs)) || often {
            peer.asked_for = (mine, settled);
            self.counters.digests += 1;
            self.ask_for_all(now, from);
        }
    }

    /// Asks a peer for all that it holds and we do not hold alike.
    pub(super) fn ask_for_all(&mut self, now: Now, run: Run) {
        let hashes = Box::new(self.bucket_hashes());
        if let Some(peer) = self.peers.get_mut(&run) {
            peer.asked_at = Some(now.mono);
            peer.compared = Some(hashes.clone());
        }
        self.send(To::One(run), Message::Compare(hashes));
    }

    /// Takes note of what a peer holds of one stream.
    fn learn(&mut self, from: Run, origin: Run, mut holds: Holds) {
        let top = holds.held.top().max(holds.floor);
        if origin == self.me && top > self.streams[&self.me].sent {
            self.notify(Notice::OwnRunElsewhere(EntryId { run: self.me, seq: top }));
            return;
        }
        // Nobody says more than this at once.
        (holds.held, holds.volatile) = (highest(holds.held), highest(holds.volatile));
        if self.bug(Mutant::FloorTreatedAsHeld) {
            holds.held.insert(Seq(1), holds.floor);
        }
        let logged = self.log.is_there();
        if let Some(stream) = self.streams.get_mut(&origin) {
            // A floor alone says little of where a stream ended: somebody may claim any. What nobody waits for may be gone.
            let unowed = Seq(stream.owed.0.saturating_sub(1));
            stream.top = stream.top.max(holds.held.top()).max(holds.floor.min(unowed));
            // What was settled as missing and turned up after all is asked for again.
            for (first, last) in holds.held.iter() {
                stream.unsettle(first, last, logged);
            }
        }
        if let Some(peer) = self.peers.get_mut(&from).filter(|peer| peer.live) {
            peer.learn(origin, holds);
        }
        self.look_for_holes(origin);
    }

    fn hear_hello(&mut self, now: Now, from: Run, hello: Hello) {
        let Hello { name, endpoints, hears, knows, wall_ms } = hello;
        self.hear_time(now, from, wall_ms);
        let me = self.streams[&self.me].hash;
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let renamed = peer.name != name && name.len() <= NAME_BYTES_MAX;
        if renamed {
            peer.name = name;
        }
        peer.endpoints = endpoints.into_iter().take(ADDRESSES_MAX).collect();
        let heard = std::mem::replace(&mut peer.hears_us, hears.contains(&me));
        let newly = !heard && peer.hears_us;
        let told_all = peer.told_all;
        if peer.hears_us {
            peer.greet_at = None;
        }
        self.judge(now, from);
        if newly {
            // It may not know, or have forgotten in a silence, that we hear it; and what it was asked before is lost.
            self.greet(now, from);
            if !told_all {
                self.ask_for_all(now, from);
            }
        }
        if renamed {
            self.notify(Notice::Peer(from));
        }
        for (run, addresses) in knows.into_iter().take(KNOWS_MAX) {
            let linked = self.peers.get(&run).is_some_and(|peer| peer.linked);
            if run != self.me && !linked {
                let addresses = addresses.into_iter().take(ADDRESSES_MAX).collect();
                self.notify(Notice::Named { run, addresses, by: from });
            }
        }
    }

    fn hear_goodbye(&mut self, now: Now, from: Run, sent: Seq) {
        if self.bug(Mutant::GoodbyeIgnored) {
            return;
        }
        if let Some(stream) = self.streams.get_mut(&from) {
            stream.goodbye = true;
            stream.sent = stream.sent.max(sent);
            stream.top = stream.top.max(sent);
        }
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.gone = true;
        }
        self.judge(now, from);
        self.look_for_holes(from);
    }

    fn answer_digest(&mut self, now: Now, from: Run, hashes: &[RunHash]) {
        let runs: Vec<Run> = hashes.iter().filter_map(|hash| self.runs.get(hash).copied()).collect();
        self.tell(now, from, runs, None);
    }

    fn answer_compare(&mut self, now: Now, from: Run, theirs: &[u64; BUCKETS]) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if peer.answered_at.is_some_and(|at| now.mono - at < DIGEST_ANSWER_EVERY) {
            return;
        }
        peer.answered_at = Some(now.mono);
        let ours = self.bucket_hashes();
        let same = (0..BUCKETS).filter(|at| ours[*at] == theirs[*at]).fold(0u64, |same, at| same | 1 << at);
        let differs = |stream: &Stream| same >> bucket(stream.hash) & 1 == 0;
        let runs = self.streams.iter().filter(|(_, stream)| differs(stream)).map(|(run, _)| *run).collect();
        self.tell(now, from, runs, Some((same, token(theirs))));
    }

    /// Tells a peer what is held of these runs; with `compared`, the buckets that are the same and what was asked, this is
    /// all that differs.
    fn tell(&mut self, now: Now, to: Run, runs: Vec<Run>, compared: Option<(u64, u64)>) {
        let mut holdings: Vec<Holding> = runs.into_iter().flat_map(|run| self.holdings(now, run)).collect();
        loop {
            let rest = holdings.split_off(holdings.len().min(HOLDINGS_MAX));
            let all = compared.is_some() && rest.is_empty();
            let (same, answers) = compared.filter(|_| all).unwrap_or_default();
            let digest = Digest { holdings, all, same, answers };
            self.send(To::One(to), Message::Digest(digest));
            if rest.is_empty() {
                break;
            }
            holdings = rest;
        }
    }

    /// All that is held of a stream, in as many parts as it takes.
    fn holdings(&self, now: Now, run: Run) -> Vec<Holding> {
        let Some(stream) = self.streams.get(&run) else { return Vec::new() };
        let over = run != self.me && self.is_over(now, run);
        let volatile = self.volatile(stream);
        let holding = |held: RangeSet| {
            let volatile = coarse(&volatile, &held);
            Holding { run, floor: stream.floor, held, volatile, newest: stream.newest, over }
        };
        parts(stream.held()).into_iter().map(holding).collect()
    }

    /// In buckets that are the same on both sides, a peer holds what we hold, as far as we hold it since we asked. Answers
    /// `answers` something that was asked before, it says nothing of what we hold now.
    fn infer(&mut self, from: Run, same: u64, answers: u64) -> bool {
        let ours = self.bucket_hashes();
        let asked = self.peers.get_mut(&from).and_then(|peer| peer.compared.take_if(|asked| token(asked) == answers));
        let Some(compared) = asked else { return false };
        let sure = |at: usize| same >> at & 1 == 1 && ours[at] == compared[at];
        let alike: Vec<Run> =
            self.streams.iter().filter(|(_, stream)| sure(bucket(stream.hash))).map(|(run, _)| *run).collect();
        for run in alike {
            let Some(stream) = self.streams.get(&run) else { continue };
            let (held, volatile) = (stream.held(), self.volatile(stream));
            let holds = Holds { floor: stream.floor, held, volatile };
            if let Some(peer) = self.peers.get_mut(&from).filter(|peer| peer.live) {
                peer.holds.insert(run, holds);
            }
        }
        true
    }

    fn hear_digest(&mut self, now: Now, from: Run, digest: Digest) {
        let Digest { holdings, all, same, answers } = digest;
        let all = all && self.infer(from, same, answers);
        if all {
            // Its earlier lives are told of in this one.
            let me = from;
            let earlier = |run: &Run, peer: &Peer| {
                run.node == me.node && *run != me && !peer.linked && peer.status == Status::Down
            };
            for (run, peer) in &mut self.peers {
                if earlier(run, peer) {
                    (peer.holds, peer.in_parts) = Default::default();
                }
            }
        }
        if let Some(peer) = self.peers.get_mut(&from).filter(|_| all) {
            peer.told_all = true;
            peer.told_for = Some(peer.asked_for);
        }
        for Holding { run, floor, held, volatile, newest, over } in holdings {
            let live = self.peers.get(&run).is_some_and(|peer| peer.live);
            let old = newest > Hlc::default() && self.is_old(now, run, newest);
            if old || self.stream(now, run).is_none() {
                self.counters.refused += u64::from(old);
                self.turn_away(run);
                continue;
            }
            let Some(stream) = self.streams.get_mut(&run) else { continue };
            stream.over |= over && !live;
            let top = held.top().max(floor);
            if run == from {
                stream.sent = stream.sent.max(top);
            }
            // Of a stream not its own, somebody who has nothing says nothing.
            if top > Seq(0) || run == from {
                self.meet(run, top, Some(newest));
            }
            self.learn(from, run, Holds { floor, held, volatile });
        }
    }

    /// Remembers not to ask about a run again, for now.
    pub(super) fn turn_away(&mut self, run: Run) {
        if self.unwelcome.len() >= UNWELCOME_MAX {
            self.unwelcome.clear();
        }
        self.unwelcome.insert(run.hash());
    }

    /// Everything that is said without being asked, if it is due.
    pub(super) fn speak(&mut self, now: Now) {
        let due: Vec<Run> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.greet_at.is_some_and(|at| at <= now.mono))
            .map(|(run, _)| *run)
            .collect();
        for run in due {
            self.greet(now, run);
            if let Some(peer) = self.peers.get_mut(&run) {
                peer.greet_at = GREETINGS.get(peer.greeted as usize).map(|wait| now.mono + *wait);
                peer.greeted += 1;
            }
        }
        if self.hello_at <= now.mono {
            let regular = self.regular_hello_at <= now.mono;
            if regular {
                self.regular_hello_at = now.mono + HELLO_EVERY;
            }
            self.hello_at = self.regular_hello_at;
            // So everybody is named now and then, whoever missed whom.
            let (newest, in_turn) = if regular { (KNOWS_MAX / 2, KNOWS_MAX / 2) } else { (KNOWS_OF_NEWS, 0) };
            let hello = self.hello(now, newest, in_turn);
            self.send(To::All, Message::Hello(hello));
        }
        if self.beat_at <= now.mono {
            let regular = self.regular_at <= now.mono;
            if regular {
                self.regular_at = now.mono + BEAT_EVERY;
            }
            self.beat_at = now.mono + BEAT_EVERY;
            self.hash_settled(now.mono);
            if regular {
                self.look_for_lost(now);
            }
            let beat = self.beat(now, regular);
            self.send(To::All, Message::Heartbeat(beat));
        }
    }

    /// What is held of `origin` changed: it is in one of the next heartbeats.
    pub(super) fn mark(&mut self, now: Now, origin: Run) {
        self.hashes.touch(origin);
        self.list(origin, false);
        self.beat_at = self.beat_at.min(now.mono + BEAT_AFTER_NEWS);
        self.deadline = self.deadline.min(self.beat_at);
    }

    fn list(&mut self, origin: Run, first: bool) {
        let Some(stream) = self.streams.get_mut(&origin) else { return };
        if std::mem::replace(&mut stream.moved, true) {
            return;
        }
        if first {
            self.moved.push_front(origin);
        } else {
            self.moved.push_back(origin);
        }
    }

    /// What changed since the last beat. Once a second also our own stream and a few others in turn, changed or not: a
    /// beat that was lost does no lasting harm. Of what takes more ranges than a mark, a further part is told in its turn.
    fn beat(&mut self, now: Now, regular: bool) -> Heartbeat {
        if regular {
            self.list(self.me, true);
            let after = (Bound::Excluded(self.listed), Bound::Unbounded);
            // Who has nothing of a stream not his own says nothing of it.
            let worth =
                |(run, stream): &(&Run, &Stream)| **run == self.me || stream.floor > Seq(0) || !stream.is_bare();
            let turn = self.streams.range(after).chain(&self.streams).filter(worth);
            let turn: Vec<Run> = turn.map(|(run, _)| *run).take(MARKS_IN_TURN).collect();
            self.listed = turn.last().copied().unwrap_or(self.listed);
            for run in turn {
                if let Some(stream) = self.streams.get_mut(&run) {
                    stream.in_part = stream.held().ranges_len() > RANGES_MAX;
                }
                self.list(run, false);
            }
        }
        let mut marks = Vec::new();
        let mut bytes = 0;
        while let Some(run) = self.moved.front().copied() {
            let Some(stream) = self.streams.get(&run) else {
                self.moved.pop_front();
                continue;
            };
            let (all, in_part) = (stream.held(), stream.in_part);
            let lowest = all.bottom();
            let mut held = highest(all.clone());
            if in_part {
                held = part(&all, stream.told_to.min(held.bottom()));
            }
            let volatile = coarse(&self.volatile(stream), &held);
            bytes += 24 + 18 * (held.ranges_len() + volatile.ranges_len());
            if bytes > MARK_BYTES_MAX && !marks.is_empty() {
                break;
            }
            let told_to = Some(held.bottom()).filter(|told_to| *told_to > lowest);
            marks.push(Mark { run: stream.hash, floor: stream.floor, held, volatile });
            self.moved.pop_front();
            let Some(stream) = self.streams.get_mut(&run) else { continue };
            if in_part {
                // What is news is at its top, and has its turn, too.
                (stream.in_part, stream.told_to) = (false, told_to.unwrap_or(Seq(u64::MAX)));
                self.moved.push_back(run);
            } else {
                stream.moved = false;
            }
        }
        Heartbeat { sent: self.streams[&self.me].sent, marks, settled: self.hashes.settled(), wall_ms: now.wall_ms }
    }

    fn greet(&mut self, now: Now, run: Run) {
        let hello = self.hello(now, KNOWS_MAX, 0);
        self.send(To::One(run), Message::Hello(hello));
    }

    /// Something in our hello changed.
    pub(super) fn greet_soon(&mut self, now: Now) {
        self.hello_at = self.hello_at.min(now.mono + HELLO_AFTER_NEWS);
        self.deadline = self.deadline.min(self.hello_at);
    }

    /// A hello that names the `newest` peers, those whose state changed last, and some of the others in turn.
    fn hello(&self, now: Now, newest: usize, in_turn: usize) -> Hello {
        let mut live: Vec<(&Run, &Peer)> = self.peers.iter().filter(|(_, peer)| peer.live).collect();
        let hears = live.iter().map(|(_, peer)| peer.hash).collect();
        live.sort_by_key(|(_, peer)| Reverse(peer.status_at));
        let (news, others) = live.split_at(newest.min(live.len()));
        let turn = (now.mono.0 / HELLO_EVERY.as_millis() as u64) as usize * in_turn;
        let others = others.iter().cycle().skip(turn % others.len().max(1)).take(in_turn.min(others.len()));
        let knows = news.iter().chain(others).map(|(run, peer)| {
            let mut addresses: Vec<SocketAddr> = peer.address.into_iter().collect();
            addresses.extend(peer.endpoints.iter().filter(|address| Some(**address) != peer.address));
            addresses.truncate(ADDRESSES_MAX);
            (**run, addresses)
        });
        let (name, endpoints) = (self.name.clone(), self.endpoints.clone());
        Hello { name, endpoints, hears, knows: knows.collect(), wall_ms: now.wall_ms }
    }
}
