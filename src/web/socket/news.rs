//! What changes around messages: who stores them, who is there, how bridges and the log are.
//!
//! Its texts are the same for everybody who hears the same messages.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::{Instant, sleep_until};

use super::super::objects::{bridge_objects, peer_objects};
use super::super::standings::{LOOK_PAUSE, Standings};
use super::frames::Outgoing;
use crate::error::Stopped;
use crate::handle::{Event, Handle, Peer, Standing, State};
use crate::id::{EntryId, NodeId};

/// Peers that came, went or changed are shown this long after the last time at the earliest.
const PEERS_PAUSE: Duration = Duration::from_millis(250);
/// Peers that changed only in their round-trip times are shown this often.
const PEERS_REFRESH: Duration = Duration::from_secs(5);
/// The messages of which a client is told when more nodes store them: the last that it was given or published.
const FOLLOWED_MAX: usize = 512;

/// What is news to somebody, and when to look for it.
pub(super) struct News {
    handle: Handle,
    standings: Arc<Standings>,
    followed: Followed,
    peers: watch::Receiver<Arc<[Peer]>>,
    /// What was told of them.
    shown: Arc<[Peer]>,
    shown_at: Instant,
    peers_due: Option<Instant>,
    looked_at: Instant,
    look_due: Option<Instant>,
    moved: Option<watch::Receiver<u64>>,
    events: broadcast::Receiver<Event>,
    ended: bool,
}

impl News {
    /// From now on, to somebody who knows of these peers.
    pub fn new(
        handle: &Handle,
        standings: &Arc<Standings>,
        followed: Followed,
        peers: watch::Receiver<Arc<[Peer]>>,
        shown: Arc<[Peer]>,
    ) -> News {
        let now = Instant::now();
        News {
            handle: handle.clone(),
            standings: standings.clone(),
            followed,
            peers,
            shown,
            shown_at: now,
            peers_due: None,
            looked_at: now,
            look_due: None,
            moved: standings.moved(),
            events: handle.events(),
            ended: false,
        }
    }

    /// Messages were given: where nothing tells when they move, they are looked at.
    pub async fn gave(&mut self) {
        if self.moved.is_none() {
            self.look_soon().await;
        }
    }

    /// The next texts. Cancellation safe.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn next(&mut self) -> Result<Vec<String>, Stopped> {
        loop {
            let (look_at, peers_at) = (self.look_due.unwrap_or(self.shown_at), self.peers_due.unwrap_or(self.shown_at));
            tokio::select! {
                // What moves meanwhile is seen by the look that is due.
                () = changed(&mut self.moved), if self.look_due.is_none() => self.look_soon().await,
                () = self.followed.more(), if self.look_due.is_none() => self.look_soon().await,
                () = sleep_until(look_at), if self.look_due.is_some() => {
                    let (looked, texts) = self.look().await?;
                    (self.looked_at, self.look_due) = (Instant::now(), None);
                    if self.moved.is_none() && looked > 0 {
                        self.look_soon().await;
                    }
                    if !texts.is_empty() {
                        return Ok(texts);
                    }
                }
                event = next_event(&mut self.events, &mut self.ended) => match event {
                    Event::CatchUp { missing, done } => return Ok(vec![Outgoing::CatchUp { missing, done }.text()]),
                    Event::Bridge(_) => {
                        return Ok(vec![Outgoing::Bridges { bridges: bridge_objects(&self.handle) }.text()]);
                    }
                    Event::History(state) => return Ok(vec![Outgoing::History { state }.text()]),
                    _ => {}
                },
                Ok(()) = self.peers.changed() => {
                    let news = is_news(&self.shown, &self.peers.borrow_and_update());
                    self.peers_due = Some(self.shown_at + if news { PEERS_PAUSE } else { PEERS_REFRESH });
                }
                () = sleep_until(peers_at), if self.peers_due.is_some() => {
                    self.shown = self.peers.borrow_and_update().clone();
                    (self.shown_at, self.peers_due) = (Instant::now(), None);
                    return Ok(vec![Outgoing::Peers { peers: peer_objects(&self.shown) }.text()]);
                }
            }
        }
    }

    /// Looks again: rarely, and when there is something new to see.
    async fn look_soon(&mut self) {
        if self.look_due.is_none() {
            self.look_due = Some(self.standings.next_look().await.max(self.looked_at + LOOK_PAUSE));
        }
    }

    /// Word of messages that more nodes have on disk by now; and of how many that may still be.
    async fn look(&mut self) -> Result<(usize, Vec<String>), Stopped> {
        let ids = self.followed.open(&self.shown);
        if ids.is_empty() {
            return Ok((0, Vec::new()));
        }
        let looked = ids.len();
        let standings = self.standings.of(&ids).await?;
        let risen = ids.into_iter().zip(standings).filter(|(id, standing)| self.followed.rose(*id, *standing));
        let text = |(id, Standing { state, stored_by })| Outgoing::Stored { id, by: stored_by, state }.text();
        Ok((looked, risen.map(text).collect()))
    }
}

/// Ends when something moved; never where nothing tells.
async fn changed(moved: &mut Option<watch::Receiver<u64>>) {
    match moved {
        Some(told) => {
            if told.changed().await.is_err() {
                *moved = None;
            }
        }
        None => std::future::pending().await,
    }
}

/// The next event that was not missed; never one once the node has stopped.
async fn next_event(events: &mut broadcast::Receiver<Event>, ended: &mut bool) -> Event {
    while !*ended {
        match events.recv().await {
            Ok(event) => return event,
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => *ended = true,
        }
    }
    std::future::pending().await
}

/// Whether more than times and counts differ.
fn is_news(old: &[Peer], new: &[Peer]) -> bool {
    let face = |peer: &Peer| (peer.run, peer.name.clone(), peer.state, peer.address, peer.found_by);
    !old.iter().map(face).eq(new.iter().map(face))
}

/// The last messages that somebody was given or published, and what was told of how safe they are.
#[derive(Clone, Debug, Default)]
pub(super) struct Followed(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    last: Mutex<Last>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Last {
    told: HashMap<EntryId, Standing>,
    order: VecDeque<EntryId>,
}

impl Followed {
    /// A message was given, and told to be so safe.
    pub fn told(&self, id: EntryId, standing: Standing) {
        let mut last = self.lock();
        if last.told.insert(id, standing).is_none() {
            last.order.push_back(id);
            last.forget();
        }
    }

    /// Follows a message that somebody was told to be so safe, and has it looked at soon.
    pub fn follow(&self, id: EntryId, standing: Standing) {
        let mut last = self.lock();
        if last.told.contains_key(&id) {
            return;
        }
        last.told.insert(id, standing);
        last.order.push_back(id);
        last.forget();
        drop(last);
        self.0.more.notify_one();
    }

    /// Follows what another one does.
    pub fn take_over(&self, other: &Followed, peers: &[Peer]) {
        for id in other.open(peers) {
            let standing = other.lock().told.get(&id).copied();
            if let Some(standing) = standing {
                self.follow(id, standing);
            }
        }
    }

    async fn more(&self) {
        self.0.more.notified().await;
    }

    /// Those that may still rise: not stored by everybody.
    fn open(&self, peers: &[Peer]) -> Vec<EntryId> {
        let nodes = nodes(peers);
        let last = self.lock();
        let open = |id: &&EntryId| last.told.get(id).is_some_and(|standing| may_rise(standing, nodes));
        last.order.iter().filter(open).copied().collect()
    }

    /// Whether less was told; then it counts as told.
    fn rose(&self, id: EntryId, standing: Standing) -> bool {
        let mut last = self.lock();
        let Some(told) = last.told.get_mut(&id) else { return false };
        let rank = |state| match state {
            State::Sent => 0,
            State::Logged | State::Durable => 1,
            State::Replicated => 2,
        };
        let rose = standing.stored_by > told.stored_by || rank(standing.state) > rank(told.state);
        if rose {
            *told = standing;
        }
        rose
    }

    fn lock(&self) -> MutexGuard<'_, Last> {
        self.0.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Last {
    fn forget(&mut self) {
        if self.order.len() > FOLLOWED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.told.remove(&oldest);
        }
    }
}

/// How many nodes other than its author can have a message.
fn nodes(peers: &[Peer]) -> usize {
    let mut nodes: Vec<NodeId> = peers.iter().map(|peer| peer.run.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes.len()
}

fn may_rise(standing: &Standing, nodes: usize) -> bool {
    standing.state == State::Sent || standing.stored_by < nodes
}
