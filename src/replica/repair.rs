//! What was asked for and has not come yet.
//!
//! Also what is asked next, how others are served, and when something counts as gone. One request out for each range; a
//! request that brings nothing within its time-out is given up, and its range is asked of another peer after a back-off
//! with jitter.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use super::batch::{Author, Draft};
use super::clock::{BUILD_MS, Mono, Now};
use super::event::{Kept, Load, Missing, Notice, Span, To};
use super::liveness::{Peer, Status};
use super::message::{Message, Repair, Request};
use super::ranges::RangeSet;
use super::{Mutant, RANGES_MAX, Replica, Source};
use crate::id::{Run, Seq};

/// A request asks for at most so many bytes.
pub const REQUEST_BYTES_MAX: u32 = 128 * 1024;
/// Requests out to one peer.
pub const REQUESTS_PER_PEER_MAX: usize = 2;
/// Requests out in all.
pub const REQUESTS_MAX: usize = 16;
/// A request that brought nothing for so long is given up.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// After a request that brought so many bytes its place rests for some times as long as the answer took, within a bound.
const REST_BYTES_MIN: u64 = 64 * 1024;
const REST_TIMES: u32 = 5;
const REST_MAX: Duration = Duration::from_millis(70);
/// What nobody has for this long is missing for good.
const LOST_AFTER: Duration = Duration::from_secs(10);
/// Seqs in one request, so that a long repair is spread over peers.
const REQUEST_SEQS_MAX: u64 = 16 * 1024;
/// Bytes of batches in one repair message, unless one batch alone is larger.
const REPAIR_BYTES_MAX: usize = 47 * 1024;
/// Streams looked at in one go for what to ask.
const PLANNED_MAX: usize = 64;
/// And so soon the next ones are.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Of those that wait for a request to end, so many are looked at for each that ends.
const UNPARKED_MAX: usize = 8;
const BACKOFF_MS_MIN: u64 = 100;
const BACKOFF_MS_MAX: u64 = 2_000;

/// A request on its way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Flight {
    pub source: Run,
    pub origin: Run,
    pub first: Seq,
    pub last: Seq,
    pub bytes: u64,
    pub asked_at: Mono,
    pub deadline: Mono,
    /// It is answered; until its deadline its place stays taken, so that a long repair leaves time for live traffic.
    pub rests: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Repairs {
    pub flights: Vec<Flight>,
    /// Origins whose repair failed: how often, when to try again, and who failed last.
    backoff: BTreeMap<Run, (u32, Mono, Run)>,
    /// Origins that wait until a request has ended.
    parked: BTreeSet<Run>,
    /// Origins that wait for the end of their back-off.
    backed_off: BTreeSet<(Mono, Run)>,
    /// Requests that have ended since requests were last planned.
    ended: usize,
    /// The stream that was parked and went on last.
    unparked: Option<Run>,
    /// The stream that was looked at last.
    looked_at: Option<Run>,
    /// When to look at the next ones, if nothing happens before.
    look_at: Option<Mono>,
}

impl Repairs {
    /// What of `first..=last` of `origin` is not asked for yet: the first such stretch.
    pub fn unasked(&self, origin: Run, first: Seq, last: Seq) -> Option<(Seq, Seq)> {
        let mut out = RangeSet::new();
        for flight in self.flights.iter().filter(|flight| flight.origin == origin && !flight.rests) {
            out.insert(flight.first, flight.last);
        }
        out.missing(first, last).first().copied()
    }

    /// How many requests are out to `source`.
    pub fn load(&self, source: Run) -> usize {
        self.flights.iter().filter(|flight| flight.source == source).count()
    }

    /// Whether somebody is asked for as much as may be at once.
    pub fn is_busy(&self) -> bool {
        self.flights.iter().any(|flight| self.load(flight.source) >= REQUESTS_PER_PEER_MAX)
    }

    /// Whether `origin` may be asked for by now; else when.
    pub fn not_before(&self, origin: Run, now: Mono) -> Option<Mono> {
        self.backoff.get(&origin).map(|(_, at, _)| *at).filter(|at| *at > now)
    }

    /// Who failed last to send of `origin`.
    pub fn failed_last(&self, origin: Run) -> Option<Run> {
        self.backoff.get(&origin).map(|(_, _, source)| *source)
    }

    /// Takes note of an answer; true if the request it belongs to is done by it.
    pub fn answered(
        &mut self,
        now: Mono,
        source: Run,
        origin: Run,
        first: Seq,
        through: Seq,
        bytes: u64,
    ) -> Option<Flight> {
        let asked = (source, origin, first);
        let at = self.flights.iter().position(|f| (f.source, f.origin, f.first) == asked && !f.rests)?;
        let flight = &mut self.flights[at];
        flight.bytes += bytes;
        flight.deadline = now + REQUEST_TIMEOUT;
        self.backoff.remove(&origin);
        let done = through >= flight.last || flight.bytes >= u64::from(REQUEST_BYTES_MAX);
        let progress = *flight;
        let rest = ((now - flight.asked_at) * REST_TIMES).min(REST_MAX);
        if done && flight.bytes >= REST_BYTES_MIN && rest > Duration::ZERO {
            (flight.rests, flight.deadline) = (true, now + rest);
        } else if done {
            self.flights.swap_remove(at);
            self.ended += 1;
        }
        Some(progress)
    }

    /// Gives up requests whose time is over, and those to `gone`.
    pub fn give_up(&mut self, now: Mono, gone: Option<Run>, jitter: u64) {
        let (backoff, ended) = (&mut self.backoff, &mut self.ended);
        self.flights.retain(|flight| {
            let keep = flight.deadline > now && Some(flight.source) != gone;
            *ended += usize::from(!keep);
            if !keep && !flight.rests {
                let entry = backoff.entry(flight.origin).or_insert((0, now, flight.source));
                let wait = (BACKOFF_MS_MIN << entry.0.min(8)).min(BACKOFF_MS_MAX);
                // A source that has gone says nothing of the others: ask them at once.
                let wait = if gone.is_some() { 0 } else { wait / 2 + jitter % (wait / 2 + 1) };
                *entry = (entry.0 + 1, now + Duration::from_millis(wait), flight.source);
            }
            keep
        });
        if backoff.len() > 4096 {
            backoff.clear();
        }
    }

    /// Those that need not wait any more: whose back-off is over, and some for each request that has ended.
    fn unpark(&mut self, now: Mono) -> Vec<Run> {
        let mut unparked = Vec::new();
        while let Some((_, run)) = self.backed_off.first().filter(|(at, _)| *at <= now).copied() {
            self.backed_off.pop_first();
            unparked.push(run);
        }
        for _ in 0..std::mem::take(&mut self.ended).saturating_mul(UNPARKED_MAX).min(self.parked.len()) {
            let after = self.unparked.map_or(Bound::Unbounded, Bound::Excluded);
            let next = self.parked.range((after, Bound::Unbounded)).next().or(self.parked.first()).copied();
            self.unparked = next;
            if let Some(run) = next {
                self.parked.remove(&run);
                unparked.push(run);
            }
        }
        unparked
    }

    /// How much is remembered, for the simulator.
    #[cfg(all(test, feature = "sim"))]
    pub fn remembered(&self) -> usize {
        self.flights.len() + self.backoff.len() + self.parked.len() + self.backed_off.len()
    }

    /// The next deadline or retry after `now`.
    pub fn deadline(&self, now: Mono) -> Option<Mono> {
        let flights = self.flights.iter().map(|flight| flight.deadline);
        let backoff = self.backoff.values().map(|(_, at, _)| *at);
        flights.chain(backoff.chain(self.look_at).filter(|at| *at > now)).min()
    }
}

impl Replica {
    /// Answers a request with what is held, oldest first: from memory if all of it is there, else through the log.
    pub(super) fn serve(&mut self, from: Run, request: Request) {
        let Request { origin, first, last, bytes_max } = request;
        self.counters.served += 1;
        let bytes_max = bytes_max.min(REQUEST_BYTES_MAX);
        let Some(stream) = self.streams.get(&origin).filter(|_| first <= last) else {
            return self.answer(from, origin, first, last.max(first), Vec::new());
        };
        let on_disk = stream.stored.without(&stream.have);
        if on_disk.touches(first, last) {
            self.load(Load { to: from, span: Span { run: origin, first, last }, bytes_max });
            return;
        }
        let mut batches: Vec<Kept> = Vec::new();
        let (mut through, mut bytes) = (last, 0);
        for kept in stream.kept(first, last) {
            if bytes >= bytes_max as usize {
                through = Seq(kept.batch.first().0 - 1);
                break;
            }
            bytes += kept.batch.bytes().len();
            batches.push(kept);
        }
        self.answer(from, origin, first, through, batches);
    }

    /// Sends what was asked for, in messages of a size that lets others between them.
    pub(super) fn answer(&mut self, to: Run, origin: Run, first: Seq, through: Seq, batches: Vec<Kept>) {
        let recut = self.bug(Mutant::BatchRecutOnRepair);
        let mut answer = Repair { origin, first, from: first, through, batches: Vec::new() };
        let mut bytes = 0;
        for Kept { batch, arrived_ms } in batches {
            let mut batch = batch;
            if recut && batch.count() > 1 {
                let drafts: Vec<Draft> =
                    batch.entries().flatten().take(1).map(|entry| Draft::new(entry.room, entry.payload)).collect();
                let (key, first, hlc) = (&self.key, batch.first(), batch.hlc());
                let author = Author { key, origin, name: "", first, hlc, previous: [0; 32] };
                batch = author.encode(&drafts);
            }
            let batch_bytes = batch.bytes().len();
            if bytes > 0 && bytes + batch_bytes > REPAIR_BYTES_MAX {
                answer.through = Seq(batch.first().0 - 1).max(first);
                let rest = Repair { from: answer.through.next(), batches: Vec::new(), ..answer };
                let part = std::mem::replace(&mut answer, rest);
                self.send(To::One(to), Message::Repair(part));
                bytes = 0;
            }
            bytes += batch_bytes;
            answer.batches.push((batch, arrived_ms));
        }
        answer.through = through.max(first);
        self.send(To::One(to), Message::Repair(answer));
    }

    pub(super) fn hear_repair(&mut self, now: Now, from: Run, repair: Repair) {
        let Repair { origin, first, from: part, through, batches } = repair;
        let mut bytes = 0;
        for (batch, arrived_ms) in batches {
            bytes += batch.bytes().len() as u64;
            if batch.origin() != origin {
                self.counters.conflicts += 1;
                continue;
            }
            // Only where a batch's own time says no age, its age counts from its first arrival anywhere.
            let passed_on = batch.hlc().wall_ms() < BUILD_MS && (BUILD_MS..now.wall_ms).contains(&arrived_ms);
            let arrived_ms = if passed_on { arrived_ms } else { now.wall_ms };
            self.store(now, Kept { batch, arrived_ms }, Source::Repair);
        }
        let Some(flight) = self.repairs.answered(now.mono, from, origin, first, through, bytes) else { return };
        // What was asked for, is covered by the answer and did not come, this peer does not have.
        let holds = self.peers.get_mut(&from).and_then(|peer| peer.holds.get_mut(&origin));
        if let (Some(stream), Some(holds)) = (self.streams.get(&origin), holds) {
            for (first, last) in stream.seen.missing(part.max(flight.first), through.min(flight.last)) {
                holds.held.remove(first, last);
                holds.volatile.remove(first, last);
            }
        }
        self.look_for_holes(origin);
    }

    /// Asks for what is missing, as far as somebody has it and requests are left.
    pub(super) fn plan(&mut self, now: Now) {
        for run in self.repairs.unpark(now.mono) {
            if self.lacking.contains(&run) {
                self.unplanned.insert(run);
            }
        }
        let mut free = self.may_ask();
        // Somebody may claim to hold thousands of streams: their turn comes, but not with each message.
        let mut looked = 0;
        while let Some(origin) = self.next_unplanned().filter(|_| free && looked < PLANNED_MAX) {
            self.unplanned.remove(&origin);
            self.repairs.looked_at = Some(origin);
            looked += 1;
            if let Some(at) = self.repairs.not_before(origin, now.mono) {
                self.repairs.backed_off.insert((at, origin));
                continue;
            }
            let limit = self.limit(origin);
            let Some(stream) = self.streams.get(&origin) else { continue };
            let (missing, full) = (stream.missing(limit, self.log.is_there()), stream.is_full());
            if missing.is_empty() {
                self.lacking.remove(&origin);
            }
            let mut offered = RangeSet::new();
            for (run, peer) in &self.peers {
                if let Some(holds) = peer.holds.get(&origin).filter(|_| self.is_free(*run, peer)) {
                    offered.union(&holds.held);
                }
            }
            let mut wanting = missing.iter().any(|(first, last)| !offered.touches(*first, *last));
            for (first, last) in missing.into_iter().filter(|(first, last)| offered.touches(*first, *last)) {
                if !free {
                    break;
                }
                let mut from = first;
                while let Some((first, last)) = self.repairs.unasked(origin, from, last).filter(|_| free) {
                    let Some((source, first, last)) = self.choose(origin, first, last, full) else {
                        wanting = true;
                        break;
                    };
                    // Anything else would be refused.
                    let logged = self.log.is_there();
                    if full && !self.streams.get(&origin).is_some_and(|stream| stream.goes_on(first, logged)) {
                        break;
                    }
                    from = last.next();
                    self.ask(now, source, origin, first, last);
                    free = self.may_ask();
                    if from == last {
                        break;
                    }
                }
            }
            // Whoever has it may only be busy; what nobody has is looked at again when somebody says so.
            if !free || (wanting && self.repairs.is_busy()) {
                self.repairs.parked.insert(origin);
            }
        }
        if free && self.repairs.flights.is_empty() && !self.unplanned.is_empty() {
            self.repairs.look_at = Some(now.mono + LOOK_AGAIN);
        }
    }

    /// The stream whose turn it is.
    fn next_unplanned(&self) -> Option<Run> {
        let after = self.repairs.looked_at.map_or(Bound::Unbounded, Bound::Excluded);
        self.unplanned.range((after, Bound::Unbounded)).next().or(self.unplanned.first()).copied()
    }

    /// Whether there is anybody to ask.
    fn may_ask(&self) -> bool {
        !self.log.is_behind()
            && self.repairs.flights.len() < REQUESTS_MAX
            && self.peers.iter().any(|(run, peer)| self.is_free(*run, peer))
    }

    /// Whether this peer may be asked for more.
    fn is_free(&self, run: Run, peer: &Peer) -> bool {
        let askable = peer.is_source() || (peer.live && self.bug(Mutant::OneWayPeerAsked));
        askable && self.repairs.load(run) < REQUESTS_PER_PEER_MAX
    }

    /// A peer that has the beginning of `first..=last`, or what comes next in it, and the stretch to ask it for.
    fn choose(&mut self, origin: Run, first: Seq, last: Seq, full: bool) -> Option<(Run, Seq, Seq)> {
        let failed = self.repairs.failed_last(origin);
        let mut best: Vec<(Run, Seq, Seq)> = Vec::new();
        for (run, peer) in &self.peers {
            if !self.is_free(*run, peer) {
                continue;
            }
            let Some(holds) = peer.holds.get(&origin) else { continue };
            let Some((start, end)) =
                holds.held.iter().find(|(_, end)| *end >= first).filter(|(start, _)| *start <= last)
            else {
                continue;
            };
            let start = start.max(first);
            let end = end.min(last).min(Seq(start.0.saturating_add(REQUEST_SEQS_MAX - 1)));
            if best.first().is_none_or(|other| start < other.1) {
                best.clear();
            }
            if best.first().is_none_or(|other| start == other.1) {
                best.push((*run, start, end));
            }
        }
        if best.len() > 1 {
            best.retain(|(run, ..)| Some(*run) != failed);
        }
        let pick = self.draw() as usize % best.len().max(1);
        let (source, start, end) = best.get(pick).copied()?;
        Some((source, start, if full { end } else { self.further(source, origin, start, end, last) }))
    }

    /// How far one request goes: over what only this peer has, and over what nobody has.
    fn further(&self, source: Run, origin: Run, start: Seq, mut end: Seq, last: Seq) -> Seq {
        let last = last.min(Seq(start.0.saturating_add(REQUEST_SEQS_MAX - 1)));
        let Some(holds) = self.peers.get(&source).and_then(|peer| peer.holds.get(&origin)) else { return end };
        let mut others =
            self.peers.iter().filter(|(run, _)| **run != source).filter_map(|(_, peer)| peer.holds.get(&origin));
        if end < last && !others.any(|holds| holds.held.touches(end.next(), last)) {
            end = end.max(holds.held.within(start, last).top());
        }
        end
    }

    fn ask(&mut self, now: Now, source: Run, origin: Run, first: Seq, last: Seq) {
        self.counters.requests += 1;
        self.repairs.flights.push(Flight {
            source,
            origin,
            first,
            last,
            bytes: 0,
            asked_at: now.mono,
            deadline: now.mono + REQUEST_TIMEOUT,
            rests: false,
        });
        let request = Request { origin, first, last, bytes_max: REQUEST_BYTES_MAX };
        self.send(To::One(source), Message::Request(request));
    }

    /// Settles what nobody has: its run is over, or says itself that it lacks it, and every peer that is up has said so.
    pub(super) fn look_for_lost(&mut self, now: Now) {
        let up = || self.peers.values().filter(|peer| peer.status == Status::Up);
        if up().any(|peer| !peer.told_all) {
            return;
        }
        let (mut lost, logged) = (Vec::new(), self.log.is_there());
        for origin in &self.lacking {
            let Some(stream) = self.streams.get(origin) else { continue };
            let own = self.peers.get(origin).filter(|peer| peer.status == Status::Up);
            let own_word = own.and_then(|peer| peer.holds.get(origin));
            if own_word.is_none() && *origin != self.me && !self.is_over(now, *origin) {
                continue;
            }
            let floor = up().filter_map(|peer| Some(peer.holds.get(origin)?.floor)).max().unwrap_or_default();
            // Nobody lets go of more than there was: than a running origin has said, than anybody had of one that is over.
            let floor = floor.min(if own_word.is_some() { stream.sent } else { stream.sent.max(stream.top) });
            // Only a hole is settled, and what was let go: a tail that nobody has just waits.
            let limit = stream.seen.top().max(floor);
            let mut nobody: RangeSet = stream.missing(limit, logged).into_iter().collect();
            for holds in up().filter_map(|peer| peer.holds.get(origin)) {
                nobody = nobody.without(&holds.held);
            }
            lost.push((*origin, nobody, floor));
        }
        for (origin, nobody, floor) in lost {
            let Some(stream) = self.streams.get_mut(&origin) else { continue };
            // What is settled was with nobody all the time, not only now.
            let (since, always) = &mut stream.lost;
            *always = always.without(&always.without(&nobody));
            if always.is_empty() {
                (*since, *always) = (now.mono, nobody);
                continue;
            }
            if now.mono - *since < LOST_AFTER {
                continue;
            }
            let mut settled = std::mem::take(always);
            // What some claim to hold between what nobody has makes no more ranges than can be remembered.
            if settled.ranges_len() + stream.settled.ranges_len() > RANGES_MAX {
                settled = stream.missing(settled.top(), logged).into_iter().collect();
            }
            for (first, last) in settled.iter() {
                let reason = if last <= floor { Missing::Expired } else { Missing::Lost };
                self.settle(Span { run: origin, first, last }, reason);
            }
            self.admit(origin);
            self.look_for_holes(origin);
        }
    }
    /// Declares a hole missing for good, and tells of what readers were owed of it.
    pub(super) fn settle(&mut self, span: Span, reason: Missing) {
        let Span { run: origin, first, last } = span;
        let start = self.start;
        let Some(stream) = self.streams.get_mut(&origin) else { return };
        let steps = stream.settle(first, last, start);
        self.hashes.touch(origin);
        let missing = last.0.saturating_add(1).saturating_sub(first.max(stream.owed).0);
        self.settle_on_disk(span);
        if missing > 0 {
            self.counters.missing = self.counters.missing.saturating_add(missing);
            self.outputs.push_back(super::Output::Notify(Notice::Gap { origin, missing, reason }));
        }
        self.step(origin, steps);
    }
}
