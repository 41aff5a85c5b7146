//! The event loop: takes what happens, lets the core decide, does what it decides.
//!
//! The only file that sees both the core and I/O. A node lives on one thread of its own, with a single-threaded runtime:
//! the loop, the sockets, the gate and the links. The loop owns the [`Replica`]; all others send it messages:
//!
//! ```text
//! handles ──publish──▶ ┐                        ┌─▶ feeds of readers
//! handles ──ask──────▶ ├─ Loop ─▶ Replica ─▶ outputs ─▶ publisher (all peers, one peer)
//! links, gate ───────▶ │                        └─▶ events, peers
//! discovery ─────────▶ ┤                        └─▶ history
//! history ───────────▶ ┘
//! ```
//!
//! A publish waits in its channel while [`Flow::Wait`] holds or much is on its way to the disk; everything waits while all
//! readers that read are full. A publish is answered when the disk has it; peers do not wait for that.

mod asks;
mod presence;
mod publishes;
pub(crate) mod start;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Sleep;

use crate::config::Fsync;
use crate::data_dir::DataDir;
use crate::handle::{Ask, Event, FoundBy, HistoryHealth, Peer, PeerState, Submission};
use crate::history::{History, LogHandle};
use crate::id::Run;
use crate::metrics::{Metrics, count};
use crate::net::discovery::interfaces::Survey;
use crate::net::discovery::ladder::Ladder;
use crate::net::discovery::memory::Memory;
use crate::net::discovery::{Candidate, Discovery, gossip_fit};
use crate::net::{DialError, Flow, LinkId, Net, NetEvent};
use crate::replica::Replica;
use crate::replica::clock::{Mono, Now};
use crate::replica::event::{Input, Missing, Notice, Output, Report, Timing, To};
use crate::replica::liveness::Status;
use crate::replica::log::APPEND_BYTES_MAX;
use crate::replica::message::Message;
use crate::subscription::{Feed, Gap, GapReason, Item};
use crate::wire;
use asks::HeldAsk;
use presence::Presence;
use publishes::Publishes;

/// Publishes that wait for the loop; a further one waits in its caller.
const SUBMISSIONS_MAX: usize = 256;
/// Questions that wait for the loop; a further one waits in its caller.
const ASKS_MAX: usize = 64;
/// Events from the LAN that wait for the loop; a further one holds its link back.
const NET_EVENTS_MAX: usize = 64;
/// Events kept for a receiver that is behind; it misses the oldest.
const EVENTS_MAX: usize = 1024;
const TICK: Duration = Duration::from_secs(1);
/// So much sooner where the node is awake for something else: mostly a heartbeat.
const TICK_EARLY: Duration = Duration::from_millis(200);
const PING_EVERY: Duration = Duration::from_secs(10);
const SAVE_EVERY: Duration = Duration::from_secs(30);
/// How long a peer may not hear us before it is offered what we publish, and the longest pause between offers.
const OFFER_AFTER: (Duration, Duration) = (Duration::from_millis(900), Duration::from_secs(30));
/// Links, those included that are being made; at that no offer is taken.
const LINKS_MAX: usize = 1024;

/// Everything that the event loop owns.
pub(crate) struct Loop {
    replica: Replica,
    ladder: Ladder,
    net: Net,
    discovery: Discovery,
    survey: watch::Receiver<Arc<Survey>>,
    memory: Option<Memory>,
    _data_dir: Option<DataDir>,
    inbox: Inbox,
    /// Rings when something is due. Kept: to set one anew takes a system call.
    alarm: Pin<Box<Sleep>>,
    feeds: Vec<Feed>,
    /// Told when a reader took something.
    drained: Arc<Notify>,
    links: HashMap<LinkId, Link>,
    links_made: u64,
    /// When a peer that does not hear us is offered what we publish again, and after how long a pause.
    offers: HashMap<Run, (Instant, Duration)>,
    presence: Presence,
    held_asks: Vec<HeldAsk>,
    log: Option<Log>,
    publishes: Publishes,
    /// Entries fetched since catching up began; none while there is nothing to fetch.
    catching_up: Option<CatchUp>,
    metrics: Metrics,
    started: Instant,
    pinged: Instant,
    saved: Instant,
    /// The list of peers has to be made anew.
    peers_changed: bool,
}

/// The history, and who is told of it.
struct Log {
    history: History,
    handle: LogHandle,
    fsync: Fsync,
    commits: watch::Sender<u64>,
    health: watch::Sender<HistoryHealth>,
}

/// How far the node is with what it missed.
#[derive(Clone, Copy, Debug)]
struct CatchUp {
    received: u64,
}

/// Where everything that happens comes in.
struct Inbox {
    reports: mpsc::UnboundedReceiver<Report>,
    publish: mpsc::Receiver<Submission>,
    ask: mpsc::Receiver<Ask>,
    net: mpsc::Receiver<NetEvent>,
    candidates: mpsc::Receiver<Candidate>,
}

/// A dial, and what became of it.
#[derive(Clone, Copy, Debug)]
struct Link {
    /// Who answered; none while it is being made.
    run: Option<Run>,
    /// Something was heard over it.
    spoke: bool,
}

/// What woke the loop.
enum Wake {
    Net(Vec<NetEvent>),
    Publish(Submission),
    Ask(Ask),
    Log(Report),
    Found(Candidate),
    Interfaces,
    Time,
    /// What was waited for may go on.
    Flow,
    /// No handle is left.
    Orphaned,
}

impl Loop {
    /// Runs until it is told to stop or no handle is left.
    pub(crate) async fn run(mut self) {
        let mut tick = started_at(self.started, TICK);
        let mut told = Vec::new();
        loop {
            self.perform().await;
            self.dial();
            if std::mem::take(&mut self.peers_changed) {
                let peers = self.replica.peers().filter_map(|(run, _)| self.peer(run)).collect();
                self.presence.list(Instant::now(), peers);
            }
            match self.wait(tick).await {
                Wake::Net(events) => {
                    for event in events {
                        self.net_event(event).await;
                    }
                }
                Wake::Publish(submission) => self.publish(submission),
                Wake::Ask(Ask::Shutdown { reply }) => {
                    told.push(reply);
                    break;
                }
                Wake::Ask(ask) => self.answer(ask),
                Wake::Log(report) => self.reported(report),
                Wake::Found(candidate) => self.found(candidate),
                Wake::Interfaces => self.interfaces_changed(),
                Wake::Time => self.feed(Input::Timeout),
                Wake::Flow => {}
                Wake::Orphaned => break,
            }
            if Instant::now() + TICK_EARLY >= tick {
                tick = Instant::now() + TICK;
                self.tick().await;
                if !self.net.is_alive() {
                    tracing::error!("the gate has died, so the node stops");
                    break;
                }
            }
        }
        self.stop().await;
        // Everything is let go before anybody is told: ports, folder and lock are free.
        for reply in told {
            // Whoever asked may have gone.
            let _ = reply.send(());
        }
    }

    /// Sleeps until something happens or is due.
    async fn wait(&mut self, tick: Instant) -> Wake {
        // Other tasks of this thread move the bytes; they have their turn even if there is always something to take.
        tokio::task::yield_now().await;
        let core = self.replica.poll_timeout().map(|mono| started_at(self.started, Duration::from_millis(mono.0)));
        let deadline = [core, self.ladder.next_wake(), Some(tick)].into_iter().flatten().min().unwrap_or(tick);
        let readers_wait = self.readers_wait();
        let disk_waits = self.replica.appending_bytes() > APPEND_BYTES_MAX / 2;
        let may_publish = !readers_wait && !disk_waits && self.net.flow() == Flow::Open;
        if self.alarm.deadline() != deadline.into() {
            self.alarm.as_mut().reset(deadline.into());
        }
        let Inbox { reports, publish, ask, net, candidates } = &mut self.inbox;
        let mut events = Vec::new();
        tokio::select! {
            taken = net.recv_many(&mut events, NET_EVENTS_MAX), if !readers_wait => {
                if taken == 0 { Wake::Orphaned } else { Wake::Net(events) }
            }
            submission = publish.recv(), if may_publish => submission.map_or(Wake::Orphaned, Wake::Publish),
            Some(report) = reports.recv() => Wake::Log(report),
            ask = ask.recv() => ask.map_or(Wake::Orphaned, Wake::Ask),
            Some(candidate) = candidates.recv() => Wake::Found(candidate),
            Ok(()) = self.survey.changed() => Wake::Interfaces,
            () = self.net.flow_changed(), if !may_publish && !readers_wait => Wake::Flow,
            () = self.drained.notified(), if readers_wait => Wake::Flow,
            () = &mut self.alarm => Wake::Time,
        }
    }

    /// Whether every reader that reads has much queued: then the node waits for them, and through it its peers.
    fn readers_wait(&mut self) -> bool {
        let mut reading = self.feeds.iter().filter(|feed| !feed.is_closed() && feed.is_reading()).peekable();
        reading.peek().is_some() && reading.all(Feed::is_full)
    }

    fn feed(&mut self, input: Input) {
        self.replica.handle(now(self.started), input);
    }

    /// Does what the core wants done, in order.
    async fn perform(&mut self) {
        while let Some(output) = self.replica.poll_output() {
            match output {
                Output::Deliver { batch, how } => {
                    self.feeds.retain(|feed| !feed.is_closed());
                    for feed in self.feeds.iter().filter(|feed| how != Timing::History || feed.backfill) {
                        feed.put(Item::Batch { batch: batch.clone(), late: how != Timing::Live });
                    }
                }
                Output::Send { to, message } => self.send(to, &message).await,
                Output::Notify(notice) => self.notice(notice),
                Output::Log(order) => {
                    if let Some(log) = &self.log {
                        log.history.order(order);
                    }
                }
            }
        }
        self.publishes.answer_sent();
    }

    async fn send(&mut self, to: To, message: &Message) {
        let body = wire::encode(message);
        match (to, message) {
            (To::All, Message::Batch(_)) => self.net.send(wire::TOPIC_CHAT, body).await,
            (To::All, _) => self.net.send(wire::TOPIC_MESH, body).await,
            (To::One(run), _) => self.net.send(&wire::topic_to(run), body).await,
        }
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Peer(run) => self.tell_peer(run),
            Notice::Gap { origin, missing, reason } => {
                let reason = match reason {
                    Missing::Late => GapReason::Late,
                    Missing::Expired => GapReason::Expired,
                    Missing::Lost => GapReason::Lost,
                };
                let word = match reason {
                    GapReason::Late => "late",
                    GapReason::Expired => "expired",
                    _ => "lost",
                };
                count(&self.metrics.gaps, word);
                tracing::info!(?origin, missing, word, "a gap");
                let gap = Gap { missing, reason };
                self.feeds.iter().for_each(|feed| feed.put(Item::Gap(gap)));
                self.presence.tell(Event::Gap(gap));
            }
            Notice::Named { run, addresses, by } => {
                let via_loopback =
                    self.replica.known_peer(by).and_then(|peer| peer.address).is_some_and(|a| a.ip().is_loopback());
                let addresses: Vec<SocketAddr> =
                    addresses.into_iter().filter(|a| gossip_fit(*a, via_loopback)).collect();
                let candidate = Candidate {
                    addresses,
                    run: Some(run),
                    found_by: FoundBy::Gossip,
                    mesh: None,
                    version: None,
                    strange_key: false,
                };
                self.ladder.found(Instant::now(), candidate);
            }
            Notice::OwnRunElsewhere(id) => {
                tracing::warn!(?id, "somebody else speaks as this run: was this machine resumed from a snapshot?");
            }
        }
    }

    /// Dials whoever is due, and tells of neighbours kept apart.
    fn dial(&mut self) {
        let now = Instant::now();
        while let Some(address) = self.ladder.poll(now) {
            let link = self.next_link();
            self.net.dial(link, address);
        }
        while let Some(notice) = self.ladder.notice() {
            tracing::info!(address = %notice.address, reason = notice.reason, "a neighbour is kept apart");
            self.presence.tell(Event::Apart { address: notice.address, reason: notice.reason });
        }
    }

    fn next_link(&mut self) -> LinkId {
        self.links_made += 1;
        let link = LinkId(self.links_made);
        self.links.insert(link, Link { run: None, spoke: false });
        link
    }

    /// Offers what we publish to peers that we hear and that do not hear us, which a firewall of ours may keep from dialling:
    /// those that were so at two ticks running, and then more and more seldom.
    fn offer(&mut self, at: Instant) {
        let mute = self.replica.peers().filter(|(_, peer)| peer.is_deaf());
        let mute: HashMap<Run, SocketAddr> = mute.filter_map(|(run, peer)| Some((run, peer.address?))).collect();
        self.offers.retain(|run, _| mute.contains_key(run));
        for (run, address) in mute {
            let (due, pause) = self.offers.entry(run).or_insert((at + OFFER_AFTER.0, OFFER_AFTER.0));
            if *due <= at {
                *pause = (*pause * 2).min(OFFER_AFTER.1);
                *due = at + *pause;
                self.net.offer(run, address);
            }
        }
    }

    async fn net_event(&mut self, event: NetEvent) {
        let at = Instant::now();
        match event {
            NetEvent::Message { link, run, message } => self.message(link, run, message).await,
            NetEvent::LinkUp { link, run, address } => self.link_up(link, run, address),
            NetEvent::LinkDown { link, run } => {
                self.links.remove(&link);
                self.ladder.unlinked(at, run);
                if !self.links.values().any(|other| other.run == Some(run)) {
                    self.feed(Input::LinkDown(run));
                }
            }
            NetEvent::DialFailed { link, address, error } => {
                self.links.remove(&link);
                tracing::debug!(%address, %error, "a dial failed");
                self.ladder.failed(at, address, &error);
                if let DialError::Apart(_, run) = error {
                    self.apart(run, address, FoundBy::Seed);
                }
                let silent = |(_, peer): &(Run, &crate::replica::liveness::Peer)| {
                    !matches!(peer.status, Status::Up | Status::Down)
                };
                let silent: Vec<Run> = self.replica.peers().filter(silent).map(|(run, _)| run).collect();
                for run in silent {
                    if self.ladder.refused_thrice(run) {
                        self.feed(Input::Refused(run));
                    }
                }
            }
            NetEvent::Called { run, address } => {
                self.ladder.called(at, run, address);
                self.feed(Input::Called(run));
            }
            NetEvent::Offered { run, address, line } => {
                // Nobody is heard twice; who is dialled at this moment will not answer.
                if self.links.len() < LINKS_MAX && !self.links.values().any(|link| link.run == Some(run)) {
                    let link = self.next_link();
                    self.net.take(link, run, address, *line);
                }
            }
            NetEvent::Left { run } => self.feed(Input::Left(run)),
            NetEvent::Cut { run, bytes } => {
                tracing::warn!(?run, bytes, "a peer did not take what was sent, and was cut; it will get it by repair");
                if let Some(peer) = self.peer(run) {
                    self.presence.tell(Event::PeerCut(peer));
                }
            }
            NetEvent::Apart { address, run, reason } => {
                self.ladder.apart(at, address, &reason);
                self.apart(run, address, FoundBy::Gossip);
            }
        }
    }

    /// One link to a run is enough. A second one is made only when the first falls silent; then the first that speaks stays.
    fn link_up(&mut self, link: LinkId, run: Run, address: SocketAddr) {
        let silent = self.replica.known_peer(run).is_none_or(|peer| peer.status != Status::Up);
        let heard = self.links.values().any(|other| other.run == Some(run) && other.spoke);
        self.ladder.linked(Instant::now(), run, address);
        self.links.insert(link, Link { run: Some(run), spoke: false });
        if heard && !silent {
            self.hang_up(link);
            return;
        }
        self.feed(Input::LinkUp { run, address });
    }

    /// Ends a link; what it said before that is still heard, but says nothing of whether the link is good.
    fn hang_up(&mut self, link: LinkId) {
        self.links.remove(&link);
        self.net.hang_up(link);
    }

    /// Discovery has found somebody.
    fn found(&mut self, candidate: Candidate) {
        let (run, address, found_by) = (candidate.run, candidate.addresses.first().copied(), candidate.found_by);
        let apart = self.ladder.found(Instant::now(), candidate);
        if let Some(address) = address.filter(|_| apart) {
            self.apart(run, address, found_by);
        }
    }

    /// A neighbour is kept apart: it is in the list, if it said who it is.
    fn apart(&mut self, run: Option<Run>, address: SocketAddr, found_by: FoundBy) {
        if let Some(run) = run {
            self.presence.apart(Instant::now(), run, address, found_by);
            self.peers_changed = true;
        }
    }

    async fn message(&mut self, link: LinkId, run: Run, message: Message) {
        let first = self.links.get_mut(&link).is_some_and(|link| !std::mem::replace(&mut link.spoke, true));
        if first {
            let others = self.links.iter().filter(|(other, state)| **other != link && state.run == Some(run));
            for other in others.map(|(other, _)| *other).collect::<Vec<_>>() {
                self.hang_up(other);
            }
            self.ladder.heard(Instant::now(), run);
        }
        match message {
            Message::Ping(number) => self.send(To::One(run), &Message::Pong(number)).await,
            Message::Pong(number) => {
                let rtt = (self.started.elapsed().as_micros() as u64).checked_sub(number).map(Duration::from_micros);
                if let Some(rtt) = rtt.filter(|rtt| *rtt < PING_EVERY) {
                    self.presence.measured(run, rtt);
                    self.peers_changed = true;
                }
            }
            Message::Goodbye(_) => {
                self.feed(Input::Message { from: run, message });
                self.ladder.gone(Instant::now(), run);
                self.hang_up(link);
            }
            message => {
                let holds = matches!(message, Message::Heartbeat(_) | Message::Digest(_));
                self.feed(Input::Message { from: run, message });
                if holds && !self.held_asks.is_empty() {
                    self.answer_held();
                }
                if let Some(log) = self.log.as_ref().filter(|_| holds) {
                    log.commits.send_modify(|commits| *commits += 1);
                }
            }
        }
    }

    fn interfaces_changed(&mut self) {
        let addresses = self.survey.borrow_and_update().addresses();
        self.ladder.interfaces_changed(Instant::now());
        self.presence.reached_at(&addresses);
        self.feed(Input::Endpoints(addresses));
    }

    /// What is due each second.
    async fn tick(&mut self) {
        let at = Instant::now();
        self.discovery.look();
        let suspects: Vec<Run> =
            self.replica.peers().filter(|(_, peer)| peer.status == Status::Suspect).map(|(run, _)| run).collect();
        for run in suspects {
            self.ladder.second_dial(at, run);
        }
        if at - self.pinged >= PING_EVERY {
            self.pinged = at;
            let up: Vec<Run> =
                self.replica.peers().filter(|(_, peer)| peer.status == Status::Up).map(|(run, _)| run).collect();
            for run in up {
                self.ping(run).await;
            }
        }
        if at - self.saved >= SAVE_EVERY {
            self.saved = at;
            self.save().await;
        }
        self.offer(at);
        self.answer_held();
        self.count();
        self.tell_catch_up();
        self.peers_changed = true;
    }

    async fn ping(&mut self, run: Run) {
        let number = self.started.elapsed().as_micros() as u64;
        self.send(To::One(run), &Message::Ping(number)).await;
    }

    async fn save(&mut self) {
        let Some(memory) = &mut self.memory else { return };
        if let Err(error) = memory.save().await {
            tracing::warn!(%error, "cannot remember the peers");
        }
    }

    /// Copies what the core counts to where it can be scraped.
    fn count(&mut self) {
        let counters = self.replica.counters();
        let metrics = &self.metrics;
        for (counter, total) in [
            (&metrics.published, counters.published),
            (&metrics.received, counters.received),
            (&metrics.received_bytes, counters.received_bytes),
            (&metrics.duplicates, counters.duplicates),
            (&metrics.missing, counters.missing),
            (&metrics.repairs_requested, counters.requests),
            (&metrics.repairs_served, counters.served),
            (&metrics.repaired_bytes, counters.repaired_bytes),
            (&metrics.conflicts, counters.conflicts),
            (&metrics.refused, counters.refused),
            (&metrics.expired, counters.expired),
        ] {
            Metrics::mirror(counter, total);
        }
        let (bytes, batches) = self.replica.window_size();
        metrics.window_bytes.set(bytes as i64);
        metrics.window_batches.set(batches as i64);
        let up = self.replica.peers().filter(|(_, peer)| peer.status == Status::Up).count();
        metrics.peers_up.set(up as i64);
        metrics.peers_known.set(self.replica.peers().count() as i64);
        metrics.readers.set(self.feeds.len() as i64);
    }

    /// A peer as users see it; none before anything was heard of it.
    fn peer(&self, run: Run) -> Option<Peer> {
        let peer = self.replica.known_peer(run)?;
        let state = match peer.status {
            Status::New => return None,
            Status::Up => PeerState::Up,
            Status::OneWay => PeerState::OneWay,
            Status::Suspect => PeerState::Suspect,
            Status::Down => PeerState::Down,
        };
        Some(Peer {
            run,
            name: peer.name.clone(),
            state,
            address: peer.address.or_else(|| self.ladder.addresses(run).first().copied()),
            found_by: self.ladder.found_by(run).unwrap_or(FoundBy::Gossip),
            rtt: self.presence.rtt(run),
            last_heard: peer.heard_at.map(|at| started_at(self.started, Duration::from_millis(at.0))),
            dropped: self.net.dropped(run),
        })
    }

    /// Tells of a peer whose status or name may have changed.
    fn tell_peer(&mut self, run: Run) {
        self.peers_changed = true;
        let at = Instant::now();
        let Some(peer) = self.peer(run) else { return };
        if !self.presence.look(at, &peer) {
            return;
        }
        if let Some(memory) = &mut self.memory {
            memory.saw(run.node, &self.ladder.addresses(run), now(self.started).wall_ms);
        }
        if run.node == self.replica.me().node {
            tracing::warn!(?run, "another process runs with a copy of this node's data folder");
            self.presence.tell(Event::Cloned(peer));
        }
        // Both are due at the next tick.
        self.pinged = at.checked_sub(PING_EVERY).unwrap_or(at);
        self.saved = at.checked_sub(SAVE_EVERY).unwrap_or(at);
    }

    /// Says goodbye, lets what is queued go out, and lets everything go.
    async fn stop(mut self) {
        self.feed(Input::Stop);
        self.perform().await;
        self.save().await;
        self.count();
        let closed = async {
            if let Some(log) = self.log.take() {
                // The last publishes are answered: what was said is on disk before the node is gone.
                let (done, closed) = oneshot::channel::<()>();
                std::thread::spawn(move || {
                    log.history.close();
                    drop((log.handle, done));
                });
                // It is over either way.
                let _ = closed.await;
                while let Ok(report) = self.inbox.reports.try_recv() {
                    self.replica.handle(now(self.started), Input::Log(report));
                }
                self.publishes.answer(&self.replica);
            }
        };
        tokio::join!(self.discovery.shutdown(), self.net.close(), closed);
        // Whoever waits for peers waits in vain.
        self.presence.end();
    }
}

/// Both clocks now.
fn now(started: Instant) -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { mono: Mono(started.elapsed().as_millis() as u64), wall_ms: wall.as_millis() as u64 }
}

fn started_at(started: Instant, after: Duration) -> Instant {
    started.checked_add(after).unwrap_or(started)
}
