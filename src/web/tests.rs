//! The whole filter tree on real sockets, against a small loop that answers the handle as a node does.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::sync::{broadcast, oneshot};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::*;
use crate::aside::Aside;
use crate::error::PublishError;
use crate::handle::{
    Ask, Event, FoundBy, HistoryHealth, Info, Inner, Peer, PeerState, Published, Standing, State, Submission, Window,
};
use crate::id::{EntryId, Epoch, Key, NodeId, NodeKey, Run, Seq};
use crate::metrics::Metrics;
use crate::replica::batch::{Author, Batch, Draft};
use crate::replica::clock::Hlc;
use crate::replica::version::Cursor;
use crate::subscription::{Feed, Gap, GapReason, Item, queue};

const PATIENCE: Duration = Duration::from_secs(10);
const RUN: Run = Run { node: NodeId([7; 32]), epoch: Epoch(1) };

/// What answers a handle in place of an event loop: it keeps and delivers, and knows no mesh.
#[derive(Default)]
struct Keeper {
    batches: Vec<Batch>,
    keys: HashMap<Key, (EntryId, Draft)>,
    feeds: Vec<Feed>,
    /// Who waits for holders that never come.
    waiting: Vec<oneshot::Sender<usize>>,
}

impl Keeper {
    fn publish(&mut self, draft: Draft) -> Result<Published, PublishError> {
        if let Some((id, first)) = draft.key.and_then(|key| self.keys.get(&key)) {
            let known = Published { id: *id, state: State::Sent, known: true };
            return if *first == draft { Ok(known) } else { Err(PublishError::KeyReused) };
        }
        let seq = Seq(self.batches.len() as u64 + 1);
        let wall_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        let earliest = self.batches.last().map_or(Hlc(0), |batch| batch.hlc_last().plus(1));
        // It is not parsed again.
        let key = NodeKey::from_bytes(&[1; 32]);
        let author = Author {
            key: &key,
            origin: RUN,
            name: "ada",
            first: seq,
            hlc: earliest.max(Hlc::at(wall_ms)),
            previous: [0; 32],
        };
        let batch = author.encode(std::slice::from_ref(&draft));
        let id = EntryId { run: RUN, seq };
        self.keys.extend(draft.key.map(|key| (key, (id, draft))));
        self.feeds.retain(|feed| !feed.is_closed());
        self.feeds.iter().for_each(|feed| feed.put(Item::Batch { batch: batch.clone(), late: false }));
        self.batches.push(batch);
        Ok(Published { id, state: State::Sent, known: false })
    }

    fn cursor(&self) -> Cursor {
        let mut cursor = Cursor::new();
        for batch in &self.batches {
            cursor.add(batch.origin().hash(), batch.first(), batch.last(), batch.hlc_last());
        }
        cursor
    }

    fn answer(&mut self, ask: Ask) -> Option<oneshot::Sender<()>> {
        match ask {
            Ask::Subscribe { filter, after, reply } => {
                let item = |batch: &Batch| Item::Batch { batch: batch.clone(), late: false };
                let backlog = self.batches.iter().filter(|_| after.is_some()).map(item).collect();
                let covered = after.clone().unwrap_or_else(|| self.cursor());
                let (feed, subscription) = queue(filter, after.is_some(), covered, backlog, Arc::default(), None);
                self.feeds.push(feed);
                let _ = reply.send(subscription);
            }
            Ask::Window { after, take } => {
                let (batches, cursor) = (self.batches.clone(), self.cursor());
                take(Window { batches, cursor, after, expired: 0 });
            }
            Ask::HeldBy { count: 0, reply, .. } => drop(reply.send(0)),
            Ask::HeldBy { reply, .. } => self.waiting.push(reply),
            Ask::Standing { ids, reply } => {
                let sent = |_| Standing { state: State::Sent, stored_by: 0 };
                let _ = reply.send(ids.into_iter().map(sent).collect());
            }
            Ask::Import { reply, .. } => drop(reply),
            Ask::Shutdown { reply } => return Some(reply),
        }
        None
    }
}

struct Fake {
    handle: Handle,
    events: broadcast::Sender<Event>,
    peers: mpsc::UnboundedSender<Arc<[Peer]>>,
    items: mpsc::UnboundedSender<Item>,
}

fn fake(mesh: &str) -> Fake {
    let (publish, mut submissions) = mpsc::channel::<Submission>(16);
    let (ask, mut asks) = mpsc::channel(16);
    let (peers, mut new_peers) = mpsc::unbounded_channel();
    let (items, mut given) = mpsc::unbounded_channel::<Item>();
    let (show, shown) = watch::channel::<Arc<[Peer]>>(Arc::new([]));
    let info = Info {
        run: RUN,
        name: "ada".into(),
        mesh: mesh.into(),
        open: true,
        listen: (Ipv4Addr::LOCALHOST, 1).into(),
        interfaces: Arc::new([]),
        data_dir: None,
    };
    let events = broadcast::channel(16).0;
    let told = events.clone();
    let (metrics, aside) = (Metrics::new(), Aside::new().unwrap());
    let addresses = watch::channel(Arc::from([])).1;
    let health = watch::channel(HistoryHealth::None).1;
    let holders = Arc::default();
    let handle = Handle::new(Inner {
        info,
        publish,
        ask,
        peers: shown,
        addresses,
        events,
        metrics,
        aside,
        log: None,
        holders,
        bridges: Default::default(),
        health,
    });
    tokio::spawn(async move {
        let mut keeper = Keeper::default();
        let stopped = loop {
            tokio::select! {
                submission = submissions.recv() => {
                    let Some(Submission { drafts, reply }) = submission else { break None };
                    let _ = reply.send(drafts.into_iter().map(|draft| keeper.publish(draft)).collect());
                }
                ask = asks.recv() => {
                    let Some(ask) = ask else { break None };
                    if let Some(reply) = keeper.answer(ask) {
                        break Some(reply);
                    }
                }
                Some(peers) = new_peers.recv() => drop(show.send_replace(peers)),
                Some(item) = given.recv() => keeper.feeds.iter().for_each(|feed| feed.put(item.clone())),
            }
        };
        drop((show, submissions, asks, keeper));
        stopped.map(|reply| reply.send(()))
    });
    Fake { handle, events: told, peers, items }
}

/// Serves a fake node with a changed site on any port.
async fn serve(change: impl FnOnce(&mut Site)) -> (Fake, Web) {
    let fake = fake("test");
    let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    let address = listener.local_addr().ok();
    let mut site = Site::new(fake.handle.clone(), Access::Network(None));
    change(&mut site);
    let web = Web::start(Listener::Tcp(listener), address, site, tree);
    (fake, web)
}

type Socket = WebSocketStream<TcpStream>;

async fn try_open(web: &Web, protocol: Option<&str>) -> Result<Socket, u16> {
    open_over(TcpStream::connect(web.address().unwrap()).await.unwrap(), web, protocol).await
}

async fn open_over(stream: TcpStream, web: &Web, protocol: Option<&str>) -> Result<Socket, u16> {
    let mut request = format!("ws://{}/", web.address().unwrap()).into_client_request().unwrap();
    if let Some(protocol) = protocol {
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    }
    match client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(tokio_tungstenite::tungstenite::Error::Http(answer)) => Err(answer.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

async fn join(web: &Web) -> Socket {
    let mut socket = try_open(web, Some("hubless.v1")).await.unwrap();
    socket.send(Message::text(r#"{"type":"hello"}"#)).await.unwrap();
    assert_eq!(next(&mut socket).await.unwrap()["type"], "welcome");
    socket
}

/// The next frame, or the code of the close.
async fn next(socket: &mut Socket) -> Result<Value, u16> {
    loop {
        match timeout(PATIENCE, socket.next()).await.expect("a frame in time") {
            Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
            Some(Ok(Message::Close(Some(close)))) => return Err(close.code.into()),
            Some(Ok(_)) => {}
            other => panic!("{other:?} instead of a frame"),
        }
    }
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, holds).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

fn peer(state: PeerState, rtt: u64) -> Arc<[Peer]> {
    Arc::new([Peer {
        run: Run { node: NodeId([8; 32]), epoch: Epoch(2) },
        name: "bob".into(),
        state,
        address: None,
        found_by: FoundBy::Seed,
        rtt: Some(Duration::from_millis(rtt)),
        last_heard: Some(Instant::now()),
        dropped: 0,
    }])
}

#[tokio::test]
async fn a_slow_reader_is_told_and_closed_with_1013() {
    let (fake, web) = serve(|_| {}).await;
    let mut socket = join(&web).await;
    fake.items.send(Item::Gap(Gap { missing: 3, reason: GapReason::Late })).unwrap();
    assert_eq!(next(&mut socket).await, Ok(json!({ "type": "gap", "missing": 3, "reason": "late" })));
    fake.items.send(Item::Gap(Gap { missing: 9, reason: GapReason::Slow })).unwrap();
    assert_eq!(next(&mut socket).await, Ok(json!({ "type": "gap", "missing": 9, "reason": "slow" })));
    assert_eq!(next(&mut socket).await, Err(1013));
    let mut plain = try_open(&web, None).await.unwrap();
    fake.items.send(Item::Gap(Gap { missing: 1, reason: GapReason::Slow })).unwrap();
    assert_eq!(next(&mut plain).await, Err(1013));
}

#[tokio::test]
async fn a_client_that_begins_to_read_again_hears_why_it_is_let_go() {
    let (fake, web) = serve(|site| site.times.stuck = Duration::from_millis(50)).await;
    let open = async |protocol| {
        let stream = TcpSocket::new_v4().unwrap();
        // A large one would take all that is said here.
        stream.set_recv_buffer_size(64 * 1024).unwrap();
        let stream = stream.connect(web.address().unwrap()).await.unwrap();
        open_over(stream, &web, protocol).await.unwrap()
    };
    let (mut plain, mut socket) = (open(None).await, open(Some("hubless.v1")).await);
    socket.send(Message::text(r#"{"type":"hello"}"#)).await.unwrap();
    assert_eq!(next(&mut socket).await.unwrap()["type"], "welcome");
    for _ in 0..64 {
        fake.handle.publish("lobby", "x".repeat(256 * 1024)).await.unwrap();
    }
    // Longer than anybody else has for a close.
    let one_gone = async {
        while fake.handle.metrics().web_sockets.get() == 2 {
            tokio::task::yield_now().await;
        }
    };
    assert!(timeout(Duration::from_secs(2), one_gone).await.is_err(), "cut off before it could read");
    let mut frame = next(&mut socket).await;
    while frame.as_ref().is_ok_and(|frame| frame["type"] == "message") {
        frame = next(&mut socket).await;
    }
    assert_eq!(frame, Ok(json!({ "type": "gap", "missing": 0, "reason": "slow" })));
    assert_eq!(next(&mut socket).await, Err(1013));
    loop {
        match timeout(PATIENCE, plain.next()).await.expect("a frame in time") {
            Some(Ok(Message::Close(Some(close)))) => break assert_eq!(u16::from(close.code), 1013),
            Some(Ok(_)) => {}
            other => panic!("{other:?} instead of a close"),
        }
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off() {
    let short = |site: &mut Site| {
        site.times.stuck = Duration::from_millis(50);
        site.times.linger = Duration::from_millis(50);
    };
    let (fake, web) = serve(short).await;
    let socket = join(&web).await;
    let cut = async {
        while fake.handle.metrics().web_sockets.get() > 0 {
            fake.handle.publish("lobby", "x".repeat(256 * 1024)).await.unwrap();
        }
    };
    timeout(PATIENCE, cut).await.expect("cut off in time");
    drop(socket);
}

#[tokio::test]
async fn a_client_without_a_sign_of_life_is_let_go_and_one_that_answers_pings_is_not() {
    let short = |site: &mut Site| {
        site.times.ping = Duration::from_millis(20);
        site.times.dead = Duration::from_millis(200);
    };
    let (fake, web) = serve(short).await;
    let silent = try_open(&web, None).await.unwrap();
    let mut lively = join(&web).await;
    eventually("both are open", || fake.handle.metrics().web_sockets.get() == 2).await;
    let answering = async { while lively.next().await.is_some() {} };
    let watching = eventually("one is gone", || fake.handle.metrics().web_sockets.get() == 1);
    tokio::select! {
        () = answering => panic!("the lively one was let go"),
        () = watching => {}
    }
    lively.send(Message::text(r#"{"type":"ping"}"#)).await.unwrap();
    assert_eq!(next(&mut lively).await, Ok(json!({ "type": "pong" })));
    drop(silent);
}

#[tokio::test]
async fn a_client_that_only_listens_need_not_say_hello() {
    let (fake, web) = serve(|site| site.times.hello = Duration::from_millis(1)).await;
    let mut socket = try_open(&web, Some("hubless.v1")).await.unwrap();
    assert_eq!(next(&mut socket).await.unwrap()["type"], "welcome");
    fake.handle.publish("lobby", "hi").await.unwrap();
    assert_eq!(next(&mut socket).await.unwrap()["text"], "hi");
}

#[tokio::test]
async fn news_of_peers_comes_soon_and_their_round_trips_do_not_flood() {
    let (fake, web) = serve(|_| {}).await;
    let mut socket = join(&web).await;
    let started = Instant::now();
    fake.peers.send(peer(PeerState::Up, 1)).unwrap();
    let shown = next(&mut socket).await.unwrap();
    assert_eq!((&shown["type"], &shown["peers"][0]["state"]), (&json!("peers"), &json!("up")));
    assert_eq!((&shown["peers"][0]["rtt_ms"], &shown["peers"][0]["found_by"]), (&json!(1.0), &json!("seed")));
    for rtt in 2..100 {
        fake.peers.send(peer(PeerState::Up, rtt)).unwrap();
    }
    fake.peers.send(peer(PeerState::Down, 100)).unwrap();
    assert_eq!(next(&mut socket).await.unwrap()["peers"][0]["state"], "down");
    assert!(started.elapsed() >= Duration::from_millis(450), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_client_hears_how_the_history_is_and_how_far_it_has_caught_up() {
    let (fake, web) = serve(|_| {}).await;
    let mut socket = join(&web).await;
    fake.events.send(Event::CatchUp { missing: 900, done: 100 }).unwrap();
    assert_eq!(next(&mut socket).await, Ok(json!({ "type": "catch_up", "missing": 900, "done": 100 })));
    fake.events.send(Event::History(HistoryHealth::Full)).unwrap();
    assert_eq!(next(&mut socket).await, Ok(json!({ "type": "history", "state": "full" })));
    fake.events.send(Event::History(HistoryHealth::Working)).unwrap();
    assert_eq!(next(&mut socket).await, Ok(json!({ "type": "history", "state": "working" })));
}

#[tokio::test]
async fn a_burst_ends_with_a_cursor_and_only_there() {
    let (fake, web) = serve(|_| {}).await;
    for number in 0..600 {
        fake.handle.publish("lobby", number.to_string()).await.unwrap();
    }
    let mut socket = try_open(&web, Some("hubless.v1")).await.unwrap();
    let hello = json!({ "type": "hello", "after": Cursor::new().to_string() });
    socket.send(Message::text(hello.to_string())).await.unwrap();
    next(&mut socket).await.unwrap();
    let mut ends = Vec::new();
    for number in 0..600 {
        let message = next(&mut socket).await.unwrap();
        assert_eq!(message["text"], number.to_string());
        if message["cursor"].is_string() {
            ends.push(number);
        }
    }
    assert_eq!(ends, [255, 511, 599]);
}

#[tokio::test]
async fn sockets_beyond_the_limit_are_refused_until_one_ends() {
    let (fake, web) = serve(|site| site.places = Arc::new(Semaphore::new(1))).await;
    let first = try_open(&web, None).await.unwrap();
    assert_eq!(try_open(&web, None).await.err(), Some(429));
    drop(first);
    eventually("its place is free", || fake.handle.metrics().web_sockets.get() == 0).await;
    assert!(try_open(&web, None).await.is_ok());
}

#[tokio::test]
async fn when_descriptors_run_short_a_socket_is_refused_and_a_request_is_not() {
    let (_fake, web) = serve(|site| site.spare_descriptors = u64::MAX).await;
    assert_eq!(try_open(&web, None).await.err(), Some(429));
    let mut stream = TcpStream::connect(web.address().unwrap()).await.unwrap();
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", web.address().unwrap());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_unix_socket_is_private_serves_anybody_s_name_and_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    std::fs::write(&path, "left by a killed process").unwrap();
    let fake = fake("unix");
    let web = Web::serve_unix(fake.handle.clone(), &path).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut stream = UnixStream::connect(&path).await.unwrap();
    let request = "GET /api/v1/node HTTP/1.1\r\nHost: what.ever\r\nOrigin: null\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(r#""mesh":"unix""#), "{answer}");
    web.close().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn a_taken_port_is_said_to_be_taken() {
    let (fake, web) = serve(|_| {}).await;
    let again = Web::serve_tcp(fake.handle.clone(), web.address().unwrap(), None).await;
    assert_eq!(again.map(drop).map_err(|error| error.kind()), Err(io::ErrorKind::AddrInUse));
}
