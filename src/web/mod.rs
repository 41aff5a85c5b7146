//! The page, the HTTP API and the WebSocket: the whole filter tree, and the sockets it is reached at.
//!
//! A client of the [`Handle`] like any other program. It runs on the runtime it is started from, never on the node's thread.
//! It promises that a slow or hostile browser costs a bounded amount of memory and harms nobody else.

mod api;
mod assets;
mod descriptors;
mod guard;
mod guests;
mod history;
mod objects;
mod socket;
mod standings;
#[cfg(test)]
mod tests;
mod token;

use std::convert::Infallible;
use std::future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use futures_util::Stream;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Mutex, Semaphore, mpsc, watch};
use tokio::time::timeout;
use warp::http::{HeaderMap, HeaderValue, StatusCode, header};
use warp::reject::Rejection;
use warp::reply::{Reply, Response};
use warp::{Filter, path};

use self::api::Failure;
use self::guard::{Caller, Foreign, Guard};
use self::guests::{Guests, Kind};
use self::socket::{Stage, Times};
use self::standings::Standings;
use crate::handle::Handle;
use crate::metrics::count;

pub use self::descriptors::raise_descriptors;
pub use self::guard::Access;
pub use self::guests::{GUEST_CONNECTIONS_MAX, GUEST_SOCKETS_MAX};
pub use self::token::{TokenError, WebToken};

/// The most WebSockets open at one [`Web`]; beyond it, or when file descriptors run short ([`raise_descriptors`]), they are
/// answered with 429.
pub const SOCKETS_MAX: usize = 16_384;
/// The most HTTP connections open at one [`Web`], WebSockets aside; others wait in the system's queue.
pub const CONNECTIONS_MAX: usize = 16_384;
/// The largest body of a request and the largest message of a WebSocket, in bytes. JSON may write each byte of the largest
/// payload (256 KiB) as an escape of six (`\u0001`), and there are other fields beside it.
pub const BODY_BYTES_MAX: usize = 2 * 1024 * 1024;
/// How long the head of a request may take, and how long a connection may be idle between two.
const HEAD_WAIT: Duration = Duration::from_secs(30);
/// How long connections have to end by themselves when all is closed.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// File descriptors that WebSockets leave to the log, to peers and to requests.
const SPARE_DESCRIPTORS: u64 = 128;
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
    /// Serves browsers at `address`, port 0 being any free one, on the runtime this is called from: those of this machine,
    /// and from elsewhere those that have `token`.
    ///
    /// # Errors
    /// What the system says, [`io::ErrorKind::AddrInUse`] if somebody else is there.
    pub async fn serve_tcp(handle: Handle, address: SocketAddr, token: Option<WebToken>) -> io::Result<Web> {
        Web::serve(handle, bind(address).await?, token)
    }

    /// Serves browsers at a listener that [`bind`] made.
    ///
    /// # Errors
    /// What the system says when asked for the listener's address.
    pub fn serve(handle: Handle, listener: TcpListener, token: Option<WebToken>) -> io::Result<Web> {
        let address = listener.local_addr()?;
        let site = Site::new(handle, Access::Network(token));
        Ok(Web::start(Listener::Tcp(listener), Some(address), site, tree))
    }

    /// Serves the log alone at a listener that [`bind`] made, as the history service does: all texts at `/`, pages of
    /// messages at `/messages`.
    ///
    /// # Errors
    /// What the system says when asked for the listener's address.
    pub fn serve_history(handle: Handle, listener: TcpListener, token: Option<WebToken>) -> io::Result<Web> {
        let address = listener.local_addr()?;
        let site = Site::new(handle, Access::Network(token));
        Ok(Web::start(Listener::Tcp(listener), Some(address), site, history_tree))
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
        let site = Site::new(handle, Access::UnixSocket);
        Ok(Web::start(Listener::Unix(listener, path.into()), None, site, tree))
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

    fn start<T>(listener: Listener, address: Option<SocketAddr>, site: Site, tree: fn(Arc<Site>) -> T) -> Web
    where
        T: Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static,
    {
        let (closing, closed) = watch::channel(false);
        let (held, alive) = mpsc::channel(1);
        let site = Arc::new(Site { closing: closed, _alive: Some(held), ..site });
        tokio::spawn(accept(listener, tree(site.clone()), site));
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

/// The whole filter tree, for a program that serves it itself, and that sees to it who reaches it: everybody counts as one
/// of this machine. Its WebSockets end when the node stops.
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
    spare_descriptors: u64,
    guests: Guests,
    times: Times,
    standings: Arc<Standings>,
    /// What sockets hear that came without a cursor, and with one.
    live: Stage,
    resumed: Stage,
    /// Held by whoever looks for words: one at a time, for that may mean all of a large log.
    searching: Arc<Mutex<()>>,
    closing: watch::Receiver<bool>,
    /// Dropped with the last task that serves somebody.
    _alive: Option<mpsc::Sender<Infallible>>,
}

impl Site {
    fn new(handle: Handle, access: Access) -> Site {
        let places = Arc::new(Semaphore::new(SOCKETS_MAX));
        let (_, closing) = watch::channel(false);
        let (standings, times) = (Arc::new(Standings::new(handle.clone())), Times::default());
        let (live, resumed) = (Stage::new(&handle, &standings, false), Stage::new(&handle, &standings, true));
        let guard = Guard::new(access, handle.info().run.node);
        let (guests, searching) = (Guests::default(), Arc::default());
        let spare_descriptors = SPARE_DESCRIPTORS;
        Site {
            handle,
            guard,
            places,
            spare_descriptors,
            guests,
            times,
            standings,
            live,
            resumed,
            searching,
            closing,
            _alive: None,
        }
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
    let guarded = guarded(site.clone());
    let site = warp::any().map(move || site.clone());
    let reads = reads().and(site.clone());

    let root =
        path::end().and(reads.clone()).and(caller()).and(warp::ext::optional::<OnUpgrade>()).and(scarce()).then(root);
    let healthz = warp::path!("healthz").and(reads.clone()).map(|_| "ok\n".into_response());
    let readyz = warp::path!("readyz").and(reads.clone()).map(|site: Arc<Site>| api::readyz(&site.handle));
    let metrics = warp::path!("metrics")
        .and(reads.clone())
        .then(|site: Arc<Site>| async move { api::metrics(&site.handle).await });
    let health = root.or(healthz).unify().or(readyz).unify().or(metrics).unify().boxed();

    let node = warp::path!("node").and(reads.clone()).map(|site: Arc<Site>| api::node(&site.handle));
    let bridges = warp::path!("bridges").and(reads.clone()).map(|site: Arc<Site>| api::bridges(&site.handle));
    let peers = warp::path!("peers").and(reads.clone()).map(|site: Arc<Site>| api::peers(&site.handle));
    let rooms = warp::path!("rooms")
        .and(reads.clone())
        .then(|site: Arc<Site>| async move { answer(api::rooms(&site.handle).await) });
    let messages =
        warp::path!("messages").and(reads.clone()).and(warp::query()).then(|site: Arc<Site>, query| async move {
            answer(api::messages(&site.handle, &site.searching, query).await)
        });
    let held = warp::path!("messages" / String / "held")
        .and(reads.clone())
        .and(warp::query())
        .then(|id: String, site: Arc<Site>, query| async move { answer(api::held(&site.handle, &id, query).await) });
    let export = warp::path!("messages" / "export")
        .and(reads.clone())
        .and(warp::query())
        .then(|site: Arc<Site>, query| async move { answer(history::messages(&site.handle, query).await) });
    let publish = warp::path!("messages").and(warp::post()).and(site.clone()).and(warp::body::stream()).then(publish);
    let archive = warp::path!("history" / "export")
        .and(reads.clone())
        .then(|site: Arc<Site>| async move { answer(history::export(&site.handle).await) });
    let import =
        warp::path!("history" / "import").and(warp::post()).and(site.clone()).and(warp::body::stream()).then(import);
    let durables = warp::path!("durables")
        .and(reads.clone())
        .then(|site: Arc<Site>| async move { answer(history::durables(&site.handle).await) });
    let remove = warp::path!("durables" / String).and(warp::delete()).and(site.clone()).then(
        |name: String, site: Arc<Site>| async move { answer(history::remove_durable(&site.handle, &name).await) },
    );
    let lists = node.or(peers).unify().or(bridges).unify().or(rooms).unify().or(messages).unify().boxed();
    let held_all = warp::path!("messages" / "held")
        .and(warp::post())
        .and(site)
        .and(warp::body::stream())
        .then(|site: Arc<Site>, body| async move { answer(api::held_all(&site.handle, body).await) });
    let held = held.or(held_all).unify();
    let said = held.or(export).unify().or(publish).unify().boxed();
    let kept = archive.or(import).unify().or(durables).unify().or(remove).unify().boxed();
    let rest = said.or(kept).unify();
    let api = warp::path!("api" / "v1" / ..).and(lists.or(rest).unify());

    // To be no file is a rejection like any other, else it would hide why the API did not take the request.
    let files = path::tail().and(reads).and(warp::header::headers_cloned()).and_then(
        |path: path::Tail, _, headers: HeaderMap| {
            future::ready(assets::file(path.as_str(), &headers).ok_or_else(warp::reject::not_found))
        },
    );
    whole(guarded.and(health.or(api).unify().or(files).unify()))
}

/// What the history service shows.
fn history_tree(site: Arc<Site>) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync {
    let guarded = guarded(site.clone());
    let site = warp::any().map(move || site.clone());
    let reads = reads().and(site);
    let texts = path::end()
        .and(reads.clone())
        .then(|site: Arc<Site>| async move { answer(history::texts(&site.handle).await) });
    let messages =
        warp::path!("messages").and(reads.clone()).and(warp::query()).then(|site: Arc<Site>, query| async move {
            answer(api::messages(&site.handle, &site.searching, query).await)
        });
    let healthz = warp::path!("healthz").and(reads.clone()).map(|_| "ok\n".into_response());
    let metrics =
        warp::path!("metrics").and(reads).then(|site: Arc<Site>| async move { api::metrics(&site.handle).await });
    whole(guarded.and(texts.or(messages).unify().or(healthz).unify().or(metrics).unify()))
}

/// GET and HEAD.
fn reads() -> impl Filter<Extract = (), Error = Rejection> + Clone + Send + Sync + 'static {
    warp::any().and(warp::get().or(warp::head()).unify())
}

/// Whom the guard lets in.
fn guarded(site: Arc<Site>) -> impl Filter<Extract = (), Error = Rejection> + Clone + Send + Sync + 'static {
    let check = move |caller: Caller| future::ready(let_in(&site, &caller));
    warp::any().and(caller()).and_then(check).untuple_one()
}

/// Makes an answer of whatever was refused, and says of all answers what holds for all.
fn whole<F>(tree: F) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync
where
    F: Filter<Extract = (Response,), Error = Rejection> + Clone + Send + Sync,
{
    tree.recover(|rejection: Rejection| future::ready(Ok::<_, Infallible>(refusal(&rejection)))).unify().map(
        |mut response: Response| {
            response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
            response
        },
    )
}

/// What the guard looks at.
fn caller() -> impl Filter<Extract = (Caller,), Error = Infallible> + Clone + Send + Sync + 'static {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::any()
        .and(warp::ext::optional::<Guest>())
        .and(warp::method())
        .and(path::full())
        .and(query)
        .and(warp::header::headers_cloned())
        .map(|guest: Option<Guest>, method, path: path::FullPath, query, headers| Caller {
            guest: guest.and_then(|guest| guest.address),
            method,
            path: path.as_str().into(),
            query,
            headers,
        })
}

fn let_in(site: &Site, caller: &Caller) -> Result<(), Rejection> {
    let in_time = site.guests.may(caller.guest).then_some(()).ok_or(Foreign::Rate);
    in_time.and_then(|()| site.guard.check(caller)).map_err(|foreign| {
        site.refused(match foreign {
            Foreign::Host => "host",
            Foreign::Origin => "origin",
            Foreign::Token => "token",
            Foreign::Rate => "rate",
        });
        if foreign == Foreign::Token && caller.wants_page() {
            return warp::reject::custom(AtTheDoor);
        }
        warp::reject::custom(foreign)
    })
}

/// A browser without the token; it is shown where to put that.
#[derive(Debug)]
struct AtTheDoor;

impl warp::reject::Reject for AtTheDoor {}

fn refusal(rejection: &Rejection) -> Response {
    let door = rejection.find::<AtTheDoor>().and_then(|_| assets::file("token.html", &HeaderMap::new()));
    let mut response = door.unwrap_or_else(|| Failure::of(rejection).into_response());
    if rejection.find::<AtTheDoor>().is_some() {
        *response.status_mut() = StatusCode::UNAUTHORIZED;
    }
    response
}

/// Whether a connection came in when file descriptors ran short.
fn scarce() -> impl Filter<Extract = (bool,), Error = Infallible> + Clone + Send + Sync + 'static {
    warp::ext::optional::<Guest>().map(|guest: Option<Guest>| guest.is_some_and(|guest| guest.scarce))
}

async fn root(site: Arc<Site>, caller: Caller, upgrade: Option<OnUpgrade>, scarce: bool) -> Response {
    if caller.headers.contains_key(header::UPGRADE) {
        if scarce {
            return socket::too_many(&site).into_response();
        }
        return answer(socket::upgrade(site, &caller, upgrade).await);
    }
    if let Some(cookie) = site.guard.cookie(&caller) {
        // The token does not stay in the address, where others see it.
        let mut response = StatusCode::SEE_OTHER.into_response();
        response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/"));
        response.headers_mut().insert(header::SET_COOKIE, cookie);
        return response;
    }
    assets::file("", &caller.headers).unwrap_or_else(|| Failure::not_found().into_response())
}

async fn publish(site: Arc<Site>, body: impl Stream<Item = Result<impl Buf, warp::Error>>) -> Response {
    let done = api::publish(&site.handle, body).await;
    if done.as_ref().is_err_and(|failure| failure.status == StatusCode::PAYLOAD_TOO_LARGE) {
        site.refused("too_large");
    }
    answer(done)
}

async fn import(site: Arc<Site>, body: impl Stream<Item = Result<impl Buf, warp::Error>>) -> Response {
    answer(history::import(&site.handle, body).await)
}

/// Reads one frame of a WebSocket; see [`crate::fuzz`].
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz(bytes: &[u8]) {
    socket::fuzz(bytes);
}

fn answer(done: Result<Response, Failure>) -> Response {
    done.unwrap_or_else(Failure::into_response)
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// Takes connections until all is to be closed.
async fn accept<T>(listener: Listener, tree: T, site: Arc<Site>)
where
    T: Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut closing = pin!(site.closing());
    let next = async || {
        // The semaphore is never closed.
        let place = places.clone().acquire_owned().await.ok();
        let (io, guest) = match &listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(io, from)| {
                // Small answers go out at once; a connection that refuses the option is only slower.
                let _ = io.set_nodelay(true);
                let here = io.local_addr().ok().map(|here| here.ip());
                let scarce = descriptors::run_short(&io, site.spare_descriptors);
                (Io::Tcp(io), Guest { address: guests::guest(from.ip(), here), scarce })
            })?,
            Listener::Unix(listener, _) => {
                let (io, _) = listener.accept().await?;
                let scarce = descriptors::run_short(&io, site.spare_descriptors);
                (Io::Unix(io), Guest { address: None, scarce })
            }
        };
        Ok::<_, io::Error>((io, guest, place))
    };
    loop {
        let accepted = tokio::select! {
            accepted = next() => accepted,
            () = &mut closing => break,
        };
        match accepted {
            Ok((io, guest, place)) => {
                let Some(visit) = site.guests.enter(guest.address, Kind::Connection) else {
                    site.refused("connections");
                    continue;
                };
                let (tree, site) = (tree.clone(), site.clone());
                tokio::spawn(async move {
                    match io {
                        Io::Tcp(io) => connection(io, guest, tree, &site).await,
                        Io::Unix(io) => connection(io, guest, tree, &site).await,
                    }
                    drop((visit, place));
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

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
struct Guest {
    /// Where it comes from, if it is to be limited.
    address: Option<IpAddr>,
    /// File descriptors ran short when it came.
    scarce: bool,
}

async fn connection<I, F>(io: I, guest: Guest, tree: F, site: &Site)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static,
{
    let tree = TowerToHyperService::new(warp::service(tree));
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(guest);
        tree.call(request)
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .serve_connection(TokioIo::new(io), service)
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
