//! What a person sees of a node: the welcome, then a line for each arrival and departure; and notes of all commands.
//!
//! Everything here goes to stderr, in colour only where a terminal shows it and `NO_COLOR` is not set. Names and texts come
//! from the LAN, so nothing of them reaches the terminal as a control character. With `--log-format json` the same is said
//! as log events.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hubless::config::host_name;
use hubless::handle::{BridgeState, BridgeStatus, Event, HistoryHealth, Info, Peer, PeerState};
use hubless::id::{NodeId, Run};
use hubless::subscription::GapReason;
use hubless::web::WebToken;
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;

use super::options::{LogFormat, LogOptions};

/// A line to stderr. A reader that has gone is no error.
pub fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Whether stderr shows colours, and its reader wants them.
pub fn colours() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    io::stderr().is_terminal() && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// `text` as it may be shown in one line: without control characters, nor those that turn the direction of writing.
pub fn clean(text: &str) -> String {
    let hidden = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if hidden(c) { '\u{fffd}' } else { c }).collect()
}

/// A round-trip time, or how long something took, for people.
pub fn milliseconds(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1_000.0;
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

/// A duration that somebody gave, as he would write it.
pub fn given(time: Duration) -> String {
    if time.is_zero() { "0s".into() } else { format!("{time:?}") }
}

/// The first characters of a node's id: enough to tell the nodes of a LAN apart.
pub fn short(node: &NodeId) -> String {
    node.to_string().chars().take(8).collect()
}

/// The word for a state, as the API writes it.
pub fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// A code for a camera, as lines of text.
pub fn qr(text: &str) -> Option<String> {
    let code = QrCode::new(text).ok()?;
    Some(code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build())
}

/// Where the page is, and what other machines need for it.
#[derive(Clone, Debug)]
pub struct Page {
    pub address: SocketAddr,
    pub token: Option<WebToken>,
}

/// Says things in the way that was asked for.
#[derive(Clone, Debug)]
pub struct Terminal {
    manner: Manner,
    colours: bool,
    /// Whether a line can be written over.
    redraws: bool,
    /// Whether the last line is to be written over.
    unfinished: Cell<bool>,
    /// When catching up was last told of, while it goes on.
    catch_up_told: Option<Instant>,
    /// What was last said of each peer.
    told: HashMap<Run, PeerState>,
    /// What was last said of each bridge, and when.
    bridges: HashMap<Arc<str>, (BridgeStatus, Instant)>,
}

/// How a node keeps its history, as the welcome says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It was asked to keep nothing.
    Nothing,
    /// It keeps what is said, and holds so many messages.
    Messages(u64),
    /// It cannot say yet.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Lines,
    Events,
    Silence,
}

/// Where lines cannot be written over, catching up is told of so often.
const CATCH_UP_EVERY: Duration = Duration::from_secs(10);

const BOLD: &str = "1";
const DIM: &str = "2";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const RED: &str = "31";

impl Terminal {
    pub fn new(options: &LogOptions) -> Terminal {
        let manner = match options.log_format.unwrap_or_default() {
            LogFormat::Json => Manner::Events,
            LogFormat::Text if options.quiet => Manner::Silence,
            LogFormat::Text => Manner::Lines,
        };
        let redraws =
            colours() || (io::stderr().is_terminal() && std::env::var_os("TERM").is_some_and(|term| term != "dumb"));
        let unfinished = Cell::new(false);
        Terminal {
            manner,
            colours: colours(),
            redraws,
            unfinished,
            catch_up_told: None,
            told: HashMap::new(),
            bridges: HashMap::new(),
        }
    }

    /// Something worth knowing that is no error.
    pub fn note(&self, note: impl fmt::Display) {
        match self.manner {
            Manner::Lines => self.whole(format_args!("{} {note}", self.paint(YELLOW, "note:"))),
            Manner::Events => tracing::info!("{note}"),
            Manner::Silence => {}
        }
    }

    /// Something to do about what was shown.
    pub fn hint(&self, hint: impl fmt::Display) {
        match self.manner {
            Manner::Lines => self.whole(format_args!("{} {hint}", self.paint(YELLOW, "hint:"))),
            Manner::Events => tracing::info!("{hint}"),
            Manner::Silence => {}
        }
    }

    /// Where stock ZeroMQ clients connect to.
    pub fn plain_ports(&self, publish: Option<SocketAddr>, collect: Option<SocketAddr>) {
        for (address, who) in [(publish, "subscribers"), (collect, "publishers")] {
            if let Some(address) = address {
                self.note(format_args!("stock ZeroMQ {who} connect to tcp://{address}"));
            }
        }
    }

    /// Who this node is and where it is reached.
    pub fn welcome(&self, info: &Info, addresses: &[SocketAddr], page: Option<&Page>, kept: Kept) {
        let Info { run, name, mesh, open, listen, interfaces, data_dir } = info;
        let access = if *open { "open: anyone here can read and write" } else { "closed by a key" };
        let join = |words: Vec<String>| if words.is_empty() { "none".to_string() } else { words.join(", ") };
        let reached = join(addresses.iter().map(SocketAddr::to_string).collect());
        let used = join(interfaces.iter().filter(|i| i.skipped.is_none()).map(|i| clean(&i.name)).collect());
        let skipped = interfaces.iter().filter_map(|i| i.skipped.map(|why| format!("{} ({why})", clean(&i.name))));
        let skipped = Vec::from_iter(skipped);
        let links = page.map(|page| page.links(addresses)).unwrap_or_default();
        let page = page.map(|page| url(page.address));
        let history =
            data_dir.as_ref().filter(|_| kept != Kept::Nothing).map(|folder| at_home(&folder.join("history")));
        let held = if let Kept::Messages(held) = kept { Some(held) } else { None };
        match self.manner {
            Manner::Silence => {}
            Manner::Events => tracing::info!(
                node = %run.node, epoch = %run.epoch, %name, %mesh, open, %listen, addresses = reached,
                interfaces = used, skipped = skipped.join(", "), page, history, messages = held, "serving"
            ),
            Manner::Lines => {
                let row = |word: &str, value: &dyn fmt::Display| {
                    say(format_args!("  {} {value}", self.paint(DIM, &format!("{word:<10}"))));
                };
                let name = self.paint(BOLD, &clean(name));
                say(format_args!(
                    "{} {name} on mesh {} ({access})",
                    self.paint(DIM, "hubless"),
                    self.paint(BOLD, mesh)
                ));
                if let Some(page) = page {
                    row("page", &self.paint(BOLD, &page));
                }
                // The secret is for whoever sees this; it is not in what is logged.
                for link in &links {
                    row("elsewhere", &self.paint(BOLD, link));
                }
                row("peers at", &if addresses.is_empty() { listen.to_string() } else { reached });
                row("interfaces", &used);
                if !skipped.is_empty() {
                    row("skipped", &skipped.join(", "));
                }
                match (history, kept) {
                    (Some(folder), Kept::Messages(held)) => {
                        row("history", &format!("{}, in {folder}", counted(held, "message")));
                    }
                    (Some(folder), _) => row("history", &folder),
                    (None, _) => row("history", &"none: what is said is gone with this node"),
                }
                row("stop", &"Ctrl-C");
                if let Some(image) = links.first().filter(|_| io::stderr().is_terminal()).and_then(|link| qr(link)) {
                    say(format_args!("{image}"));
                }
            }
        }
    }

    /// One line for what happened, unless nothing changed by it.
    pub fn event(&mut self, event: &Event) {
        match event {
            Event::PeerUp(peer) => self.peer(peer, PeerState::Up),
            Event::PeerSuspect(peer) => {
                let state = if peer.state == PeerState::OneWay { PeerState::OneWay } else { PeerState::Suspect };
                self.peer(peer, state);
            }
            Event::PeerDown(peer) => self.peer(peer, PeerState::Down),
            Event::Apart { address, reason } => match self.manner {
                Manner::Events => tracing::info!(%address, reason, "a neighbour is kept apart"),
                // The reason begins with the address.
                _ => self.line(YELLOW, "!", format_args!("{}", clean(reason))),
            },
            // What may still come is no loss; whoever reads is told at that place.
            Event::Gap(gap) if matches!(gap.reason, GapReason::Late | GapReason::Slow) => {}
            Event::Gap(gap) => match self.manner {
                Manner::Events => {
                    tracing::info!(missing = gap.missing, reason = word(&gap.reason), "messages are missing")
                }
                _ => self.line(
                    RED,
                    "!",
                    format_args!("{} messages are missing for good ({})", gap.missing, word(&gap.reason)),
                ),
            },
            Event::PeerCut(peer) => match self.manner {
                Manner::Events => tracing::info!(node = %peer.run.node, name = %peer.name, "a slow peer was cut"),
                _ => self.line(
                    YELLOW,
                    "!",
                    format_args!("{} is too slow and was cut; it gets what it missed later", name(peer)),
                ),
            },
            Event::History(health) => match self.manner {
                Manner::Events => tracing::info!(history = word(health), "the history"),
                _ => {
                    let (colour, text) = match health {
                        HistoryHealth::Full => (RED, "the disk is full: nothing is published until there is room"),
                        HistoryHealth::Failing => (RED, "the disk fails: nothing is published until it works again"),
                        HistoryHealth::Working | HistoryHealth::None => (GREEN, "the history takes what is said again"),
                    };
                    self.line(colour, "!", format_args!("{text}"));
                }
            },
            Event::CatchUp { missing, done } => match self.manner {
                Manner::Events => tracing::info!(missing, done, "fetching what was missed"),
                _ => self.catch_up(*missing, *done),
            },
            Event::Addresses(addresses) => {
                let reached: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
                let reached = reached.join(", ");
                match self.manner {
                    Manner::Events => tracing::info!(addresses = reached, "the addresses of this node have changed"),
                    _ => self.line(YELLOW, "!", format_args!("peers reach this node at {reached} now")),
                }
            }
            Event::Bridge(bridge) => self.bridge(bridge),
            Event::Cloned(peer) => match self.manner {
                Manner::Events => tracing::info!(node = %peer.run.node, name = %peer.name, "this node has a double"),
                _ => self.line(
                    RED,
                    "!",
                    format_args!(
                        "{} runs with a copy of this node's data folder: remove the file `identity` from one of them",
                        name(peer)
                    ),
                ),
            },
        }
    }

    fn bridge(&mut self, bridge: &BridgeStatus) {
        let BridgeStatus { name, state, behind_s, trouble, .. } = bridge;
        if self.manner == Manner::Events {
            tracing::info!(bridge = %name, state = word(state), behind_s, trouble = trouble.as_deref(), "a bridge");
            return;
        }
        let before = self.bridges.get(name);
        let news = before.is_none_or(|(before, _)| (before.state, &before.trouble) != (*state, trouble));
        let due = before.is_none_or(|(before, told)| before.behind_s.is_none() || told.elapsed() >= CATCH_UP_EVERY);
        let name = clean(name);
        match (state, trouble) {
            (BridgeState::Active, _) if news => {
                self.line(GREEN, "!", format_args!("bridge {name}: this node leads"));
            }
            (BridgeState::Standing, _) if news => self.line(GREEN, "!", format_args!("bridge {name}: connected")),
            (BridgeState::Connecting, Some(trouble)) if news => {
                self.line(RED, "!", format_args!("bridge {name}: {}; trying again", clean(trouble)));
            }
            (BridgeState::Active, _) if behind_s.is_some() && due => {
                let behind = behind_s.unwrap_or_default();
                self.line(YELLOW, "!", format_args!("bridge {name}: sends what was said {behind} s ago"));
            }
            _ if !news => return,
            _ => {}
        }
        self.bridges.insert(bridge.name.clone(), (bridge.clone(), Instant::now()));
    }

    fn peer(&mut self, peer: &Peer, state: PeerState) {
        let before =
            if state == PeerState::Down { self.told.remove(&peer.run) } else { self.told.insert(peer.run, state) };
        if before == Some(state) {
            return;
        }
        let address = peer.address.map(|address| format!(" at {address}")).unwrap_or_default();
        let found = word(&peer.found_by);
        let name = name(peer);
        if self.manner == Manner::Events {
            let rtt_ms = peer.rtt.map(|rtt| rtt.as_secs_f64() * 1_000.0);
            let address = peer.address.map(|address| address.to_string());
            tracing::info!(
                node = %peer.run.node, name = %peer.name, state = word(&state), address, found_by = found, rtt_ms, "peer"
            );
            return;
        }
        match state {
            PeerState::Up => {
                let rtt = peer.rtt.map(|rtt| format!(", {}", milliseconds(rtt))).unwrap_or_default();
                self.line(GREEN, "+", format_args!("{name} up{address} ({found}{rtt})"));
            }
            PeerState::OneWay => self.line(
                YELLOW,
                "~",
                format_args!("{name} is heard one way only{address}: a firewall may stand in the other way"),
            ),
            PeerState::Suspect => self.line(YELLOW, "~", format_args!("{name} is silent{address}")),
            PeerState::Down | PeerState::Incompatible => self.line(RED, "-", format_args!("{name} down")),
        }
    }

    /// One line that moves on where that can be shown, else a line now and then.
    fn catch_up(&mut self, missing: u64, done: u64) {
        if missing == 0 {
            self.catch_up_told = None;
            return self.line(
                GREEN,
                "↓",
                format_args!("{} that this node had missed are here", counted(done, "message")),
            );
        }
        let percent = done * 100 / (done + missing).max(1);
        let what = format!("fetching what was missed: {percent} %, {} to go", counted(missing, "message"));
        if self.redraws && self.manner == Manner::Lines {
            let line = self.dated(YELLOW, "↓", format_args!("{what}"));
            let _ = write!(io::stderr().lock(), "\r\x1b[2K{line}");
            self.unfinished.set(true);
        } else if self.catch_up_told.is_none_or(|told| told.elapsed() >= CATCH_UP_EVERY) {
            self.catch_up_told = Some(Instant::now());
            self.line(YELLOW, "↓", format_args!("{what}"));
        }
    }

    fn line(&self, colour: &str, sign: &str, what: fmt::Arguments<'_>) {
        if self.manner == Manner::Lines {
            self.whole(format_args!("{}", self.dated(colour, sign, what)));
        }
    }

    fn dated(&self, colour: &str, sign: &str, what: fmt::Arguments<'_>) -> String {
        let time = jiff::Zoned::now().strftime("%H:%M:%S").to_string();
        format!("{} {} {what}", self.paint(DIM, &time), self.paint(colour, sign))
    }

    /// A line of its own, in the place of one that was to be written over.
    fn whole(&self, line: fmt::Arguments<'_>) {
        let over = if self.unfinished.replace(false) { "\r\x1b[2K" } else { "" };
        say(format_args!("{over}{line}"));
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.into() }
    }
}

/// `1 message`, `12,345 messages`.
fn counted(count: u64, what: &str) -> String {
    let digits = count.to_string();
    let mut shown = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    format!("{shown} {what}{}", if count == 1 { "" } else { "s" })
}

/// What people call a peer.
fn name(peer: &Peer) -> String {
    if peer.name.is_empty() { short(&peer.run.node) } else { clean(&peer.name) }
}

impl Page {
    /// Where browsers of other machines find it, the token included; none if they do not.
    fn links(&self, addresses: &[SocketAddr]) -> Vec<String> {
        let Some(token) = &self.token else { return Vec::new() };
        let (bound, port) = (self.address.ip(), self.address.port());
        let mut places = vec![url(self.address)];
        if bound.is_unspecified() {
            let others = addresses.iter().map(SocketAddr::ip).filter(|ip| !ip.is_loopback());
            places = others.map(|ip| url(SocketAddr::new(ip, port))).collect();
            places.dedup();
            if places.is_empty() {
                places.push(format!("http://{}:{port}/", host_name()));
            }
        }
        places.into_iter().map(|place| format!("{place}?token={}", token.reveal())).collect()
    }
}

/// Where a browser on this machine finds the page.
fn url(page: SocketAddr) -> String {
    let host = match page {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => "127.0.0.1".into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => "[::1]".into(),
        SocketAddr::V4(v4) => v4.ip().to_string(),
        SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
    };
    format!("http://{host}:{}/", page.port())
}

/// A path as people write it.
pub fn at_home(path: &Path) -> String {
    let home = etcetera::home_dir().ok();
    match home.and_then(|home| path.strip_prefix(home).ok().map(Path::to_path_buf)) {
        Some(rest) => format!("~/{}", rest.display()),
        None => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_the_lan_steers_the_terminal() {
        assert_eq!(clean("a\x1b[2Jb\r\n\u{202e}c"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}\u{fffd}c");
        assert_eq!(clean("grüße 👋"), "grüße 👋");
    }

    #[test]
    fn numbers_are_read_at_a_glance() {
        for (count, shown) in [(0, "0 messages"), (1, "1 message"), (999, "999 messages"), (1_000, "1,000 messages")] {
            assert_eq!(counted(count, "message"), shown);
        }
        assert_eq!(counted(1_234_567, "message"), "1,234,567 messages");
    }

    #[test]
    fn the_page_has_an_url_that_a_browser_opens() {
        for (address, shown) in [
            ("127.0.0.1:8080", "http://127.0.0.1:8080/"),
            ("0.0.0.0:80", "http://127.0.0.1:80/"),
            ("[::]:80", "http://[::1]:80/"),
            ("[fd00::1]:80", "http://[fd00::1]:80/"),
        ] {
            assert_eq!(url(address.parse().unwrap()), shown);
        }
    }
}
