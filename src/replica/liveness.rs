//! What is known of each peer: whether it lives, whether it hears us, what it holds.
//!
//! Heartbeats decide; a broken connection alone says nothing but that the peer no longer hears us.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::clock::{Mono, Now};
use super::event::Notice;
use super::message::BUCKETS;
use super::ranges::RangeSet;
use super::{Mutant, PEERS_MAX, RANGES_MAX, Replica, hashes};
use crate::id::{Run, RunHash, Seq};

/// Not heard for so long: suspect.
pub const SUSPECT_AFTER: Duration = Duration::from_secs(3);
/// Not heard for so long: down.
pub const DOWN_AFTER: Duration = Duration::from_secs(8);
/// A run that was not heard for so long has ended.
pub const OVER_AFTER: Duration = Duration::from_secs(300);
/// Peers that are down are forgotten after this.
pub(crate) const FORGET_AFTER: Duration = Duration::from_secs(600);

/// Origins of which one peer has us remember more than what is told at once.
const IN_PARTS_MAX: usize = 256;

/// Whether a peer lives and hears us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Known, never heard.
    New,
    /// Heard, and hears us.
    Up,
    /// Heard, but does not hear us, or calls us and is not heard.
    OneWay,
    /// Not heard for [`SUSPECT_AFTER`].
    Suspect,
    /// Said goodbye, refuses, or was not heard for [`DOWN_AFTER`].
    Down,
}

/// A peer as the core sees it.
#[derive(Debug)]
pub struct Peer {
    /// Display name, empty until it said so.
    pub name: Arc<str>,
    /// Where its link goes.
    pub address: Option<SocketAddr>,
    /// Where it says it is reached.
    pub endpoints: Vec<SocketAddr>,
    /// Whether it lives.
    pub status: Status,
    /// When it was last heard.
    pub heard_at: Option<Mono>,
    pub(crate) hash: RunHash,
    pub(crate) linked: bool,
    /// Something was heard over the link there is now.
    pub(crate) live: bool,
    pub(crate) called: bool,
    pub(crate) hears_us: bool,
    pub(crate) gone: bool,
    pub(crate) status_at: Mono,
    /// What it holds, by its own word.
    pub(crate) holds: BTreeMap<Run, Holds>,
    /// Origins of which it tells in parts that are remembered all.
    pub(crate) in_parts: BTreeSet<Run>,
    /// It has told all that it holds at least once over the present link.
    pub(crate) told_all: bool,
    /// Hello goes to it again at this time, until it says that it hears us.
    pub(crate) greet_at: Option<Mono>,
    pub(crate) greeted: u32,
    /// Beats running in which its settled hash differed from ours.
    pub(crate) differed: u32,
    /// When its digest was last asked for, and for which pair of hashes.
    pub(crate) asked_at: Option<Mono>,
    pub(crate) asked_for: (u64, u64),
    /// The pair of hashes about which it has told all that it holds.
    pub(crate) told_for: Option<(u64, u64)>,
    /// The hashes it was last asked to compare with its own.
    pub(crate) compared: Option<Box<[u64; BUCKETS]>>,
    /// When it was last told all that we hold.
    pub(crate) answered_at: Option<Mono>,
    /// How far its clock is ahead of our monotonic one.
    pub(crate) offset_ms: Option<i64>,
}

/// What a peer holds of one origin.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Holds {
    pub floor: Seq,
    pub held: RangeSet,
    /// What of it is in memory only.
    pub volatile: RangeSet,
}

impl Peer {
    pub(crate) fn new(now: Mono, hash: RunHash) -> Peer {
        Peer {
            name: "".into(),
            address: None,
            endpoints: Vec::new(),
            status: Status::New,
            heard_at: None,
            hash,
            linked: false,
            live: false,
            called: false,
            hears_us: false,
            gone: false,
            status_at: now,
            holds: BTreeMap::new(),
            in_parts: BTreeSet::new(),
            told_all: false,
            greet_at: None,
            greeted: 0,
            differed: 0,
            asked_at: None,
            asked_for: (0, 0),
            told_for: None,
            compared: None,
            answered_at: None,
            offset_ms: None,
        }
    }

    /// Whether we hear it, and it has neither connected to us nor said that it hears us.
    pub fn is_deaf(&self) -> bool {
        self.linked && self.live && !self.called && !self.hears_us
    }

    /// The status that follows from what was heard so far.
    pub(crate) fn judge(&self, now: Mono) -> Status {
        let silent = self.heard_at.map(|at| now - at);
        match silent {
            _ if self.gone => Status::Down,
            None if self.called => Status::OneWay,
            None => Status::New,
            Some(silent) if silent >= DOWN_AFTER => Status::Down,
            Some(silent) if silent >= SUSPECT_AFTER => Status::Suspect,
            Some(_) if !self.live => self.status,
            Some(_) if self.hears_us => Status::Up,
            Some(_) => Status::OneWay,
        }
    }

    /// When the status changes next if nothing more is heard.
    pub(crate) fn deadline(&self) -> Option<Mono> {
        let heard = self.heard_at?;
        match self.status {
            Status::Up | Status::OneWay => Some(heard + SUSPECT_AFTER),
            Status::Suspect => Some(heard + DOWN_AFTER),
            Status::New | Status::Down => None,
        }
    }

    /// Takes note of what it says that it holds of `origin`: all, or a part.
    pub(crate) fn learn(&mut self, origin: Run, mut told: Holds) {
        let part = told.held.ranges_len() >= hashes::RANGES_MAX;
        if !part {
            self.in_parts.remove(&origin);
        } else if self.in_parts.len() < IN_PARTS_MAX || self.in_parts.contains(&origin) {
            self.in_parts.insert(origin);
            if let Some(Holds { floor: _, mut held, mut volatile }) = self.holds.remove(&origin) {
                let (first, last) = (told.held.bottom(), told.held.top());
                held.remove(first, last);
                held.union(&told.held);
                volatile.remove(first, last);
                volatile.union(&told.volatile.within(first, last));
                for set in [&mut held, &mut volatile] {
                    set.remove(Seq(0), told.floor);
                    *set = set.iter().rev().take(RANGES_MAX).collect();
                }
                (told.held, told.volatile) = (held, volatile);
            }
        }
        self.holds.insert(origin, told);
    }

    /// Forgets what it holds of `origin`.
    pub(crate) fn unlearn(&mut self, origin: Run) {
        self.holds.remove(&origin);
        self.in_parts.remove(&origin);
    }

    /// Whether requests may go to it.
    pub(crate) fn is_source(&self) -> bool {
        self.status == Status::Up && self.live
    }
}

impl Replica {
    pub(super) fn link_up(&mut self, now: Now, run: Run, address: SocketAddr) {
        let goodbye = self.streams.get(&run).is_some_and(|stream| stream.goodbye);
        let Some(peer) = self.peer(now, run) else { return };
        peer.address = Some(address);
        (peer.linked, peer.live, peer.told_all, peer.gone) = (true, false, false, goodbye);
    }

    /// The record of a peer, made if there is room for it.
    pub(super) fn peer(&mut self, now: Now, run: Run) -> Option<&mut Peer> {
        if run == self.me {
            return None;
        }
        if !self.peers.contains_key(&run) {
            if self.peers.len() >= PEERS_MAX {
                let dead = self.peers.iter().filter(|(_, peer)| {
                    matches!(peer.status, Status::Down | Status::New) && !peer.linked && !peer.called
                });
                let oldest = dead.min_by_key(|(_, peer)| peer.status_at).map(|(run, _)| *run)?;
                self.peers.remove(&oldest);
            }
            self.peers.insert(run, Peer::new(now.mono, run.hash()));
        }
        self.peers.get_mut(&run)
    }

    /// Draws the status of a peer from what was heard, and tells of a change.
    pub(super) fn judge(&mut self, now: Now, run: Run) {
        let Some(peer) = self.peers.get_mut(&run) else { return };
        let status = peer.judge(now.mono);
        if status == peer.status {
            return;
        }
        peer.status = status;
        peer.status_at = now.mono;
        if status == Status::Down {
            let heard = peer.live;
            (peer.hears_us, peer.live) = (false, false);
            // What it has on disk it has on disk; what it had in memory is gone.
            for holds in peer.holds.values_mut() {
                holds.held = holds.held.without(&std::mem::take(&mut holds.volatile));
            }
            if heard {
                self.greet_soon(now);
            }
        }
        if status == Status::Up {
            self.reconsider(run);
            self.ask_for_all(now, run);
        } else {
            self.desert(now, run);
        }
        self.notify(Notice::Peer(run));
    }

    /// Nothing is to be had from this peer for now: asks others for what it was asked for.
    pub(super) fn desert(&mut self, now: Now, run: Run) {
        if !self.bug(Mutant::DeadSourceForgotten) {
            let jitter = self.draw();
            self.repairs.give_up(now.mono, Some(run), jitter);
        }
        self.reconsider(run);
    }

    /// Whom to ask depends on who is heard, and so does how far the word of `run` reaches: looks again at all that lacks
    /// something.
    pub(super) fn reconsider(&mut self, run: Run) {
        self.look_for_holes(run);
        self.unplanned.clone_from(&self.lacking);
    }

    pub(super) fn forget_peers(&mut self, now: Now) {
        self.peers.retain(|_, peer| {
            let dead = matches!(peer.status, Status::Down | Status::New) && !peer.linked && !peer.called;
            !(dead && now.mono - peer.status_at >= FORGET_AFTER)
        });
    }
}
