//! The page, the HTTP API and the WebSocket: the whole filter tree, and the sockets it is reached at.
//!
//! A client of the [`Handle`] like any other program. It runs on the runtime it is started from, never on the node's thread.
//! It promises that a slow or hostile browser costs a bounded amount of memory and harms nobody else.

mod api;
mod assets;
mod guard;
mod socket;

use std::convert::Infallible;
use std::future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use futures_util::Stream;
use hyper::server::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;
use warp::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use warp::reject::Rejection;
use warp::reply::{Reply, Response};
use warp::{Filter, path};

use self::api::Failure;
use self::guard::{Foreign, Guard};
use self::socket::Times;
use crate::handle::Handle;
use crate::metrics::count;

pub use self::guard::Access;

/// The most WebSockets open at one [`Web`]; beyond it they are answered with 429.
pub const SOCKETS_MAX: usize = 1_024;
/// The most HTTP connections open at one [`Web`], WebSockets aside; others wait in the system's queue.
pub const CONNECTIONS_MAX: usize = 1_024;
/// The largest body of a request and the largest message of a WebSocket, in bytes. JSON may write each byte of the largest
/// payload (256 KiB) as an escape of six (`\u0001`), and there are other fields beside it.
pub const BODY_BYTES_MAX: usize = 2 * 1024 * 1024;
/// How long the head of a request may take, and how long a connection may be idle between two.
const HEAD_WAIT: Duration = Duration::from_secs(30);
/// How long connections have to end by themselves when all is closed.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// Pause after a failed accept, most often for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The page and the API at one address. It keeps the node running as any handle does.
///
/// Dropping it closes it in the background; [`Web::close`] waits for that.
#[derive(Debug)]
pub struct Web {
    address: Option<SocketAddr>,
    closing: watch::Sender<bool>,
    /// Ends when nothing of it is left.
    alive: mpsc::Receiver<Infallible>,
}

impl Web {
    /// Serves browsers at `address`, port 0 being any free one, on the runtime this is called from.
    ///
    /// # Errors
    /// What the system says, [`io::ErrorKind::AddrInUse`] if somebody else is there.
    pub async fn serve_tcp(handle: Handle, address: SocketAddr) -> io::Result<Web> {
        Web::serve(handle, bind(address).await?)
    }

    /// Serves browsers at a listener that [`bind`] made.
    ///
    /// # Errors
    /// What the system says when asked for the listener's address.
    pub fn serve(handle: Handle, listener: TcpListener) -> io::Result<Web> {
        let address = listener.local_addr()?;
        Ok(Web::start(Listener::Tcp(listener), Some(address), Site::new(handle, Access::Network)))
    }

    /// Serves programs of this user at the Unix socket `path`, made with mode 0600 over whatever a killed process left
    /// there. Whoever calls this holds the folder. The file is removed when this is closed.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::InvalidInput`] if the path is too long for a socket.
    pub async fn serve_unix(handle: Handle, path: &Path) -> io::Result<Web> {
        // Nobody finds the socket under its name before its mode is set.
        let unnamed = path.with_extension("new");
        match std::fs::remove_file(&unnamed) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&unnamed)?;
        std::fs::set_permissions(&unnamed, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&unnamed, path)?;
        Ok(Web::start(Listener::Unix(listener, path.into()), None, Site::new(handle, Access::UnixSocket)))
    }

    /// Where it is reached over TCP, with the real port.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Accepts nobody more, closes all WebSockets with code 1001, lets requests end, and answers when all that is done or
    /// 2 s have passed.
    pub async fn close(mut self) {
        self.closing.send_replace(true);
        // What is still there after that is dropped by its own task.
        let _ = timeout(CLOSE_WAIT, self.alive.recv()).await;
    }

    fn start(listener: Listener, address: Option<SocketAddr>, site: Site) -> Web {
        let (closing, closed) = watch::channel(false);
        let (held, alive) = mpsc::channel(1);
        tokio::spawn(accept(listener, Arc::new(Site { closing: closed, _alive: Some(held), ..site })));
        Web { address, closing, alive }
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.closing.send_replace(true);
    }
}

/// Binds `address` for [`Web::serve`].
///
/// # Errors
/// What the system says, [`io::ErrorKind::AddrInUse`] if somebody else is there.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// The whole filter tree, for a program that serves it itself. Its WebSockets end when the node stops.
pub fn routes(
    handle: Handle,
    access: Access,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static {
    tree(Arc::new(Site::new(handle, access)))
}

/// What all requests share.
#[derive(Debug)]
struct Site {
    handle: Handle,
    guard: Guard,
    /// Free places for WebSockets.
    places: Arc<Semaphore>,
    times: Times,
    closing: watch::Receiver<bool>,
    /// Dropped with the last task that serves somebody.
    _alive: Option<mpsc::Sender<Infallible>>,
}

impl Site {
    fn new(handle: Handle, access: Access) -> Site {
        let places = Arc::new(Semaphore::new(SOCKETS_MAX));
        let (_, closing) = watch::channel(false);
        Site { handle, guard: Guard::new(access), places, times: Times::default(), closing, _alive: None }
    }

    /// Waits until all is to be closed.
    async fn closing(&self) {
        // Without a `Web` nobody ever closes.
        if self.closing.clone().wait_for(|closing| *closing).await.is_err() {
            future::pending::<()>().await;
        }
    }

    fn refused(&self, reason: &'static str) {
        count(&self.handle.metrics().web_refused, reason);
    }
}

fn tree(site: Arc<Site>) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static {
    let guarded = {
        let site = site.clone();
        let check = move |method: Method, headers: HeaderMap| future::ready(let_in(&site, &method, &headers));
        warp::method().and(warp::header::headers_cloned()).and_then(check).untuple_one()
    };
    let site = warp::any().map(move || site.clone());
    let reads = warp::get().or(warp::head()).unify();
    let reads = warp::any().and(reads).and(site.clone());

    let root = path::end()
        .and(reads.clone())
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional::<OnUpgrade>())
        .then(root);
    let healthz = warp::path!("healthz").and(reads.clone()).map(|_| "ok\n".into_response());
    let readyz = warp::path!("readyz").and(reads.clone()).map(|site: Arc<Site>| api::readyz(&site.handle));
    let metrics = warp::path!("metrics").and(reads.clone()).map(|site: Arc<Site>| api::metrics(&site.handle));
    let health = root.or(healthz).unify().or(readyz).unify().or(metrics).unify().boxed();

    let node = warp::path!("node").and(reads.clone()).map(|site: Arc<Site>| api::node(&site.handle));
    let peers = warp::path!("peers").and(reads.clone()).map(|site: Arc<Site>| api::peers(&site.handle));
    let rooms = warp::path!("rooms")
        .and(reads.clone())
        .then(|site: Arc<Site>| async move { answer(api::rooms(&site.handle).await) });
    let messages = warp::path!("messages")
        .and(reads.clone())
        .and(warp::query())
        .then(|site: Arc<Site>, query| async move { answer(api::messages(&site.handle, query).await) });
    let held = warp::path!("messages" / String / "held")
        .and(reads.clone())
        .and(warp::query())
        .then(|id: String, site: Arc<Site>, query| async move { answer(api::held(&site.handle, &id, query).await) });
    let export = warp::path!("messages" / "export").map(|| Failure::not_available("log to export").into_response());
    let durables = warp::path!("durables" / ..).map(|| Failure::not_available("named cursors").into_response());
    let publish = warp::path!("messages").and(warp::post()).and(site).and(warp::body::stream()).then(publish);
    let lists = node.or(peers).unify().or(rooms).unify().or(messages).unify().boxed();
    let rest = held.or(export).unify().or(durables).unify().or(publish).unify().boxed();
    let api = warp::path!("api" / "v1" / ..).and(lists.or(rest).unify());

    // To be no file is a rejection like any other, else it would hide why the API did not take the request.
    let files = path::tail().and(reads).and(warp::header::headers_cloned()).and_then(
        |path: path::Tail, _, headers: HeaderMap| {
            future::ready(assets::file(path.as_str(), &headers).ok_or_else(warp::reject::not_found))
        },
    );
    let all = guarded.and(health.or(api).unify().or(files).unify());
    all.recover(|rejection: Rejection| future::ready(Ok::<_, Infallible>(Failure::of(&rejection).into_response())))
        .unify()
        .map(|mut response: Response| {
            response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
            response
        })
}

fn let_in(site: &Site, method: &Method, headers: &HeaderMap) -> Result<(), Rejection> {
    site.guard.check(method, headers).map_err(|foreign| {
        site.refused(match foreign {
            Foreign::Host => "host",
            Foreign::Origin => "origin",
        });
        warp::reject::custom(foreign)
    })
}

async fn root(site: Arc<Site>, headers: HeaderMap, upgrade: Option<OnUpgrade>) -> Response {
    if headers.contains_key(header::UPGRADE) {
        return answer(socket::upgrade(site, &headers, upgrade).await);
    }
    assets::file("", &headers).unwrap_or_else(|| Failure::not_found().into_response())
}

async fn publish(site: Arc<Site>, body: impl Stream<Item = Result<impl Buf, warp::Error>>) -> Response {
    let done = api::publish(&site.handle, body).await;
    if done.as_ref().is_err_and(|failure| failure.status == StatusCode::PAYLOAD_TOO_LARGE) {
        site.refused("too_large");
    }
    answer(done)
}

fn answer(done: Result<Response, Failure>) -> Response {
    done.unwrap_or_else(Failure::into_response)
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// Takes connections until all is to be closed.
async fn accept(listener: Listener, site: Arc<Site>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let tree = tree(site.clone());
    let mut closing = pin!(site.closing());
    let next = async || {
        // The semaphore is never closed.
        let place = places.clone().acquire_owned().await.ok();
        let serving = |io| (io, place);
        match &listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(io, _)| {
                // Small answers go out at once; a connection that refuses the option is only slower.
                let _ = io.set_nodelay(true);
                serving(Io::Tcp(io))
            }),
            Listener::Unix(listener, _) => listener.accept().await.map(|(io, _)| serving(Io::Unix(io))),
        }
    };
    loop {
        let accepted = tokio::select! {
            accepted = next() => accepted,
            () = &mut closing => break,
        };
        match accepted {
            Ok((io, place)) => {
                let (tree, site) = (tree.clone(), site.clone());
                tokio::spawn(async move {
                    match io {
                        Io::Tcp(io) => connection(io, tree, &site).await,
                        Io::Unix(io) => connection(io, tree, &site).await,
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the page was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    if let Listener::Unix(_, path) = &listener {
        // Somebody else may have removed it.
        let _ = std::fs::remove_file(path);
    }
}

enum Io {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

async fn connection<I, F>(io: I, tree: F, site: &Site)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static,
{
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(warp::service(tree)))
        .with_upgrades();
    let mut serving = pin!(serving);
    let ended = tokio::select! {
        ended = &mut serving => ended,
        () = site.closing() => {
            serving.as_mut().graceful_shutdown();
            timeout(CLOSE_WAIT, serving).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the page ended early");
    }
}

#[cfg(test)]
mod tests {
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
    use crate::error::PublishError;
    use crate::handle::{Ask, FoundBy, Info, Inner, Peer, PeerState, Published, State, Submission, Window};
    use crate::id::{EntryId, Epoch, Key, NodeId, Run, Seq};
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
            let author =
                Author { origin: RUN, name: "ada", first: seq, hlc: earliest.max(Hlc::at(wall_ms)), previous: [0; 32] };
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
                    let (feed, subscription) = queue(filter, after.is_some(), covered, backlog, Arc::default());
                    self.feeds.push(feed);
                    let _ = reply.send(subscription);
                }
                Ask::Window { after, reply } => {
                    let (batches, cursor) = (self.batches.clone(), self.cursor());
                    let _ = reply.send(Window { batches, cursor, after, expired: 0 });
                }
                Ask::HeldBy { count: 0, reply, .. } => drop(reply.send(0)),
                Ask::HeldBy { reply, .. } => self.waiting.push(reply),
                Ask::Shutdown { reply } => return Some(reply),
            }
            None
        }
    }

    struct Fake {
        handle: Handle,
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
            listen: (Ipv4Addr::LOCALHOST, 1).into(),
            interfaces: Arc::new([]),
            data_dir: None,
        };
        let events = broadcast::channel(1).0;
        let (metrics, aside) = (Metrics::new(), tokio::sync::Semaphore::new(1));
        let addresses = watch::channel(Arc::from([])).1;
        let handle = Handle::new(Inner { info, publish, ask, peers: shown, addresses, events, metrics, aside });
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
        Fake { handle, peers, items }
    }

    /// Serves a fake node with a changed site on any port.
    async fn serve(change: impl FnOnce(&mut Site)) -> (Fake, Web) {
        let fake = fake("test");
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let address = listener.local_addr().ok();
        let mut site = Site::new(fake.handle.clone(), Access::Network);
        change(&mut site);
        let web = Web::start(Listener::Tcp(listener), address, site);
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
        let again = Web::serve_tcp(fake.handle.clone(), web.address().unwrap()).await;
        assert_eq!(again.map(drop).map_err(|error| error.kind()), Err(io::ErrorKind::AddrInUse));
    }
}
