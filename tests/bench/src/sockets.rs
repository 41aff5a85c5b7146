//! The page's fan-out: what is published at one node, delivered to very many WebSockets of it.
//!
//! The node runs in a process of its own, with a log, its page and the publisher; this process is all of the clients. They
//! cost little: one thread, one buffer, frame headers read and payloads stepped over. Three runs for each protocol: what
//! an idle connection costs in memory, bursts as fast as all clients take them, and one message at a time.

use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use hubless::error::PublishError;
use hubless::web::Web;
use hubless::{Draft, Handle, Listen, Node, Room};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::net::{AddressFamily, SocketType};
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::child::{Child, System, tell};
use crate::cost::Cost;
use crate::median;

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// Messages of a burst, and their bytes.
const BURST: u64 = 256;
const BYTES: usize = 64;
/// Bursts under way: the next is made while the last clients take this one.
const BURSTS_AT_ONCE: u64 = 2;
/// Clients that share a source address, whose ports are short.
const CLIENTS_OF_AN_ADDRESS: usize = 8_000;
/// One message at a time: so many, one in this time, to so many clients.
const SINGLES: u64 = 200;
const SINGLE_EVERY: Duration = Duration::from_millis(40);
const SINGLE_CLIENTS: usize = 1_000;
/// A run counts as over when nothing came for so long.
const SILENCE: Duration = Duration::from_secs(20);
/// How long a server rests before its memory or its answers count.
const SETTLE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Plain,
    V1,
}

/// What one repetition measured.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    /// KiB of the server for each connection: idle, and after the bursts.
    idle_kib: f64,
    after_kib: f64,
    /// Deliveries a second.
    rate: f64,
    /// Microseconds of processor time for each delivery.
    server_us: f64,
    client_us: f64,
    /// The same where each message comes alone.
    server_alone_us: f64,
    client_alone_us: f64,
    /// Milliseconds.
    p50_ms: f64,
    p99_ms: f64,
    /// Deliveries that never came, or came twice or in another order.
    wrong: u64,
}

/// `hubless-bench sockets [--repeat N] [--clients N] [--seconds N] [--only plain|v1]`.
pub fn run(words: &[&str]) -> Result<bool> {
    let (mut repeat, mut clients, mut seconds) = (3, 10_000, 5);
    let mut protocols = vec![Protocol::Plain, Protocol::V1];
    for option in words.chunks(2) {
        match option {
            ["--repeat", number] => repeat = number.parse()?,
            ["--clients", number] => clients = number.parse()?,
            ["--seconds", number] => seconds = number.parse()?,
            ["--only", "plain"] => protocols = vec![Protocol::Plain],
            ["--only", "v1"] => protocols = vec![Protocol::V1],
            _ => {
                return Err(
                    "usage: hubless-bench sockets [--repeat N] [--clients N] [--seconds N] [--only plain|v1]".into()
                );
            }
        }
    }
    hubless::web::raise_descriptors();
    let mut all: Vec<(Protocol, Measured)> = Vec::new();
    for repetition in 0..repeat {
        for protocol in protocols.iter().copied() {
            let measured = measure(protocol, clients, Duration::from_secs(seconds))?;
            eprintln!("{}/{repeat}  {:<10} {measured:?}", repetition + 1, protocol.name());
            all.push((protocol, measured));
        }
    }
    println!("{}", markdown(&all, &protocols, clients, repeat));
    Ok(all.iter().all(|(_, measured)| measured.wrong == 0))
}

fn markdown(all: &[(Protocol, Measured)], protocols: &[Protocol], clients: usize, repeat: usize) -> String {
    let mut text = String::from("| WebSockets of one node |");
    let (mut line, mut rows) = (String::from("\n|---|"), String::new());
    for protocol in protocols {
        text += &format!(" {} |", protocol.name());
        line += "---|";
    }
    text += " wanted |";
    line += "---|\n";
    let figure = |protocol: Protocol, of: fn(&Measured) -> f64| {
        median(all.iter().filter(|(of, _)| *of == protocol).map(|(_, measured)| of(measured)))
    };
    let mut row = |title: String, wanted: &str, show: &dyn Fn(Protocol) -> String| {
        rows += &format!("| {title} |");
        for protocol in protocols {
            rows += &format!(" {} |", show(*protocol));
        }
        rows += &format!(" {wanted} |\n");
    };
    row(format!("deliveries/s, bursts of {BURST} of {BYTES} B to {clients} clients"), "≥ 1.5 M", &|protocol| {
        format!("{:.2} M", figure(protocol, |measured| measured.rate) / 1e6)
    });
    row("processor time of a delivery: node + clients".into(), "—", &|protocol| {
        let (server, client) = (figure(protocol, |one| one.server_us), figure(protocol, |one| one.client_us));
        format!("{server:.2} + {client:.2} µs")
    });
    row(format!("one message to {SINGLE_CLIENTS} clients, p50 / p99"), "p99 ≤ 20 ms", &|protocol| {
        let (p50, p99) = (figure(protocol, |one| one.p50_ms), figure(protocol, |one| one.p99_ms));
        format!("{p50:.1} / {p99:.1} ms")
    });
    row("processor time of such a delivery".into(), "—", &|protocol| {
        let (server, client) =
            (figure(protocol, |one| one.server_alone_us), figure(protocol, |one| one.client_alone_us));
        format!("{server:.1} + {client:.1} µs")
    });
    row("memory of the node for each connection, idle / after the bursts".into(), "≤ 24 KiB", &|protocol| {
        let (idle, after) = (figure(protocol, |one| one.idle_kib), figure(protocol, |one| one.after_kib));
        format!("{idle:.1} / {after:.1} KiB")
    });
    row("lost, doubled or out of order".into(), "0", &|protocol| {
        all.iter().filter(|(of, _)| *of == protocol).map(|(_, measured)| measured.wrong).sum::<u64>().to_string()
    });
    let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
    text + &line + &rows + &format!("\nMedians of {repeat} repetitions on {cores} cores, which node and clients share.")
}

fn measure(protocol: Protocol, clients: usize, time: Duration) -> Result<Measured> {
    let folder = tempfile::tempdir()?;
    let mut server = Child::start(System::Hubless, "page", &[""], folder.path())?;
    let ready = server.hear("ready ")?;
    let (address, pid) = ready.split_once(' ').ok_or("no pid")?;
    let address: SocketAddr = address.parse()?;
    let mut measured = Measured::default();
    let kib = |before: u64, crowd: &Crowd| (rss_kib(pid) as f64 - before as f64) / crowd.clients.len() as f64;

    // What the first connection brings is not what each one costs.
    drop(Crowd::open(protocol, address, 16)?);
    let before = rss_kib(pid);
    let mut crowd = Crowd::open(protocol, address, clients)?;
    crowd.listen_for(SETTLE)?;
    measured.idle_kib = kib(before, &crowd);

    let (mut published, mut measured_from) = (0, None);
    let started = Instant::now();
    let mut costs = [Cost::default(); 2];
    while started.elapsed() < time || crowd.done(published) < published {
        while started.elapsed() < time && published < crowd.done(published) + BURSTS_AT_ONCE {
            server.order(&format!("burst {BURST} {BYTES}"))?;
            published += 1;
        }
        if !crowd.listen(SILENCE)? {
            break;
        }
        if measured_from.is_none() && crowd.done(published) > 0 {
            (measured_from, costs) = (Some((Instant::now(), crowd.taken)), [Cost::of(pid), Cost::own()]);
        }
    }
    if let Some((from, taken)) = measured_from {
        let deliveries = (crowd.taken - taken) as f64;
        measured.rate = deliveries / crowd.last.saturating_duration_since(from).as_secs_f64();
        measured.server_us = (Cost::of(pid).cpu_us - costs[0].cpu_us) / deliveries;
        measured.client_us = (Cost::own().cpu_us - costs[1].cpu_us) / deliveries;
    }
    crowd.listen_for(SETTLE)?;
    measured.after_kib = kib(before, &crowd);
    measured.wrong = crowd.wrong(published * BURST);
    drop(crowd);

    let mut crowd = Crowd::open(protocol, address, SINGLE_CLIENTS)?;
    // Those that have left are not counted in.
    crowd.listen_for(SETTLE)?;
    crowd.timed = Some(Vec::new());
    let costs = [Cost::of(pid), Cost::own()];
    let mut due = Instant::now();
    for number in 1..=SINGLES {
        server.order("one")?;
        due += SINGLE_EVERY;
        crowd.listen_for(due.saturating_duration_since(Instant::now()))?;
        while crowd.taken < number * SINGLE_CLIENTS as u64 && crowd.listen(SILENCE)? {}
    }
    measured.server_alone_us = (Cost::of(pid).cpu_us - costs[0].cpu_us) / crowd.taken as f64;
    measured.client_alone_us = (Cost::own().cpu_us - costs[1].cpu_us) / crowd.taken as f64;
    measured.wrong += crowd.wrong(SINGLES);
    let mut times = crowd.timed.take().unwrap_or_default();
    times.sort_unstable();
    let at = |part: f64| times.get((times.len() as f64 * part) as usize).map_or(f64::NAN, |ns| *ns as f64 / 1e6);
    (measured.p50_ms, measured.p99_ms) = (at(0.5), at(0.99));
    server.order("end")?;
    server.hear("ended")?;
    Ok(measured)
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Protocol::Plain => "plain text",
            Protocol::V1 => "hubless.v1",
        }
    }
}

/// All clients.
struct Crowd {
    clients: Vec<Client>,
    epoll: rustix::fd::OwnedFd,
    protocol: Protocol,
    buffer: Vec<u8>,
    /// Messages taken by all of them, and when the last came.
    taken: u64,
    last: Instant,
    /// How many clients have taken each burst whole.
    bursts: Vec<usize>,
    misplaced: u64,
    /// How long messages that are published one by one were under way, in nanoseconds.
    timed: Option<Vec<u64>>,
}

struct Client {
    stream: TcpStream,
    /// The beginning of a frame that is not here yet, as far as it is needed.
    held: Vec<u8>,
    /// Bytes of a payload that are stepped over.
    skip: usize,
    taken: u64,
    /// The number that the next message has.
    next: Option<u64>,
}

impl Crowd {
    fn open(protocol: Protocol, address: SocketAddr, count: usize) -> Result<Crowd> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut clients = Vec::with_capacity(count);
        for number in 0..count {
            let mut stream = connect(address, number / CLIENTS_OF_AN_ADDRESS)?;
            stream.set_read_timeout(Some(SILENCE))?;
            let asked = match protocol {
                Protocol::Plain => "",
                Protocol::V1 => "Sec-WebSocket-Protocol: hubless.v1\r\n",
            };
            let head = format!(
                "GET / HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{asked}\r\n"
            );
            stream.write_all(head.as_bytes())?;
            let (mut answer, mut byte) = (Vec::new(), [0]);
            while !answer.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte)?;
                answer.push(byte[0]);
            }
            if !answer.starts_with(b"HTTP/1.1 101") {
                return Err(format!("client {number}: {}", String::from_utf8_lossy(&answer)).into());
            }
            let mut client = Client { stream, held: Vec::new(), skip: 0, taken: 0, next: None };
            if protocol == Protocol::V1 {
                client.say(br#"{"type":"hello"}"#)?;
                client.welcome()?;
            }
            client.stream.set_nonblocking(true)?;
            epoll::add(&epoll, &client.stream, epoll::EventData::new_u64(number as u64), epoll::EventFlags::IN)?;
            clients.push(client);
        }
        Ok(Crowd {
            clients,
            epoll,
            protocol,
            buffer: vec![0; 256 * 1024],
            taken: 0,
            last: Instant::now(),
            bursts: Vec::new(),
            misplaced: 0,
            timed: None,
        })
    }

    /// Bursts of the first so many that all clients have.
    fn done(&self, published: u64) -> u64 {
        let whole = self.bursts.iter().take_while(|clients| **clients == self.clients.len()).count() as u64;
        whole.min(published)
    }

    /// Deliveries that are not as they should be when each client should have so many.
    fn wrong(&self, messages: u64) -> u64 {
        self.clients.iter().map(|client| client.taken.abs_diff(messages)).sum::<u64>() + self.misplaced
    }

    fn listen_for(&mut self, time: Duration) -> Result {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || (!self.listen(left)? && Instant::now() >= end) {
                return Ok(());
            }
        }
    }

    /// Takes what has come; false if nothing came in time.
    fn listen(&mut self, time: Duration) -> Result<bool> {
        let timeout = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
        let mut events = Vec::with_capacity(512);
        epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout))?;
        for event in &events {
            self.take(event.data.u64() as usize)?;
        }
        Ok(!events.is_empty())
    }

    fn take(&mut self, number: usize) -> Result {
        let Crowd { clients, buffer, protocol, .. } = self;
        let client = &mut clients[number];
        let read = match client.stream.read(buffer) {
            Ok(0) => return Err(format!("client {number} was hung up on").into()),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(format!("client {number}: {error}").into()),
        };
        let before = client.taken;
        let (mut times, now) = (self.timed.as_mut(), now_ns());
        let mut bytes = &buffer[..read];
        let held = std::mem::take(&mut client.held);
        let joined;
        if !held.is_empty() {
            joined = [&held, bytes].concat();
            bytes = &joined;
        }
        loop {
            let step = client.skip.min(bytes.len());
            (bytes, client.skip) = (&bytes[step..], client.skip - step);
            let Some((start, length, opcode)) = header(bytes) else { break };
            // So much of a message is looked at.
            let wanted = start + if times.is_some() { length } else { length.min(160) };
            if bytes.len() < wanted {
                break;
            }
            let payload = &bytes[start..wanted];
            (bytes, client.skip) = (&bytes[start..], length);
            match opcode {
                1 => {}
                9 => {
                    client.pong()?;
                    continue;
                }
                _ => return Err(format!("client {number}: a frame of kind {opcode}").into()),
            }
            let Some(said) = protocol.number(payload) else { continue };
            if client.next.is_some_and(|next| next != said) {
                self.misplaced += 1;
            }
            (client.next, client.taken) = (Some(said + 1), client.taken + 1);
            if let Some(times) = &mut times {
                times.push(now.saturating_sub(sent_ns(payload).unwrap_or_default()));
            }
        }
        client.held.extend_from_slice(bytes);
        if client.held.is_empty() {
            client.held = held;
            client.held.clear();
        }
        self.taken += client.taken - before;
        for burst in before / BURST..client.taken / BURST {
            let burst = burst as usize;
            if self.bursts.len() <= burst {
                self.bursts.resize(burst + 1, 0);
            }
            self.bursts[burst] += 1;
        }
        if client.taken > before {
            self.last = Instant::now();
        }
        Ok(())
    }
}

impl Protocol {
    /// The number of a message; none for another kind of frame.
    fn number(self, payload: &[u8]) -> Option<u64> {
        match self {
            // Its text begins with one.
            Protocol::Plain => digits(payload),
            // Its id ends with one: {"type":"message","id":"NODE.EPOCH.SEQ"…
            Protocol::V1 => {
                let id = payload.strip_prefix(br#"{"type":"message","id":""#)?;
                digits(id.get(52 + 1 + 16 + 1..)?)
            }
        }
    }
}

impl Client {
    fn say(&mut self, text: &[u8]) -> Result {
        // A mask of zeros leaves the payload as it is.
        let mut frame = vec![0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
        frame.extend_from_slice(text);
        Ok(self.stream.write_all(&frame)?)
    }

    fn pong(&mut self) -> Result {
        Ok(self.stream.write_all(&[0x8a, 0x80, 0, 0, 0, 0])?)
    }

    /// Reads the answer to `hello` and nothing behind it.
    fn welcome(&mut self) -> Result {
        let mut bytes = vec![0; 2];
        self.stream.read_exact(&mut bytes)?;
        let more = if bytes[1] == 126 { 2 } else { 0 };
        bytes.resize(2 + more, 0);
        self.stream.read_exact(&mut bytes[2..])?;
        let (start, length, _) = header(&bytes).ok_or("no welcome")?;
        bytes.resize(start + length, 0);
        self.stream.read_exact(&mut bytes[start..])?;
        let welcome = bytes[start..].starts_with(br#"{"type":"welcome""#);
        welcome.then_some(()).ok_or("something else instead of a welcome".into())
    }
}

/// Where the payload of a frame of a server begins, its length, and the kind of frame.
fn header(bytes: &[u8]) -> Option<(usize, usize, u8)> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    let (start, length) = match second {
        126 => (4, u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?) as usize),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize),
        length => (2, length as usize),
    };
    Some((start, length, first & 0x0f))
}

/// The number that these bytes begin with.
fn digits(bytes: &[u8]) -> Option<u64> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit());
    let (count, number) =
        digits.fold((0, 0), |(count, number), byte| (count + 1, number * 10 + u64::from(byte - b'0')));
    (count > 0).then_some(number)
}

/// When a message that is published alone was sent.
fn sent_ns(payload: &[u8]) -> Option<u64> {
    let at = payload.windows(SENT.len()).position(|bytes| bytes == SENT.as_bytes())?;
    digits(&payload[at + SENT.len()..])
}

/// Stands before the time of sending.
const SENT: &str = "sent at ";

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Connects from one of the addresses of loopback.
fn connect(address: SocketAddr, from: usize) -> Result<TcpStream> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    let own = Ipv4Addr::new(127, 0, 0, 1 + from as u8);
    rustix::net::bind(&socket, &SocketAddr::from((own, 0)))?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket.into())
}

/// What a process holds at this moment.
fn rss_kib(pid: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB"));
    rss.and_then(|kib| kib.trim().parse().ok()).unwrap_or_default()
}

/// The child: a node with its page, which publishes when it is told to.
pub async fn page() -> std::result::Result<(), Box<dyn Error + Send + Sync>> {
    hubless::web::raise_descriptors();
    let folder = tempfile::tempdir()?;
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mesh = format!("page-{}", std::process::id());
    let builder = Node::builder().mesh(&mesh).name("page").listen(Listen::At(any)).mdns(false);
    let handle = builder.data_dir(Some(folder.path().into())).history(true).start().await?;
    let web = Web::serve_tcp(handle.clone(), any, None).await?;
    tell(&format!("ready {} {}", web.address().unwrap_or(any), std::process::id()));
    let (order_in, mut orders) = tokio::sync::mpsc::channel(64);
    std::thread::spawn(move || {
        std::io::stdin().lines().map_while(|line| line.ok()).try_for_each(|line| order_in.blocking_send(line))
    });
    let mut number = 0;
    while let Some(order) = orders.recv().await {
        match order.split(' ').collect::<Vec<_>>()[..] {
            ["burst", messages, bytes] => {
                let (messages, bytes): (u64, usize) = (messages.parse()?, bytes.parse()?);
                let draft = |number| Draft::new(Room::lobby(), format!("{number:010}{}", "x".repeat(bytes - 10)));
                publish(&handle, (number..number + messages).map(draft).collect()).await?;
                number += messages;
            }
            ["one"] => {
                publish(&handle, vec![Draft::new(Room::lobby(), format!("{number:010} {SENT}{}", now_ns()))]).await?;
                number += 1;
            }
            _ => break,
        }
    }
    web.close().await;
    handle.shutdown().await;
    drop(folder);
    tell("ended");
    Ok(())
}

/// Hands over what is published, and does not wait for the disk.
async fn publish(handle: &Handle, drafts: Vec<Draft>) -> std::result::Result<(), PublishError> {
    let submitted = handle.submit(drafts).await?;
    tokio::spawn(async move {
        if let Err(error) = submitted.published().await {
            eprintln!("not published: {error}");
        }
    });
    Ok(())
}
