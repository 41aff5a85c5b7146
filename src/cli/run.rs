//! `hubless run`: a node with its page, its API and its control socket, until a signal.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hubless::bridge::plain::Plain;
use hubless::bridge::{self, Bridge};
use hubless::config::{Config, Listen, PORT_DEFAULT};
use hubless::error::StartError;
use hubless::handle::{Event, HistoryHealth, Info};
use hubless::web::{Web, WebToken};
use hubless::{Handle, Node};
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::broadcast::error::RecvError;

use super::control::Control;
use super::join;
use super::options::Run;
use super::terminal::{Kept, Page, Terminal};
use super::{Failure, Outcome, plain};

/// The page's port, unless it is taken.
const HTTP_PORT_DEFAULT: u16 = 8080;
/// Ports tried after that one, before any port will do.
const HTTP_PORTS_TRIED: u16 = 100;
/// Nodes of one machine that share a name tell themselves apart by a number up to this one.
const NAMESAKES_MAX: u32 = 1_000;
/// A second signal so soon is the first one, sent to a whole group of processes and once more to this one.
const SAME_SIGNAL: Duration = Duration::from_millis(300);
/// An orderly end takes no longer; whoever asked for it was promised 5 s.
pub const STOP_TIMEOUT: Duration = Duration::from_millis(4_500);

/// All that runs.
struct Running {
    handle: Handle,
    web: Option<Web>,
    plain: Option<Plain>,
    bridges: Vec<Bridge>,
    control: Option<Control>,
}

/// SIGINT and SIGTERM, caught from the first moment on.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

pub async fn run(options: Run) -> Outcome {
    let mut signals = Signals::new()?;
    let mut terminal = Terminal::new(&options.log);
    hubless::web::raise_descriptors();
    if let Some(path) = &options.ready_file {
        clear_ready(path)?;
    }
    let bridges = options.bridges.wanted().map_err(Failure::usage)?;
    if !bridges.is_empty() && options.keep.no_history {
        return Err(Failure::usage("a bridge needs the history: it says how far the bridge has come")
            .hint("leave out `--no-history`"));
    }
    let handle = start(&options, &terminal).await?;
    let mut running = Running { handle: handle.clone(), web: None, plain: None, bridges: Vec::new(), control: None };
    let outcome = tokio::select! {
        outcome = serve(&options, bridges, &mut running, &mut terminal) => outcome,
        () = signals.next() => Ok(()),
    };
    let again = async {
        let same = Instant::now() + SAME_SIGNAL;
        loop {
            signals.next().await;
            if Instant::now() >= same {
                break;
            }
        }
    };
    tokio::select! {
        _ = tokio::time::timeout(STOP_TIMEOUT, running.stop()) => {}
        () = again => return Err(Failure::failed("stopped at once")),
    }
    outcome
}

/// Starts the node, as another one if the one it would be is running here.
async fn start(options: &Run, terminal: &Terminal) -> Outcome<Handle> {
    let mut config = options.keep.config(options.node.config()?);
    let given = options.node.data_dir.clone();
    let by_hand = given.is_some() || options.node.name.is_some();
    let folder =
        |name: &str| given.clone().or_else(|| join::data_dir(options.node.mesh(), name)).ok_or_else(join::no_data);
    let first_name = config.name.clone();
    let mut first_pid = 0;
    for number in 1..=NAMESAKES_MAX {
        if number > 1 {
            config.name = format!("{first_name}-{number}");
        }
        config.data_dir = Some(folder(&config.name)?);
        match Node::builder().config(config.clone()).start().await {
            Err(StartError::Locked { pid, .. }) if !by_hand => {
                first_pid = if number == 1 { pid } else { first_pid };
            }
            Err(error) => return Err(error.into()),
            Ok(handle) => {
                tell_substitutes(&config, &first_name, first_pid, handle.info(), terminal);
                return Ok(handle);
            }
        }
    }
    Err(Failure::failed(format!("{NAMESAKES_MAX} nodes called {first_name} are running here")))
}

/// Says what is not as usual.
fn tell_substitutes(config: &Config, first_name: &str, first_pid: u32, info: &Info, terminal: &Terminal) {
    if config.name != first_name {
        let process = if first_pid == 0 { String::new() } else { format!(" (process {first_pid})") };
        terminal.note(format_args!("{first_name} is running here already{process}, so this node is {}", config.name));
    }
    if config.listen == Listen::Default && info.listen.port() != PORT_DEFAULT {
        terminal.note(format_args!("port {PORT_DEFAULT} is taken, so peers reach this node at {}", info.listen.port()));
    }
}

/// Opens all doors, says so, and tells what happens until the node stops.
async fn serve(
    options: &Run,
    bridges: Vec<bridge::Options>,
    running: &mut Running,
    terminal: &mut Terminal,
) -> Outcome {
    let handle = running.handle.clone();
    let mut events = handle.events();
    let page = page(options, &handle, terminal).await?;
    let (web, page) = page.unzip();
    running.web = web;
    if let Some(wanted) = options.plain.wanted() {
        running.plain = Some(Plain::start(handle.clone(), wanted).await?);
    }
    running.bridges = bridges.into_iter().map(|bridge| Bridge::start(handle.clone(), bridge)).collect();
    let info = handle.info();
    match Control::open(handle.clone(), info.data_dir.as_deref()).await {
        Ok(control) => running.control = Some(control),
        Err(error) => terminal
            .note(format_args!("there is no control socket, so no other command finds this node: {}", plain(&error))),
    }
    let http = page.as_ref().map(|page: &Page| page.address);
    if let Some(path) = &options.ready_file {
        write_ready(path, &ready(info, http, running.plain.as_ref()))?;
    }
    terminal.welcome(info, &handle.addresses(), page.as_ref(), kept(&handle).await);
    if let Some(plain) = &running.plain {
        terminal.plain_ports(plain.publish(), plain.collect());
    }
    for peer in handle.peers().iter().filter(|peer| peer.state == hubless::handle::PeerState::Up) {
        terminal.event(&Event::PeerUp(peer.clone()));
    }
    let mut alive = handle.peers_changed();
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(event) => terminal.event(&event),
                Err(RecvError::Lagged(missed)) => terminal.note(format_args!("{missed} events came too quickly to be shown")),
                Err(RecvError::Closed) => break,
            },
            // The node holds the other end of this for as long as it lives.
            gone = alive.changed() => if gone.is_err() { break },
        }
    }
    Err(Failure::failed("the node has stopped by itself").hint("run it with `-v` to see why"))
}

/// What the node has kept so far.
async fn kept(handle: &Handle) -> Kept {
    if handle.history_health() == HistoryHealth::None {
        return Kept::Nothing;
    }
    // A disk that fails is told of as an event.
    handle.rooms().await.map_or(Kept::Unknown, |rooms| Kept::Messages(rooms.iter().map(|room| room.messages).sum()))
}

/// Serves page and API where it was asked for, or near the usual place.
async fn page(options: &Run, handle: &Handle, terminal: &Terminal) -> Outcome<Option<(Web, Page)>> {
    if options.no_http {
        return Ok(None);
    }
    let usual = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    let taken = |address, error: &io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => "another program has this port: give another one with `--http`, or `--no-http`",
            _ => "give another address with `--http ADDR:PORT`, or `--no-http`",
        };
        Failure::usage(format!("cannot serve the page on {address}: {}", plain(error))).hint(hint)
    };
    let shown = |web: Web, wanted, token| {
        let address = web.address().unwrap_or(wanted);
        Some((web, Page { address, token }))
    };
    if let Some(address) = options.http {
        let wanted = !address.ip().is_loopback() || options.http_token_file.is_some();
        let token = wanted.then(|| token(options.http_token_file.as_deref(), handle)).transpose()?;
        let web = Web::serve_tcp(handle.clone(), address, token.clone()).await;
        return web.map(|web| shown(web, address, token)).map_err(|error| taken(address, &error));
    }
    // A proxy on this machine may let in others.
    let token = options.http_token_file.as_deref().map(|file| token(Some(file), handle)).transpose()?;
    let tried = (HTTP_PORT_DEFAULT..=HTTP_PORT_DEFAULT + HTTP_PORTS_TRIED).chain([0]);
    for port in tried {
        match Web::serve_tcp(handle.clone(), usual(port), token.clone()).await {
            Ok(web) => {
                if let Some(address) = web.address().filter(|_| port != HTTP_PORT_DEFAULT) {
                    terminal.note(format_args!("port {HTTP_PORT_DEFAULT} is taken, so the page is at {address}"));
                }
                return Ok(shown(web, usual(port), token));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(taken(usual(port), &error)),
        }
    }
    Err(taken(usual(0), &io::ErrorKind::AddrInUse.into()))
}

/// What other machines need for the page: from a file, so that a link works for more than one life of the node.
pub fn token(file: Option<&Path>, handle: &Handle) -> Outcome<WebToken> {
    let kept = handle.info().data_dir.as_ref().map(|folder| folder.join("web.token"));
    match file.map(Path::to_path_buf).or(kept) {
        Some(path) => Ok(WebToken::read_or_make(&path)?),
        None => WebToken::random().map_err(|error| Failure::failed(format!("no random numbers: {}", plain(&error)))),
    }
}

/// Removes what an earlier life left there, which would tell of this one too soon, and makes sure of the place.
pub fn clear_ready(path: &Path) -> Outcome {
    let clear = || {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let (fresh, _) = fresh_beside(path)?;
        std::fs::remove_file(fresh)
    };
    clear().map_err(|error| no_ready_file(path, &error))
}

fn fresh_beside(path: &Path) -> io::Result<(PathBuf, File)> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&fresh)?;
    Ok((fresh, file))
}

fn no_ready_file(path: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!("cannot write the ready file {}: {}", path.display(), plain(error)))
        .hint("give `--ready-file` a file in a folder that is there and that you may write to")
}

fn ready(info: &Info, http: Option<SocketAddr>, plain: Option<&Plain>) -> Value {
    json!({
        "node": info.run.node,
        "epoch": info.run.epoch,
        "name": *info.name,
        "mesh": *info.mesh,
        "listen": info.listen,
        "http": http,
        "plain_pub": plain.and_then(Plain::publish),
        "plain_in": plain.and_then(Plain::collect),
        "pid": std::process::id(),
    })
}

/// By rename, so that whoever waits for the file never reads half of it.
pub fn write_ready(path: &Path, ready: &Value) -> Outcome {
    let write = || {
        let (fresh, mut file) = fresh_beside(path)?;
        writeln!(file, "{ready}")?;
        std::fs::rename(&fresh, path)
    };
    write().map_err(|error| no_ready_file(path, &error))
}

impl Running {
    /// Browsers and peers are told at once: neither waits until the other has answered.
    async fn stop(self) {
        let Running { handle, web, plain, bridges, control } = self;
        let web = async {
            if let Some(web) = web {
                web.close().await;
            }
        };
        let control = async {
            if let Some(control) = control {
                control.close().await;
            }
        };
        let plain = async {
            if let Some(plain) = plain {
                plain.close().await;
            }
        };
        // Another node goes on where a bridge of this one ends.
        let handed_over = async {
            let bridges = bridges.into_iter().map(|bridge| tokio::spawn(bridge.close()));
            for bridge in bridges.collect::<Vec<_>>() {
                let _ = bridge.await;
            }
            handle.shutdown().await;
        };
        tokio::join!(web, plain, control, handed_over);
    }
}

impl Signals {
    pub fn new() -> Outcome<Signals> {
        let catch = |kind| {
            signal(kind).map_err(|error| Failure::failed(format!("signals cannot be caught: {}", plain(&error))))
        };
        Ok(Signals { interrupt: catch(SignalKind::interrupt())?, terminate: catch(SignalKind::terminate())? })
    }

    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
