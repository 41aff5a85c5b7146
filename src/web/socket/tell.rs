//! The half that writes: messages in bursts, answers, and word of what changes around them.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, SinkExt};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{Instant, interval_at, sleep_until};
use tokio_tungstenite::tungstenite::protocol::Message as WsMessage;

use super::super::api;
use super::super::objects::{MessageObject, bridge_objects, peer_objects};
use super::super::standings::{LOOK_PAUSE, Standings};
use super::frames::Outgoing;
use super::hear::Answer;
use super::source::Source;
use super::{End, Protocol, Sink, Times, in_time};
use crate::handle::{Delivery, Event, Gap, GapReason, Handle, Message, Peer, Published, Standing, State};
use crate::id::{EntryId, NodeId};
use crate::web::Site;

/// A burst ends after this many messages, this many bytes, or this long, at the latest; it ends with a cursor.
const BURST_MESSAGES_MAX: usize = 256;
const BURST_BYTES_MAX: usize = 64 * 1024;
const BURST_TIME_MAX: Duration = Duration::from_secs(1);
/// Peers that came, went or changed are shown this long after the last time at the earliest.
const PEERS_PAUSE: Duration = Duration::from_millis(250);
/// Peers that changed only in their round-trip times are shown this often.
const PEERS_REFRESH: Duration = Duration::from_secs(5);
/// The messages of which a client is told when more nodes store them: the last that it was given or published.
const FOLLOWED_MAX: usize = 512;
/// A log that could not be read is asked again after this.
const READ_AGAIN: Duration = Duration::from_secs(1);

pub(super) struct Out<'a> {
    handle: &'a Handle,
    standings: &'a Standings,
    sink: &'a mut Sink,
    times: Times,
    protocol: Protocol,
    peers: watch::Receiver<Arc<[Peer]>>,
    /// What the client has been told of them.
    shown: Arc<[Peer]>,
    followed: Followed,
    /// A burst ends after so many messages at the latest.
    burst_max: usize,
}

impl<'a> Out<'a> {
    pub fn new(
        site: &'a Site,
        sink: &'a mut Sink,
        protocol: Protocol,
        peers: watch::Receiver<Arc<[Peer]>>,
        shown: Arc<[Peer]>,
    ) -> Out<'a> {
        let Site { handle, standings, times, .. } = site;
        Out {
            handle,
            standings,
            sink,
            times: *times,
            protocol,
            peers,
            shown,
            followed: Followed::default(),
            burst_max: BURST_MESSAGES_MAX,
        }
    }

    pub async fn run(&mut self, source: Source, answers: mpsc::Receiver<Answer>) -> End {
        let Err(end) = self.write(source, answers).await;
        end
    }

    async fn write(&mut self, mut source: Source, mut answers: mpsc::Receiver<Answer>) -> Result<Infallible, End> {
        let speaks_json = self.protocol == Protocol::Json;
        let mut pings = interval_at(Instant::now() + self.times.ping, self.times.ping);
        let (mut shown_at, mut looked_at) = (Instant::now(), Instant::now());
        let (mut peers_due, mut look_due, mut read_due) = (None, None, None);
        let mut moved = self.standings.moved().filter(|_| speaks_json);
        let mut events = speaks_json.then(|| self.handle.events());
        loop {
            tokio::select! {
                Some(answer) = answers.recv() => {
                    self.answer(answer).await?;
                    while let Ok(answer) = answers.try_recv() {
                        self.answer(answer).await?;
                    }
                    look_due.get_or_insert(self.next_look(looked_at).await);
                }
                delivery = source.next(), if read_due.is_none() => match delivery {
                    Ok(delivery) => {
                        self.burst(delivery?, &mut source).await?;
                        if moved.is_none() && speaks_json {
                            look_due.get_or_insert(self.next_look(looked_at).await);
                        }
                    }
                    Err(error) => {
                        read_due = Some(Instant::now() + READ_AGAIN);
                        self.text(Outgoing::error(&error.into(), None)).await?;
                    }
                },
                () = sleep_until(read_due.unwrap_or(shown_at)), if read_due.is_some() => read_due = None,
                // What moves meanwhile is seen by the look that is due.
                () = changed(&mut moved), if look_due.is_none() => {
                    look_due = Some(self.next_look(looked_at).await);
                    continue;
                }
                () = sleep_until(look_due.unwrap_or(shown_at)), if look_due.is_some() => {
                    (looked_at, look_due) = (Instant::now(), None);
                    let looked = self.look().await?;
                    if moved.is_none() && looked > 0 {
                        look_due = Some(self.next_look(looked_at).await);
                    }
                }
                event = next_event(&mut events) => match event {
                    Event::CatchUp { missing, done } => self.text(Outgoing::CatchUp { missing, done }.text()).await?,
                    Event::Bridge(_) => {
                        let text = Outgoing::Bridges { bridges: bridge_objects(self.handle) }.text();
                        self.text(text).await?;
                    }
                    Event::History(state) => self.text(Outgoing::History { state }.text()).await?,
                    _ => continue,
                },
                Ok(()) = self.peers.changed(), if speaks_json => {
                    let news = is_news(&self.shown, &self.peers.borrow_and_update());
                    peers_due = Some(shown_at + if news { PEERS_PAUSE } else { PEERS_REFRESH });
                }
                () = sleep_until(peers_due.unwrap_or(shown_at)), if peers_due.is_some() => {
                    self.shown = self.peers.borrow_and_update().clone();
                    (shown_at, peers_due) = (Instant::now(), None);
                    let peers = peer_objects(&self.shown);
                    let text = Outgoing::Peers { peers }.text();
                    self.text(text).await?;
                }
                _ = pings.tick() => self.feed(WsMessage::Ping(Default::default())).await?,
            }
            in_time(&self.times, self.sink.flush()).await?;
        }
    }

    async fn answer(&mut self, answer: Answer) -> Result<(), End> {
        match answer {
            Answer::Text(text) => self.text(text).await,
            Answer::Accepted { client_id, published: Published { id, state, .. } } => {
                self.followed.told(id, Standing { state, stored_by: 0 });
                self.text(Outgoing::Accepted { client_id: client_id.as_deref(), id, state }.text()).await
            }
        }
    }

    /// Has bursts end after `messages` at the latest: so that a client that stops anywhere can acknowledge what it has.
    pub fn end_bursts_after(&mut self, messages: usize) {
        self.burst_max = messages.clamp(1, BURST_MESSAGES_MAX);
    }

    /// Writes a delivery and what else waits behind it.
    async fn burst(&mut self, first: Delivery, source: &mut Source) -> Result<(), End> {
        let began = Instant::now();
        let mut next = Some(Ok(first));
        let mut messages = Vec::new();
        let (mut count, mut bytes) = (0, 0);
        let mut ended = Ok(());
        while let Some(delivery) = next {
            match delivery {
                Ok(Delivery::Message(message)) => {
                    count += 1;
                    bytes += message.payload.len();
                    messages.push(message);
                }
                Ok(Delivery::Gap(gap)) => {
                    // The cursor that the messages end with covers the gap: what is missing is told first.
                    self.messages(std::mem::take(&mut messages), None).await?;
                    self.gap(gap).await?;
                }
                Err(end) => {
                    ended = Err(end);
                    break;
                }
            }
            let full = count >= self.burst_max || bytes >= BURST_BYTES_MAX || began.elapsed() >= BURST_TIME_MAX;
            // The cursor covers what was taken, so it is read before more is taken. A log that cannot be read is asked
            // again by whoever waits for the next delivery.
            next = if full { None } else { source.next().now_or_never().and_then(Result::ok) };
        }
        let cursor = (!messages.is_empty() && self.protocol == Protocol::Json).then(|| source.cursor());
        self.messages(messages, cursor).await?;
        ended
    }

    /// Writes messages, the last of them with a cursor.
    async fn messages(&mut self, messages: Vec<Message>, cursor: Option<String>) -> Result<(), End> {
        if self.protocol == Protocol::Plain {
            for message in messages {
                if let Some(text) = message.payload.text() {
                    self.feed(WsMessage::text(text)).await?;
                }
            }
            return Ok(());
        }
        if messages.is_empty() {
            return Ok(());
        }
        let ids: Vec<EntryId> = messages.iter().map(|message| message.id).collect();
        let standings = self.standings.of(&ids).await.map_err(|_| End::Away)?;
        let last = messages.len() - 1;
        let mut cursor = cursor;
        for (at, (message, standing)) in messages.iter().zip(standings).enumerate() {
            let cursor = if at == last { cursor.take() } else { None };
            let text = api::to_text(&MessageObject::frame(message, standing, cursor));
            self.followed.told(message.id, standing);
            self.text(text).await?;
        }
        Ok(())
    }

    /// Tells of messages that more nodes have on disk by now; answers of how many that may still be.
    async fn look(&mut self) -> Result<usize, End> {
        let ids = self.followed.open(&self.shown);
        if ids.is_empty() {
            return Ok(0);
        }
        let looked = ids.len();
        let standings = self.standings.of(&ids).await.map_err(|_| End::Away)?;
        for (id, standing) in ids.into_iter().zip(standings) {
            if self.followed.rose(id, standing) {
                let Standing { state, stored_by } = standing;
                self.text(Outgoing::Stored { id, by: stored_by, state }.text()).await?;
            }
        }
        Ok(looked)
    }

    /// When to look again: rarely, and when there is something new to see.
    async fn next_look(&self, looked_at: Instant) -> Instant {
        self.standings.next_look().await.max(looked_at + LOOK_PAUSE)
    }

    async fn gap(&mut self, gap: Gap) -> Result<(), End> {
        if self.protocol == Protocol::Json {
            self.text(Outgoing::gap(gap)).await?;
        }
        if gap.reason == GapReason::Slow { Err(End::Slow) } else { Ok(()) }
    }

    async fn text(&mut self, text: String) -> Result<(), End> {
        self.feed(WsMessage::text(text)).await
    }

    async fn feed(&mut self, frame: WsMessage) -> Result<(), End> {
        in_time(&self.times, self.sink.feed(frame)).await
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

/// The next event that was not missed; never one where nobody listens, or the node has stopped.
async fn next_event(events: &mut Option<broadcast::Receiver<Event>>) -> Event {
    while let Some(told) = events {
        match told.recv().await {
            Ok(event) => return event,
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => *events = None,
        }
    }
    std::future::pending().await
}

/// Whether more than times and counts differ.
fn is_news(old: &[Peer], new: &[Peer]) -> bool {
    let face = |peer: &Peer| (peer.run, peer.name.clone(), peer.state, peer.address, peer.found_by);
    !old.iter().map(face).eq(new.iter().map(face))
}

/// The last messages that a client was given or published, and what it was told of how safe they are.
#[derive(Debug, Default)]
struct Followed {
    told: HashMap<EntryId, Standing>,
    order: VecDeque<EntryId>,
}

impl Followed {
    fn told(&mut self, id: EntryId, standing: Standing) {
        if self.told.insert(id, standing).is_some() {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > FOLLOWED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.told.remove(&oldest);
        }
    }

    /// Those that may still rise: not stored by everybody.
    fn open(&self, peers: &[Peer]) -> Vec<EntryId> {
        let nodes = nodes(peers);
        let open = |id: &&EntryId| self.told.get(id).is_some_and(|standing| may_rise(standing, nodes));
        self.order.iter().filter(open).copied().collect()
    }

    /// Whether the client knows of less; then it counts as told.
    fn rose(&mut self, id: EntryId, standing: Standing) -> bool {
        let Some(told) = self.told.get_mut(&id) else { return false };
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
