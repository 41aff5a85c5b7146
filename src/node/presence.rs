//! What users are told of peers: a list, and an event for each change that lasts.
//!
//! The core says what a peer's state is; this says when it is worth a word. A peer that is heard one way only is told of
//! after [`ONE_WAY_AFTER`]: so it is for a moment at every meeting and at every parting, too.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, watch};

use crate::handle::{Event, FoundBy, Peer, PeerState};
use crate::id::Run;

/// One way only for so long is worth a word.
const ONE_WAY_AFTER: Duration = Duration::from_secs(2);
/// A neighbour kept apart stays in the list for so long after its last sign.
const APART_FOR: Duration = Duration::from_secs(600);
/// Neighbours kept apart that are listed.
const APART_MAX: usize = 64;

#[derive(Debug)]
pub(crate) struct Presence {
    known: HashMap<Run, Known>,
    apart: HashMap<Run, Apart>,
    peers: watch::Sender<Arc<[Peer]>>,
    addresses: watch::Sender<Arc<[SocketAddr]>>,
    events: broadcast::Sender<Event>,
}

#[derive(Debug, Default)]
struct Known {
    state: Option<PeerState>,
    /// Since when it is one way only, as long as nobody was told.
    one_way: Option<Instant>,
    rtt: Option<Duration>,
}

#[derive(Debug)]
struct Apart {
    address: SocketAddr,
    found_by: FoundBy,
    seen: Instant,
}

impl Presence {
    pub(crate) fn new(
        peers: watch::Sender<Arc<[Peer]>>,
        addresses: watch::Sender<Arc<[SocketAddr]>>,
        events: broadcast::Sender<Event>,
    ) -> Presence {
        Presence { known: HashMap::new(), apart: HashMap::new(), peers, addresses, events }
    }

    /// Peers reach this node at these addresses now.
    pub(crate) fn reached_at(&self, addresses: &[SocketAddr]) {
        let changed = |known: &mut Arc<[SocketAddr]>| {
            let changed = **known != *addresses;
            *known = addresses.into();
            changed
        };
        if self.addresses.send_if_modified(changed) {
            self.tell(Event::Addresses(addresses.into()));
        }
    }

    /// Tells whoever listens; nobody may.
    pub(crate) fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }

    pub(crate) fn measured(&mut self, run: Run, rtt: Duration) {
        self.known.entry(run).or_default().rtt = Some(rtt);
    }

    pub(crate) fn rtt(&self, run: Run) -> Option<Duration> {
        self.known.get(&run)?.rtt
    }

    /// A peer's state or name may have changed; true if it came up.
    pub(crate) fn look(&mut self, now: Instant, peer: &Peer) -> bool {
        let known = self.known.entry(peer.run).or_default();
        let was = known.state.replace(peer.state);
        if was == Some(peer.state) {
            return false;
        }
        tracing::debug!(run = ?peer.run, state = ?peer.state, "a peer's state");
        known.one_way = (peer.state == PeerState::OneWay).then_some(now);
        match peer.state {
            PeerState::Up => self.tell(Event::PeerUp(peer.clone())),
            PeerState::Suspect => self.tell(Event::PeerSuspect(peer.clone())),
            PeerState::Down => self.tell(Event::PeerDown(peer.clone())),
            PeerState::OneWay | PeerState::Incompatible => {}
        }
        peer.state == PeerState::Up
    }

    /// A neighbour was kept apart.
    pub(crate) fn apart(&mut self, now: Instant, run: Run, address: SocketAddr, found_by: FoundBy) {
        if self.apart.len() < APART_MAX || self.apart.contains_key(&run) {
            self.apart.insert(run, Apart { address, found_by, seen: now });
        }
    }

    /// Publishes the list of peers, and tells what has lasted long enough.
    pub(crate) fn list(&mut self, now: Instant, mut peers: Vec<Peer>) {
        self.known.retain(|run, _| peers.iter().any(|peer| peer.run == *run));
        for peer in peers.iter().filter(|peer| peer.state == PeerState::OneWay) {
            let Some(known) = self.known.get_mut(&peer.run) else { continue };
            if known.one_way.take_if(|since| now.saturating_duration_since(*since) >= ONE_WAY_AFTER).is_some() {
                self.tell(Event::PeerSuspect(peer.clone()));
            }
        }
        self.apart.retain(|run, apart| {
            now.saturating_duration_since(apart.seen) < APART_FOR && peers.iter().all(|peer| peer.run != *run)
        });
        peers.extend(self.apart.iter().map(|(run, apart)| Peer {
            run: *run,
            name: "".into(),
            state: PeerState::Incompatible,
            address: Some(apart.address),
            found_by: apart.found_by,
            rtt: None,
            last_heard: None,
            dropped: 0,
        }));
        peers.sort_by(|one, other| (&one.name, one.run).cmp(&(&other.name, other.run)));
        self.peers.send_replace(peers.into());
    }
}

impl Presence {
    /// The node stops: nobody is there any more.
    pub(crate) fn end(&self) {
        self.peers.send_replace(Arc::from([]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Epoch, NodeId};

    fn peer(state: PeerState) -> Peer {
        let run = Run { node: NodeId([1; 32]), epoch: Epoch(1) };
        let (found_by, name) = (FoundBy::Mdns, Arc::from("ada"));
        Peer { run, name, state, address: None, found_by, rtt: None, last_heard: None, dropped: 0 }
    }

    #[test]
    fn one_way_is_told_once_and_only_if_it_lasts() {
        let (events, mut told) = broadcast::channel(16);
        let (peers, list) = watch::channel(Arc::from([]));
        let addresses = watch::channel(Arc::from([])).0;
        let (mut presence, start) = (Presence::new(peers, addresses, events), Instant::now());
        let mut at = |secs, state| {
            let now = start + Duration::from_secs(secs);
            presence.look(now, &peer(state));
            presence.list(now, vec![peer(state)]);
        };
        at(0, PeerState::OneWay);
        at(1, PeerState::Up);
        assert_eq!(told.try_recv(), Ok(Event::PeerUp(peer(PeerState::Up))));
        for secs in 2..9 {
            at(secs, PeerState::OneWay);
        }
        assert_eq!(told.try_recv(), Ok(Event::PeerSuspect(peer(PeerState::OneWay))));
        at(9, PeerState::Down);
        assert_eq!(told.try_recv(), Ok(Event::PeerDown(peer(PeerState::Down))));
        assert!(told.try_recv().is_err());
        assert_eq!(list.borrow().len(), 1);
    }
}
