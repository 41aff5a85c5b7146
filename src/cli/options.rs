//! What can be asked for: the option types, and how their values are read.
//!
//! Environment variables and keys of `hubless.toml` follow from these types by rule; see [`settings`](super::settings).
//! Options whose default depends on whether they were given are `Option`s, and their default is in their help.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use hubless::bridge::plain;
use hubless::config::{Config, Fsync, Listen, Seed, host_name};
use hubless::id::Room;
use hubless::mesh_key::{KeyError, KeyRing};
use jiff::Timestamp;

use super::bridges::{BridgeOptions, Check};

/// How long commands wait for another node unless told otherwise.
pub const WAIT_DEFAULT: Duration = Duration::from_secs(5);
/// The most messages that `history` holds in its hands at a time: more than that it streams.
pub const LIMIT_MAX: u64 = 10_000;

const AFTER_HELP: &str = "\
Every option has an environment variable, too (`--http` is HUBLESS_HTTP; lists are comma-separated, switches are 1, true, \
0 or false), and a key in hubless.toml (`http = \"127.0.0.1:8080\"`). An option beats the environment, that beats \
`--config FILE` or ./hubless.toml, and that beats hubless/hubless.toml in the user's configuration folder.

Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 nothing arrived in the time given.";

/// A mesh node without a broker: it finds the others on the LAN by itself and talks to them.
///
/// `hubless` alone means `hubless run`: it runs a node and serves a chat page for the browser.
#[derive(Debug, Parser)]
#[command(name = "hubless", version, args_conflicts_with_subcommands = true, after_long_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: Run,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node: the mesh, the page and the API
    ///
    /// Runs until SIGINT or SIGTERM. Beside a node of the same name on this machine it takes another one, unless `--name` or
    /// `--data-dir` is given.
    Run(Box<Run>),
    /// Publish a message, or each line of stdin
    ///
    /// Works through the node that runs on this machine, and without one joins the mesh for the moment. Exits with 0 once
    /// another node has the message on disk, with 3 when none has within `--wait`.
    Pub(Publish),
    /// Print messages as they come
    ///
    /// Works through the node that runs on this machine, and without one joins the mesh for the moment.
    Sub(Subscribe),
    /// Print the log of this machine, or export or import it
    ///
    /// Asks the node that runs on this machine, and without one opens its folder.
    History(History),
    /// Keep what is published to an AMQP exchange, and serve it over HTTP
    ///
    /// The chat tutorial's history service: a durable queue into a log, acknowledged once it is on disk. `GET /` answers with
    /// an array of all texts in the order in which they came, `GET /messages` with pages of message objects. Needs no mesh.
    HistoryService(HistoryService),
    /// Make, show or add the key that closes a mesh
    ///
    /// A mesh with a key is for those who have it: its nodes talk to no others, and nobody else can read or write.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Try the configured Redis and AMQP brokers, and say what is there
    ///
    /// Takes the options of `hubless run`. Exits with 1 if one of them does not do what is asked of it.
    Check(Check),
    /// Show who is in the mesh, how found, and the round-trip time
    ///
    /// Asks the node that runs on this machine, and without one joins the mesh for the moment.
    Peers(Peers),
}

#[derive(Debug, Args)]
pub struct Run {
    /// Address of the page and the API [default: 127.0.0.1:8080, the next free port if that is taken]
    #[arg(long, value_name = "ADDR:PORT", value_parser = address)]
    pub http: Option<SocketAddr>,
    /// Neither page nor API
    #[arg(long)]
    pub no_http: bool,
    /// File with the token that other machines need for the page and the API [default: `web.token` in the data folder]
    ///
    /// Made where it is missing, and refused where others than its owner can read it. Only used with a `--http` that other
    /// machines reach, or when given; programs of this machine never need the token. What a proxy passes on does.
    #[arg(long, value_name = "FILE")]
    pub http_token_file: Option<PathBuf>,
    /// File to write when the node serves: one JSON object
    ///
    /// Written by rename, with `node`, `epoch`, `name`, `mesh`, `listen`, `http`, `plain_pub`, `plain_in` (addresses with
    /// the real ports) and `pid`.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    #[command(flatten)]
    pub keep: Keep,
    #[command(flatten)]
    pub bridges: BridgeOptions,
    #[command(flatten)]
    pub plain: PlainOptions,
    #[command(flatten)]
    pub node: NodeOptions,
    #[command(flatten)]
    pub log: LogOptions,
}

/// What a node keeps.
#[derive(Debug, Args)]
#[command(next_help_heading = "History")]
pub struct Keep {
    /// Keep nothing on disk; the node's identity lasts for the run
    #[arg(long)]
    pub no_history: bool,
    /// When a message counts as durable: after an fsync of its own, after one for all that wait (`group`), or once the
    /// system has it [default: group]
    #[arg(long, value_name = "always|group|os")]
    pub fsync: Option<Fsync>,
    /// Let messages go when they are older than this [default: 30]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..))]
    pub retain_days: Option<u32>,
    /// Let the oldest messages go while all take more than this: bytes, or `500M`, `2G` [default: 1G]
    #[arg(long, value_name = "BYTES", value_parser = size)]
    pub retain_bytes: Option<u64>,
}

/// Doors for stock ZeroMQ clients: one frame `chat TEXT`, or `chat.ROOM TEXT`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Stock ZeroMQ clients")]
pub struct PlainOptions {
    /// A PUB socket that stock subscribers connect to
    #[arg(long, value_name = "ADDR:PORT", value_parser = address)]
    pub plain_pub: Option<SocketAddr>,
    /// A stock publisher to listen to; repeatable
    #[arg(long, value_name = "ADDR:PORT", value_parser = address)]
    pub plain_sub: Vec<SocketAddr>,
    /// A SUB socket that stock publishers connect to
    #[arg(long, value_name = "ADDR:PORT", value_parser = address)]
    pub plain_in: Option<SocketAddr>,
    /// Let stock clients of this node hear each other
    #[arg(long)]
    pub plain_relay: bool,
}

#[derive(Debug, Args)]
#[command(override_usage = "hubless pub [OPTIONS] [ROOM] TEXT\n       hubless pub [OPTIONS] [ROOM] -")]
pub struct Publish {
    /// The room (`lobby` if there is none) and the text; `-` publishes each line of stdin
    #[arg(value_name = "[ROOM] TEXT", num_args = 1..=2, required = true, allow_negative_numbers = true)]
    pub words: Vec<String>,
    /// How long to wait for another node to have it on disk [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub wait: Option<Duration>,
    /// It is enough that another node has it in memory
    #[arg(long)]
    pub volatile_ok: bool,
    /// Print a JSON object for each message: `id`, `state`, `stored_by`
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub through: Through,
}

#[derive(Debug, Args)]
pub struct Subscribe {
    /// The room
    #[arg(value_name = "ROOM", default_value = "lobby", value_parser = room)]
    pub room: Room,
    /// First print what was said since then: a duration back from now (`10m`), or a time (RFC 3339)
    #[arg(long, value_name = "TIME", value_parser = since, conflicts_with = "after")]
    pub since: Option<Timestamp>,
    /// Go on from this cursor
    #[arg(long, value_name = "CURSOR")]
    pub after: Option<String>,
    /// Go on where the last reader of this name stopped: what was printed is acknowledged in the log of this machine
    ///
    /// Each message is printed at least once. A new name begins now, or after `--after`. What is said in other rooms counts
    /// as acknowledged, so give each room a name of its own. Without a running node, one is started in the data folder.
    #[arg(long, value_name = "NAME", conflicts_with = "since")]
    pub durable: Option<String>,
    /// End after this many messages
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after this time; exit code 3 if nothing came, or fewer than `-n` asks for
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub wait: Option<Duration>,
    /// Print a JSON object for each message
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub through: Through,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct History {
    #[command(subcommand)]
    pub archive: Option<Archive>,
    /// Of this room only
    #[arg(long, value_name = "ROOM", value_parser = room)]
    pub room: Option<Room>,
    /// Only what was said since then: a duration back from now (`10m`), or a time (RFC 3339)
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub since: Option<Timestamp>,
    /// Only what was said until then
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub until: Option<Timestamp>,
    /// Only texts that contain this, in capital or small letters
    #[arg(long, value_name = "TEXT")]
    pub grep: Option<String>,
    /// The newest ones, so many, up to 10000; 0: all [default: 100]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(..=LIMIT_MAX))]
    pub limit: Option<u64>,
    /// All there are
    #[arg(long, conflicts_with = "limit")]
    pub all: bool,
    /// Print a JSON object for each message
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub place: Place,
}

#[derive(Debug, Subcommand)]
pub enum Archive {
    /// Write the whole log to a file, to be imported elsewhere
    ///
    /// The file is the log as every node has it: importing it anywhere makes no message twice.
    Export(Export),
    /// Take what a file of `history export` has and this log has not
    Import(Import),
}

#[derive(Debug, Args)]
pub struct Export {
    /// Where to write it; `-` is stdout
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub place: Place,
}

#[derive(Debug, Args)]
pub struct Import {
    /// Where to read it; `-` is stdin
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Print a JSON object: `new`, `known`, `refused`
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub place: Place,
}

/// Whose log is meant.
#[derive(Debug, Args)]
pub struct Place {
    /// Name of the node whose log it is [default: this host's node, or the only one there is]
    #[arg(long, value_name = "NAME", help_heading = "Mesh")]
    pub name: Option<String>,
    /// Its mesh [default: default]
    #[arg(long, value_name = "NAME", help_heading = "Mesh")]
    pub mesh: Option<String>,
    /// Its folder [default: in the user's data folder, one for each mesh and name]
    #[arg(long, value_name = "DIR", help_heading = "Mesh")]
    pub data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub log: LogOptions,
}

#[derive(Debug, Args)]
pub struct HistoryService {
    /// The broker [default: amqp://localhost]
    // As text: an error of the parser would show the password in it.
    #[arg(long, value_name = "URL", hide_default_value = true)]
    pub amqp: Option<String>,
    /// The durable queue to read, made where it is missing
    #[arg(long, value_name = "NAME", default_value = "chat_history")]
    pub queue: String,
    /// The durable fanout exchange that the queue is bound to, made where it is missing
    #[arg(long, value_name = "NAME", default_value = "chat")]
    pub exchange: String,
    /// Where the log is served [default: 127.0.0.1:8090]
    ///
    /// What a configuration file says here is meant for `hubless run`.
    #[arg(long, value_name = "ADDR:PORT", value_parser = address)]
    pub http: Option<SocketAddr>,
    /// Folder of the log [default: a folder of its own beside those of the nodes]
    ///
    /// What a configuration file says here is meant for `hubless run`.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// File to write when the log is served: one JSON object with `http`, `data_dir` and `pid`
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    #[command(flatten)]
    pub log: LogOptions,
}

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a new key, in a file that is not there yet, and print its invite code
    New(KeyPlace),
    /// Print the invite code, also as a QR code
    Show(KeyPlace),
    /// Let in whoever has another key, too: the code that another node's `key show` prints
    ///
    /// Makes the file if there is none. To change the key of a mesh without an outage: add the new one on all nodes, start them
    /// anew one after the other, then do the same with `--first`.
    Add(KeyAdd),
}

#[derive(Debug, Args)]
pub struct KeyPlace {
    /// The file [default: hubless/mesh.key in the user's configuration folder]
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Print a JSON object: `file`, `code`
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub log: LogOptions,
}

#[derive(Debug, Args)]
pub struct KeyAdd {
    /// The invite code; `-` reads it from stdin, so that it does not stand in the shell's history
    #[arg(value_name = "CODE")]
    pub code: String,
    /// Dial with this key from now on; the others are let in still
    #[arg(long)]
    pub first: bool,
    #[command(flatten)]
    pub place: KeyPlace,
}

#[derive(Debug, Args)]
pub struct Peers {
    /// Go on, and show what changes
    #[arg(long)]
    pub watch: bool,
    /// Print a JSON array
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub through: Through,
}

/// Which node a command works through.
#[derive(Debug, Args)]
pub struct Through {
    /// Join as a node of its own even if one runs on this machine
    #[arg(long)]
    pub alone: bool,
    #[command(flatten)]
    pub node: NodeOptions,
    #[command(flatten)]
    pub log: LogOptions,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Mesh")]
pub struct NodeOptions {
    /// Display name [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Nodes of different meshes ignore each other [default: default]
    #[arg(long, value_name = "NAME")]
    pub mesh: Option<String>,
    /// File with the key of the mesh, of `hubless key new`: nodes without it are kept out [default: none, the mesh is open]
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Where peers reach this node [default: 0.0.0.0:47474, another port if that is taken]
    ///
    /// Port 0 is any. A node that a command starts for the moment takes any port unless this is given on its command line.
    #[arg(long, value_name = "ADDR:PORT", value_parser = address)]
    pub listen: Option<SocketAddr>,
    /// A node to dial, besides those that are found; repeatable
    #[arg(long, value_name = "HOST[:PORT]")]
    pub connect: Vec<Seed>,
    /// Do not announce this node nor look for others through mDNS
    #[arg(long)]
    pub no_mdns: bool,
    /// Use this network interface only; repeatable [default: all but known virtual ones]
    #[arg(long, value_name = "NAME|ADDR")]
    pub interface: Vec<String>,
    /// Folder of the node's identity and history [default: in the user's data folder, one for each mesh and name]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Output and configuration")]
pub struct LogOptions {
    /// How to write to stderr [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Say more; twice: much more. RUST_LOG works, too
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Errors only
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Configuration file [default: ./hubless.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    #[default]
    Text,
    /// A JSON object for each event
    Json,
}

impl Command {
    pub fn log_options(&self) -> &LogOptions {
        match self {
            Command::Run(run) => &run.log,
            Command::Pub(publish) => &publish.through.log,
            Command::Sub(subscribe) => &subscribe.through.log,
            Command::History(history) => &history.place().log,
            Command::Peers(peers) => &peers.through.log,
            Command::HistoryService(service) => &service.log,
            Command::Check(check) => &check.log,
            Command::Key(key) => &key.place().log,
        }
    }
}

impl KeyCommand {
    /// Which file is meant, whatever is done with it.
    pub fn place(&self) -> &KeyPlace {
        match self {
            KeyCommand::New(place) | KeyCommand::Show(place) => place,
            KeyCommand::Add(add) => &add.place,
        }
    }
}

impl History {
    /// Whose log is meant, wherever it was said.
    pub fn place(&self) -> &Place {
        match &self.archive {
            None => &self.place,
            Some(Archive::Export(export)) => &export.place,
            Some(Archive::Import(import)) => &import.place,
        }
    }
}

impl Place {
    pub fn mesh(&self) -> &str {
        self.mesh.as_deref().unwrap_or("default")
    }
}

impl Keep {
    /// Adds what is said of the history to what is said of the node.
    pub fn config(&self, config: Config) -> Config {
        let Keep { no_history, fsync, retain_days, retain_bytes } = *self;
        Config {
            ephemeral: no_history,
            history: config.history && !no_history,
            fsync: fsync.unwrap_or(config.fsync),
            retain_days: retain_days.unwrap_or(config.retain_days),
            retain_bytes: retain_bytes.unwrap_or(config.retain_bytes),
            ..config
        }
    }
}

impl PlainOptions {
    /// What to open; none if nothing was asked for.
    pub fn wanted(&self) -> Option<plain::Options> {
        let PlainOptions { plain_pub, plain_sub, plain_in, plain_relay } = self;
        let any = plain_pub.is_some() || plain_in.is_some() || !plain_sub.is_empty();
        any.then(|| plain::Options {
            publish: *plain_pub,
            collect: *plain_in,
            hear: plain_sub.clone(),
            relay: *plain_relay,
        })
    }
}

impl NodeOptions {
    pub fn mesh(&self) -> &str {
        self.mesh.as_deref().unwrap_or("default")
    }

    /// The node asked for, with neither data folder nor, unless given, an address.
    ///
    /// # Errors
    /// What is wrong with the file of keys.
    pub fn config(&self) -> Result<Config, KeyError> {
        let NodeOptions { name, mesh: _, key_file, listen, connect, no_mdns, interface, data_dir: _ } = self;
        let default = Config::default();
        Ok(Config {
            name: name.clone().unwrap_or_else(host_name),
            mesh: self.mesh().into(),
            key: key_file.as_deref().map(KeyRing::read).transpose()?,
            listen: listen.map_or(Listen::Default, Listen::At),
            seeds: connect.clone(),
            mdns: default.mdns && !no_mdns,
            interfaces: interface.clone(),
            ..default
        })
    }
}

/// A switch in the environment or in a file.
pub fn switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err("a switch is 1, true, 0 or false".into()),
    }
}

pub fn room(text: &str) -> Result<Room, String> {
    Room::new(text).map_err(|error| error.to_string())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "it is not ADDR:PORT, such as 127.0.0.1:8080 or [::1]:8080".into())
}

/// A number and a unit (`500ms`, `5s`, `10m`, `1h30m`, `2d`); a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || "it is not a duration, such as 5s, 10m or 1h30m".to_string();
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number = rest[..digits].parse::<u32>().map_err(|_| bad())?;
        rest = &rest[digits..];
        let unit_len = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..unit_len] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3_600),
            "d" => Duration::from_secs(86_400),
            _ => return Err(bad()),
        };
        total += unit * number;
        rest = &rest[unit_len..];
    }
    if text.is_empty() { Err(bad()) } else { Ok(total) }
}

/// A number of bytes, perhaps in K, M, G or T, which are powers of 1024.
fn size(text: &str) -> Result<u64, String> {
    let bad = || "it is not a number of bytes, such as 1000000, 500M or 2G".to_string();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let shift = match text[digits..].to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(bad()),
    };
    let bytes = text[..digits].parse::<u64>().map_err(|_| bad())?.checked_mul(1 << shift).ok_or_else(bad)?;
    if bytes == 0 { Err("at least one byte".into()) } else { Ok(bytes) }
}

fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(back) = duration(text) {
        return Timestamp::now().checked_sub(back).map_err(|_| "nobody remembers that long".into());
    }
    text.parse().map_err(|_| "it is neither a duration, such as 10m, nor a time, such as 2026-01-31T12:00:00Z".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, ms) in
            [("5", 5_000), ("0", 0), ("500ms", 500), ("5s", 5_000), ("1h30m", 5_400_000), ("2d", 172_800_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "s", "5x", "5 s", "-1s", "1.5s", "5s3", "99999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in
            [("1", 1), ("500M", 500 << 20), ("2G", 2 << 30), ("1GiB", 1 << 30), ("3kb", 3 << 10), ("1T", 1 << 40)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "0", "0G", "G", "-1", "1.5G", "1 G", "1X", "99999999999T"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn since_is_a_span_or_a_time() {
        assert!(since("10m").unwrap() < Timestamp::now());
        assert_eq!(since("2026-01-31T12:00:00.123Z").unwrap().as_millisecond() % 1_000, 123);
        assert!(since("yesterday").is_err());
    }
}
