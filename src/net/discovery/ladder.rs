//! The ladder: whom to dial, and when.
//!
//! A [`Ladder`] is told what every rung found (mDNS, gossip, memory, seeds, a call from outside) and what became of dials
//! and links, and answers which address to dial next. It does no I/O, reads no clock and draws no randomness of its own.
//! All it holds is bounded. An address that nobody named for certain (a seed, a remembered one) stands for itself until
//! somebody answers there.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::apart::{Neighbours, Notice};
use super::{Candidate, is_dialable};
use crate::handle::FoundBy;
use crate::id::Run;
use crate::net::{Apart, DialError};

/// Peers, linked or not, that are known at a time. The one longest without news makes room.
pub(crate) const PEERS_MAX: usize = 256;
/// Addresses kept for one peer.
pub(crate) const ADDRESSES_MAX: usize = 8;
/// Dials under way at a time; the others wait their turn.
pub(crate) const DIALS_MAX: usize = 16;

const BACK_OFF_MIN: Duration = Duration::from_millis(100);
/// The longest wait for a peer that gave a sign within [`RECENT`].
const BACK_OFF_RECENT: Duration = Duration::from_secs(2);
/// The longest wait for any other.
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
const RECENT: Duration = Duration::from_secs(3_600);
/// A peer without news or link for so long is forgotten.
const FORGET: Duration = Duration::from_secs(86_400);
const REFUSALS: usize = 3;
const REFUSED_WITHIN: Duration = Duration::from_secs(3);

/// Whom to dial next. See the module's head.
///
/// The caller takes addresses from [`poll`](Ladder::poll) until it answers none, dials them, and reports each by
/// [`linked`](Ladder::linked) or [`failed`](Ladder::failed); it asks again after every report and at
/// [`next_wake`](Ladder::next_wake).
#[derive(Debug)]
pub(crate) struct Ladder {
    own: Run,
    neighbours: Neighbours,
    random: u64,
    peers: Vec<Peer>,
    dialling: Vec<SocketAddr>,
    /// Addresses at which this node met itself.
    itself: VecDeque<SocketAddr>,
    /// When the next door is due; unknown after a change.
    wake: Option<Option<Instant>>,
}

#[derive(Debug)]
struct Peer {
    /// None until somebody answered or was named here.
    run: Option<Run>,
    found_by: FoundBy,
    /// When it was last found or heard.
    known: Instant,
    /// When it last gave a sign of its own: it was heard, called, or announced itself. Gossip and memory are hearsay; a
    /// seed gets the benefit of the doubt.
    sign: Option<Instant>,
    links: usize,
    /// A link is wanted beside the one that is there.
    second: bool,
    doors: Vec<Door>,
}

/// One address of a peer.
#[derive(Debug)]
struct Door {
    address: SocketAddr,
    failures: u32,
    due: Instant,
    dialled: Option<Instant>,
    /// The peer has answered here.
    proven: bool,
    /// The last dials that were refused, [`REFUSALS`] of them at most.
    refused: VecDeque<Instant>,
}

impl Ladder {
    /// A ladder that knows nobody, for the node that lives as `own`, on this mesh, with this version of the wire.
    pub(crate) fn new(own: Run, mesh: &str, version: u8, seed: u64) -> Ladder {
        Ladder {
            own,
            neighbours: Neighbours::new(mesh, version),
            random: seed,
            peers: Vec::new(),
            dialling: Vec::new(),
            itself: VecDeque::new(),
            wake: None,
        }
    }

    /// A rung has found somebody. News from mDNS is dialled at once, whatever the back-off. Answers whether it is to be
    /// kept apart.
    pub(crate) fn found(&mut self, now: Instant, candidate: Candidate) -> bool {
        if candidate.run == Some(self.own) {
            return false;
        }
        let apart = self.neighbours.judge(&candidate);
        let Candidate { addresses, run, found_by, .. } = candidate;
        match (&apart, run) {
            (Some(apart), _) => addresses.first().into_iter().for_each(|address| self.apart(now, *address, apart)),
            (None, Some(run)) => self.named(now, run, found_by, &addresses, found_by == FoundBy::Mdns),
            (None, None) => addresses.into_iter().for_each(|address| self.nameless(now, found_by, address)),
        }
        apart.is_some()
    }

    /// A peer has connected to us; it is reached at `address`. It is dialled back at once unless it is linked.
    pub(crate) fn called(&mut self, now: Instant, run: Run, address: SocketAddr) {
        if run != self.own {
            self.named(now, run, FoundBy::Gossip, &[address], true);
        }
    }

    /// A neighbour must be kept apart. The next [`notice`](Ladder::notice) says so, at most once a minute for each.
    pub(crate) fn apart(&mut self, now: Instant, address: SocketAddr, apart: &Apart) {
        self.neighbours.tell(now, address, apart);
    }

    /// Interfaces or addresses of this machine have changed: everybody may be reached now.
    pub(crate) fn interfaces_changed(&mut self, now: Instant) {
        self.wake = None;
        // What was our own address may be another's now.
        self.itself.clear();
        self.peers.iter_mut().for_each(|peer| peer.reset(now));
    }

    /// A dial became a link, or a peer that cannot be reached has opened one itself: `run` answers at `address`.
    pub(crate) fn linked(&mut self, now: Instant, run: Run, address: SocketAddr) {
        self.wake = None;
        self.dialling.retain(|dialling| *dialling != address);
        // Whoever was expected at this address is not there; a seed or a remembered address has found its node.
        let mut found_by = None;
        for peer in self.peers.iter_mut().filter(|peer| peer.run != Some(run)) {
            let doors = peer.doors.len();
            peer.doors.retain(|door| door.address != address);
            if peer.run.is_none() && peer.doors.len() < doors {
                found_by = Some(peer.found_by);
            }
        }
        self.drop_unreachable();
        self.named(now, run, found_by.unwrap_or(FoundBy::Gossip), &[address], false);
        if let Some(peer) = self.peer_mut(run) {
            peer.links += 1;
            peer.second = false;
            peer.gave_sign(now);
            peer.reset(now);
            peer.doors.iter_mut().for_each(|door| {
                door.refused.clear();
                door.proven |= door.address == address;
            });
        }
    }

    /// A link to `run` has ended. With the last one the peer is dialled again at once.
    pub(crate) fn unlinked(&mut self, now: Instant, run: Run) {
        self.wake = None;
        if let Some(peer) = self.peer_mut(run) {
            peer.links = peer.links.saturating_sub(1);
            peer.gave_sign(now);
            if peer.links == 0 {
                peer.reset(now);
            }
        }
        self.drop_unreachable();
    }

    /// A dial did not become a link.
    pub(crate) fn failed(&mut self, now: Instant, address: SocketAddr, error: &DialError) {
        self.wake = None;
        self.dialling.retain(|dialling| *dialling != address);
        match error {
            DialError::Itself => {
                if self.itself.len() == PEERS_MAX {
                    self.itself.pop_front();
                }
                self.itself.push_back(address);
                self.peers.iter_mut().for_each(|peer| peer.doors.retain(|door| door.address != address));
                self.drop_unreachable();
            }
            DialError::Apart(apart, _) => self.apart(now, address, apart),
            DialError::Refused | DialError::Unreachable | DialError::Stranger => {}
        }
        for peer in &mut self.peers {
            let recent = peer.sign.is_some_and(|sign| now.saturating_duration_since(sign) < RECENT);
            for door in peer.doors.iter_mut().filter(|door| door.address == address) {
                let longest = match error {
                    DialError::Refused | DialError::Unreachable if recent => BACK_OFF_RECENT,
                    _ => BACK_OFF_MAX,
                };
                door.failures = door.failures.saturating_add(1);
                door.due = now + back_off(&mut self.random, door.failures, longest);
                let refused = *error == DialError::Refused;
                door.refused.truncate(if refused { REFUSALS - 1 } else { 0 });
                if refused {
                    door.refused.push_front(now);
                }
            }
        }
        self.peers.retain(|peer| peer.links > 0 || now.saturating_duration_since(peer.known) < FORGET);
    }

    /// Whether the host of `run` has refused three dials within 3 s at an address where the peer had answered: its
    /// process is gone.
    pub(crate) fn refused_thrice(&self, run: Run) -> bool {
        let thrice = |door: &Door| {
            door.proven
                && door.refused.len() == REFUSALS
                && door.refused.front().zip(door.refused.back()).is_some_and(|(new, old)| *new - *old <= REFUSED_WITHIN)
        };
        self.peer(run).is_some_and(|peer| peer.doors.iter().any(thrice))
    }

    /// `run` was not heard for a while: it is dialled beside the link that is there, until that gives a link or the peer
    /// is [heard](Ladder::heard) again.
    pub(crate) fn second_dial(&mut self, now: Instant, run: Run) {
        self.wake = None;
        if let Some(peer) = self.peer_mut(run).filter(|peer| !peer.second) {
            peer.second = true;
            peer.reset(now);
        }
    }

    /// `run` lives: no second link is wanted.
    pub(crate) fn heard(&mut self, now: Instant, run: Run) {
        if let Some(peer) = self.peer_mut(run) {
            peer.gave_sign(now);
            if peer.second {
                peer.second = false;
                self.wake = None;
            }
        }
    }

    /// `run` said goodbye: it is not dialled again. A seed is, because another run may come up there.
    pub(crate) fn gone(&mut self, now: Instant, run: Run) {
        self.wake = None;
        let Some(place) = self.peers.iter().position(|peer| peer.run == Some(run)) else { return };
        let peer = self.peers.swap_remove(place);
        if peer.found_by == FoundBy::Seed {
            peer.doors
                .iter()
                .filter(|door| door.proven)
                .for_each(|door| self.nameless(now, FoundBy::Seed, door.address));
        }
    }

    /// The next address to dial now. It counts as being dialled until it is reported.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<SocketAddr> {
        if self.next_wake()? > now {
            return None;
        }
        let dialling = &self.dialling;
        let door = self
            .peers
            .iter_mut()
            .filter(|peer| peer.wants_link())
            .flat_map(|peer| &mut peer.doors)
            .filter(|door| door.due <= now && !dialling.contains(&door.address))
            // Fresh addresses go before those that failed often, so that many dead peers do not delay a new one.
            .min_by_key(|door| (door.failures, door.due))?;
        door.dialled = Some(now);
        let address = door.address;
        self.dialling.push(address);
        self.wake = None;
        Some(address)
    }

    /// When [`poll`](Ladder::poll) will have an address; none: only after something has happened.
    pub(crate) fn next_wake(&mut self) -> Option<Instant> {
        if let Some(wake) = self.wake {
            return wake;
        }
        let wake = if self.dialling.len() >= DIALS_MAX {
            None
        } else {
            self.peers
                .iter()
                .filter(|peer| peer.wants_link())
                .flat_map(|peer| &peer.doors)
                .filter(|door| !self.dialling.contains(&door.address))
                .map(|door| door.due)
                .min()
        };
        self.wake = Some(wake);
        wake
    }

    /// The next notice of a neighbour kept apart.
    pub(crate) fn notice(&mut self) -> Option<Notice> {
        self.neighbours.next()
    }

    /// How `run` was found first.
    pub(crate) fn found_by(&self, run: Run) -> Option<FoundBy> {
        self.peer(run).map(|peer| peer.found_by)
    }

    /// The addresses of `run`, those where it answered first.
    pub(crate) fn addresses(&self, run: Run) -> Vec<SocketAddr> {
        let mut doors: Vec<&Door> = self.peer(run).map(|peer| peer.doors.iter().collect()).unwrap_or_default();
        doors.sort_by_key(|door| !door.proven);
        doors.into_iter().map(|door| door.address).collect()
    }

    /// `run` was named at these addresses.
    fn named(&mut self, now: Instant, run: Run, found_by: FoundBy, addresses: &[SocketAddr], news: bool) {
        let fit: Vec<SocketAddr> =
            addresses.iter().copied().filter(|a| is_dialable(*a) && !self.itself.contains(a)).collect();
        if fit.is_empty() {
            return;
        }
        self.wake = None;
        // Of two who claim an address the later claim is followed, unless the earlier one is linked: who answers decides.
        for peer in self.peers.iter_mut().filter(|peer| peer.run != Some(run) && peer.links == 0) {
            peer.doors.retain(|door| !fit.contains(&door.address));
        }
        self.drop_unreachable();
        if self.peer(run).is_none() {
            if !self.make_room() {
                return;
            }
            self.peers.push(Peer::new(now, Some(run), found_by));
        }
        let Some(place) = self.peers.iter().position(|peer| peer.run == Some(run)) else { return };
        let peer = &mut self.peers[place];
        // A call or a word of others may come first; what discovery itself has found says more.
        peer.found_by = if peer.found_by == FoundBy::Gossip { found_by } else { peer.found_by };
        for address in fit {
            peer.add_door(now, address, &self.dialling);
        }
        if news {
            peer.gave_sign(now);
            peer.reset(now);
        }
    }

    /// Somebody may be at `address`.
    fn nameless(&mut self, now: Instant, found_by: FoundBy, address: SocketAddr) {
        let known = self.peers.iter().flat_map(|peer| &peer.doors).any(|door| door.address == address);
        let full = found_by == FoundBy::Memory && self.peers.len() >= PEERS_MAX;
        if known || full || !is_dialable(address) || self.itself.contains(&address) || !self.make_room() {
            return;
        }
        self.wake = None;
        let mut peer = Peer::new(now, None, found_by);
        peer.add_door(now, address, &self.dialling);
        self.peers.push(peer);
    }

    /// Whether there is room for one more peer, by letting go of the one longest without news if need be.
    fn make_room(&mut self) -> bool {
        if self.peers.len() < PEERS_MAX {
            return true;
        }
        let dialling = &self.dialling;
        let idle = |peer: &Peer| peer.links == 0 && !peer.doors.iter().any(|door| dialling.contains(&door.address));
        let peers = self.peers.iter().enumerate();
        let oldest = peers.filter(|(_, peer)| idle(peer)).min_by_key(|(_, peer)| peer.known).map(|(place, _)| place);
        oldest.map(|place| self.peers.swap_remove(place)).is_some()
    }

    fn drop_unreachable(&mut self) {
        self.peers.retain(|peer| peer.links > 0 || !peer.doors.is_empty());
    }

    fn peer(&self, run: Run) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.run == Some(run))
    }

    fn peer_mut(&mut self, run: Run) -> Option<&mut Peer> {
        self.peers.iter_mut().find(|peer| peer.run == Some(run))
    }
}

impl Peer {
    fn new(now: Instant, run: Option<Run>, found_by: FoundBy) -> Peer {
        let sign = (found_by == FoundBy::Seed).then_some(now);
        Peer { run, found_by, known: now, sign, links: 0, second: false, doors: Vec::new() }
    }

    fn gave_sign(&mut self, now: Instant) {
        self.known = now;
        self.sign = Some(now);
    }

    fn wants_link(&self) -> bool {
        self.links == 0 || self.second
    }

    /// Every address may be dialled at once again.
    fn reset(&mut self, now: Instant) {
        for door in &mut self.doors {
            door.failures = 0;
            // A neighbour that repeats itself does not make us dial without end.
            door.due = door.dialled.map_or(now, |at| now.max(at + BACK_OFF_MIN));
        }
    }

    fn add_door(&mut self, now: Instant, address: SocketAddr, dialling: &[SocketAddr]) {
        if self.doors.iter().any(|door| door.address == address) {
            return;
        }
        if self.doors.len() == ADDRESSES_MAX {
            let doors = self.doors.iter().enumerate();
            let worst = doors
                .filter(|(_, door)| !door.proven && !dialling.contains(&door.address))
                .max_by_key(|(_, door)| door.failures);
            let Some((place, _)) = worst else { return };
            self.doors.swap_remove(place);
        }
        self.doors.push(Door::new(now, address));
    }
}

impl Door {
    fn new(now: Instant, address: SocketAddr) -> Door {
        Door { address, failures: 0, due: now, dialled: None, proven: false, refused: VecDeque::new() }
    }
}

/// Twice as long after each failure, anywhere in the upper half, so that nodes that failed together part.
fn back_off(random: &mut u64, failures: u32, longest: Duration) -> Duration {
    let whole = (BACK_OFF_MIN * 2u32.saturating_pow(failures.min(16))).min(longest);
    whole / 2 + (whole / 2).mul_f64(unit(random))
}

/// The next random number of 0 to 1 (SplitMix64).
fn unit(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Epoch, NodeId};

    const SECOND: Duration = Duration::from_secs(1);

    fn run(n: u64) -> Run {
        let mut node = [0; 32];
        node[..8].copy_from_slice(&n.to_le_bytes());
        Run { node: NodeId(node), epoch: Epoch(n) }
    }

    fn at(n: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 47474))
    }

    fn ladder() -> (Ladder, Instant) {
        (Ladder::new(run(0), "default", 1, 7), Instant::now())
    }

    fn candidate(run: Option<Run>, found_by: FoundBy, addresses: &[SocketAddr]) -> Candidate {
        Candidate { addresses: addresses.to_vec(), run, found_by, mesh: None, version: None, strange_key: false }
    }

    fn mdns(n: u64, addresses: &[SocketAddr]) -> Candidate {
        candidate(Some(run(n)), FoundBy::Mdns, addresses)
    }

    fn due(ladder: &mut Ladder, now: Instant) -> Vec<SocketAddr> {
        let mut addresses: Vec<_> = std::iter::from_fn(|| ladder.poll(now)).collect();
        addresses.sort();
        addresses
    }

    #[test]
    fn all_addresses_of_a_peer_are_dialled_at_once_and_none_twice() {
        let (mut ladder, now) = ladder();
        ladder.found(now, mdns(1, &[at(1), at(2)]));
        ladder.found(now, mdns(1, &[at(2), at(3)]));
        assert_eq!(due(&mut ladder, now), [at(1), at(2), at(3)]);
        assert_eq!(ladder.next_wake(), None);
    }

    #[test]
    fn a_linked_peer_is_not_dialled_until_its_link_ends() {
        let (mut ladder, now) = ladder();
        ladder.found(now, mdns(1, &[at(1), at(2)]));
        due(&mut ladder, now);
        ladder.linked(now, run(1), at(1));
        ladder.failed(now, at(2), &DialError::Unreachable);
        ladder.found(now, mdns(1, &[at(3)]));
        ladder.called(now, run(1), at(4));
        assert_eq!(due(&mut ladder, now + 60 * SECOND), []);
        ladder.unlinked(now + 60 * SECOND, run(1));
        assert_eq!(due(&mut ladder, now + 60 * SECOND), [at(1), at(2), at(3), at(4)]);
    }

    #[test]
    fn the_node_never_dials_itself_or_where_it_met_itself() {
        let (mut ladder, now) = ladder();
        ladder.found(now, mdns(0, &[at(1)]));
        assert_eq!(due(&mut ladder, now), []);
        ladder.found(now, candidate(None, FoundBy::Seed, &[at(2)]));
        assert_eq!(due(&mut ladder, now), [at(2)]);
        ladder.failed(now, at(2), &DialError::Itself);
        ladder.found(now, candidate(None, FoundBy::Seed, &[at(2)]));
        ladder.found(now, mdns(9, &[at(2)]));
        assert_eq!(due(&mut ladder, now + 60 * SECOND), []);
    }

    #[test]
    fn at_most_sixteen_dials_are_under_way() {
        let (mut ladder, now) = ladder();
        for n in 1..=20 {
            ladder.found(now, mdns(n, &[at(n as u16)]));
        }
        assert_eq!(due(&mut ladder, now).len(), DIALS_MAX);
        assert_eq!(ladder.next_wake(), None);
        ladder.failed(now, at(1), &DialError::Unreachable);
        assert_eq!(ladder.next_wake(), Some(now));
        assert_eq!(due(&mut ladder, now).len(), 1);
    }

    /// Lets every dial fail over `time`; answers how many there were, the longest wait between two, and the last one.
    fn dials(ladder: &mut Ladder, start: Instant, time: Duration) -> (usize, Duration, Instant) {
        let (mut now, mut count, mut longest) = (start, 0, Duration::ZERO);
        while let Some(wake) = ladder.next_wake().filter(|wake| *wake <= start + time) {
            longest = longest.max(wake.saturating_duration_since(now));
            now = now.max(wake);
            while let Some(address) = ladder.poll(now) {
                count += 1;
                ladder.failed(now, address, &DialError::Unreachable);
            }
        }
        (count, longest, now)
    }

    #[test]
    fn back_off_ends_at_2_s_within_the_hour_and_at_30_s_after() {
        let (mut ladder, now) = ladder();
        ladder.found(now, mdns(1, &[at(1)]));
        let (count, longest, _) = dials(&mut ladder, now, 3_500 * SECOND);
        assert!((1_750..3_500).contains(&count) && longest <= 2 * SECOND, "{count} {longest:?}");
        let (count, longest, _) = dials(&mut ladder, now + 3_600 * SECOND, 3_600 * SECOND);
        assert!((120..260).contains(&count), "{count}");
        assert!(longest > 15 * SECOND && longest <= 30 * SECOND, "{longest:?}");
        dials(&mut ladder, now + 7_200 * SECOND, FORGET);
        assert_eq!(ladder.next_wake(), None, "forgotten after a day");
    }

    #[test]
    fn hearsay_is_dialled_more_seldom_than_a_seed() {
        for (run, found_by, fewest, most) in
            [(None, FoundBy::Memory, 20, 60), (Some(run(1)), FoundBy::Gossip, 20, 60), (None, FoundBy::Seed, 300, 600)]
        {
            let (mut ladder, now) = ladder();
            ladder.found(now, candidate(run, found_by, &[at(1)]));
            let (count, ..) = dials(&mut ladder, now, 600 * SECOND);
            assert!((fewest..most).contains(&count), "{found_by:?} {count}");
        }
    }

    #[test]
    fn news_resets_the_back_off_but_gossip_does_not() {
        let hearsay =
            |ladder: &mut Ladder, now| _ = ladder.found(now, candidate(Some(run(1)), FoundBy::Gossip, &[at(1)]));
        type News = fn(&mut Ladder, Instant);
        let news: [(News, bool); 4] = [
            (|ladder, now| assert!(!ladder.found(now, mdns(1, &[at(1)]))), true),
            (|ladder, now| ladder.called(now, run(1), at(1)), true),
            (|ladder, now| ladder.interfaces_changed(now), true),
            (hearsay, false),
        ];
        for (news, resets) in news {
            let (mut ladder, now) = ladder();
            hearsay(&mut ladder, now);
            let (_, _, failed) = dials(&mut ladder, now, 600 * SECOND);
            news(&mut ladder, failed);
            assert_eq!(ladder.next_wake().unwrap() <= failed + BACK_OFF_MIN, resets);
        }
    }

    #[test]
    fn a_seed_that_answers_becomes_the_peer_that_it_is() {
        let (mut ladder, now) = ladder();
        ladder.found(now, candidate(None, FoundBy::Seed, &[at(1)]));
        due(&mut ladder, now);
        ladder.linked(now, run(1), at(1));
        ladder.found(now, candidate(None, FoundBy::Seed, &[at(1)]));
        assert_eq!(ladder.found_by(run(1)), Some(FoundBy::Seed));
        assert_eq!(ladder.addresses(run(1)), [at(1)]);
        assert_eq!(due(&mut ladder, now + SECOND), []);
        ladder.gone(now, run(1));
        ladder.unlinked(now, run(1));
        assert_eq!(due(&mut ladder, now + SECOND), [at(1)], "a seed that left may come back");
    }

    #[test]
    fn an_address_that_answers_as_another_run_is_taken_from_the_first() {
        let (mut ladder, now) = ladder();
        ladder.found(now, mdns(1, &[at(1)]));
        due(&mut ladder, now);
        ladder.linked(now, run(2), at(1));
        assert_eq!(ladder.addresses(run(1)), []);
        assert_eq!(ladder.addresses(run(2)), [at(1)]);
        assert_eq!(due(&mut ladder, now + 60 * SECOND), []);
    }

    #[test]
    fn a_restarted_peer_is_dialled_although_its_old_link_hangs() {
        let (mut ladder, now) = ladder();
        ladder.found(now, mdns(1, &[at(1)]));
        due(&mut ladder, now);
        ladder.linked(now, run(1), at(1));
        ladder.found(now + SECOND, mdns(2, &[at(1)]));
        assert_eq!(due(&mut ladder, now + SECOND), [at(1)]);
        ladder.linked(now + SECOND, run(2), at(1));
        ladder.unlinked(now + SECOND, run(1));
        assert_eq!(due(&mut ladder, now + 60 * SECOND), []);
    }

    #[test]
    fn a_suspect_peer_gets_a_second_dial_until_it_is_heard() {
        let (mut ladder, now) = ladder();
        ladder.found(now, mdns(1, &[at(1)]));
        due(&mut ladder, now);
        ladder.linked(now, run(1), at(1));
        let later = now + 3 * SECOND;
        ladder.second_dial(later, run(1));
        assert_eq!(due(&mut ladder, later), [at(1)]);
        ladder.failed(later, at(1), &DialError::Unreachable);
        assert!(ladder.next_wake().is_some());
        ladder.heard(later, run(1));
        assert_eq!(ladder.next_wake(), None);
    }

    #[test]
    fn three_refusals_within_three_seconds_are_told_apart_from_slow_ones() {
        for (gap, thrice) in [(SECOND, true), (2 * SECOND, false)] {
            let (mut ladder, now) = ladder();
            ladder.found(now, mdns(1, &[at(1)]));
            due(&mut ladder, now);
            ladder.linked(now, run(1), at(1));
            ladder.unlinked(now, run(1));
            for n in 1..=3 {
                assert!(!ladder.refused_thrice(run(1)));
                assert_eq!(due(&mut ladder, now + n * gap), [at(1)]);
                ladder.failed(now + n * gap, at(1), &DialError::Refused);
            }
            assert_eq!(ladder.refused_thrice(run(1)), thrice);
        }
    }

    #[test]
    fn neighbours_of_another_mesh_or_version_are_told_and_not_dialled() {
        let (mut ladder, now) = ladder();
        ladder.found(now, Candidate { mesh: Some("lab".into()), ..mdns(1, &[at(1)]) });
        ladder.found(now, Candidate { version: Some(2), ..mdns(2, &[at(2)]) });
        ladder.found(now, candidate(None, FoundBy::Seed, &[at(3)]));
        assert_eq!(due(&mut ladder, now), [at(3)]);
        ladder.failed(now, at(3), &DialError::Apart(Apart::Mesh("lab".into()), None));
        let told: Vec<_> = std::iter::from_fn(|| ladder.notice()).map(|notice| notice.address).collect();
        assert_eq!(told, [at(1), at(2), at(3)]);
    }

    #[test]
    fn what_is_known_is_bounded_and_links_survive() {
        let (mut ladder, now) = ladder();
        ladder.found(now, mdns(1, &[at(1)]));
        due(&mut ladder, now);
        ladder.linked(now, run(1), at(1));
        for n in 2..1_000 {
            ladder.found(now + n * SECOND, mdns(n.into(), &[at(n as u16)]));
        }
        assert_eq!(ladder.peers.len(), PEERS_MAX);
        assert_eq!(ladder.addresses(run(1)), [at(1)]);
        assert_eq!(ladder.addresses(run(2)), [], "the oldest made room");
        assert_eq!(ladder.addresses(run(999)), [at(999)]);
        for n in 1_000..1_100 {
            ladder.found(now, mdns(1, &[at(n)]));
        }
        assert_eq!(ladder.addresses(run(1)).len(), ADDRESSES_MAX);
        assert_eq!(ladder.addresses(run(1))[0], at(1));
    }

    #[test]
    fn a_new_peer_is_dialled_before_many_dead_ones() {
        let (mut ladder, now) = ladder();
        for n in 1..=200 {
            ladder.found(now, mdns(n, &[at(n as u16)]));
        }
        dials(&mut ladder, now, 20 * SECOND);
        let later = now + 30 * SECOND;
        ladder.found(later, mdns(900, &[at(900)]));
        assert_eq!(ladder.poll(later), Some(at(900)));
    }
}
