//! Stock ZeroMQ clients (pyzmq on libzmq) at a node's plain ports, in the tutorial's format, and who speaks nonsense there.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::load::Poster;
use common::mesh::{Member, Mesh};
use common::raw::frame;
use common::soak::{self, Claim};
use common::{Hubless, eventually, one_at_a_time};

const PATIENCE: Duration = Duration::from_secs(20);
const COMMAND: u8 = 4;

/// What the tutorial's programs and their users say.
const TEXTS: [&str; 4] = ["hello", "hello big wide world", " zażółć gęślą 🦀 jaźń", "two  spaces, and a\ttab"];

#[test]
fn stock_clients_and_the_mesh_hear_each_other_once_with_all_their_words() {
    let _alone = one_at_a_time();
    let mesh = with_ports(&[]);
    let [node, other] = [&mesh.0[0], &mesh.0[1]];
    let (subscriber, publisher) = (Client::sub(&port(node, "plain_pub"), "chat"), Client::to(&port(node, "plain_in")));
    let rooms = Client::sub(&port(node, "plain_pub"), "chat.nodejs ");
    let heard = other.listen_in();
    said_until_heard(node, &subscriber);
    said_until_heard_in(node, "nodejs", || rooms.times("chat.nodejs ready") > 0);
    publisher.says_until("chat ready", || heard.times("ready") > 0);

    for text in TEXTS {
        assert!(Poster::new(other).say(text).is_promised());
        eventually(PATIENCE, text, || subscriber.times(&format!("chat {text}")) == 1);
    }
    let said = r#"{"room":"nodejs","text":"to a room"}"#;
    assert_eq!(other.request("POST", "/api/v1/messages", said).0, 201);
    eventually(PATIENCE, "a room has its topic", || subscriber.times("chat.nodejs to a room") == 1);
    eventually(PATIENCE, "the room's own subscriber has it, too", || rooms.times("chat.nodejs to a room") == 1);
    assert!(rooms.lines()[1..].iter().all(|line| line.starts_with("chat.nodejs ")), "{:?}", rooms.lines());

    // A tab would make two frames of it.
    for text in &TEXTS[..3] {
        publisher.says(&format!("chat in: {text}"));
    }
    publisher.says("chat\tin two frames");
    publisher.says("chat.nodejs from a room");
    publisher.says("chatter is another topic");
    publisher.says("chat last");
    eventually(PATIENCE, "the last one is heard", || heard.times("last") == 1);
    let came = TEXTS[..3].iter().map(|text| format!("in: {text}"));
    for text in came.chain(["in two frames", "from a room"].map(String::from)) {
        assert_eq!(heard.times(&text), 1, "{text}");
    }
    let shown = other.get("/api/v1/messages?limit=1")["messages"][0].clone();
    let word = |key: &str| shown[key].as_str().unwrap_or_default().to_string();
    assert_eq!((word("text"), word("via"), word("name")), ("last".into(), "plain".into(), "guest".into()));
    assert_eq!((&shown["verified"], word("node")), (&false.into(), node.node()));
    // Stock clients of one node do not hear each other, unless that is asked for.
    assert!(Poster::new(other).say("behind it").is_promised());
    eventually(PATIENCE, "what came later is there", || subscriber.times("chat behind it") == 1);
    assert_eq!(subscriber.times("chat last"), 0);
}

#[test]
fn stock_clients_of_a_relaying_node_hear_each_other() {
    let _alone = one_at_a_time();
    let mesh = with_ports(&["--plain-relay"]);
    let node = &mesh.0[0];
    let (subscriber, publisher) = (Client::sub(&port(node, "plain_pub"), ""), Client::to(&port(node, "plain_in")));
    publisher.says_until("chat ready", || subscriber.times("chat ready") > 0);
    publisher.says("chat to each other");
    eventually(PATIENCE, "it is relayed", || subscriber.times("chat to each other") == 1);
}

#[test]
fn a_stock_publisher_is_listened_to_and_called_again_when_it_comes_back() {
    let _alone = one_at_a_time();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mesh = Mesh::start(vec![Member::new("a").args(&["--plain-sub", &address]), Member::new("b")]);
    let heard = mesh.0[1].listen_in();
    for life in 0..soak::count(2, 20) {
        let publisher = Client::start(&["pub", "bind", &address]);
        let text = format!("life {life}");
        publisher.says_until(&format!("chat {text}"), || heard.times(&text) > 0);
    }
}

#[test]
fn clients_with_heartbeats_and_with_newer_subscriptions_stay_linked_without_a_gap() {
    let _alone = one_at_a_time();
    let span = Duration::from_secs(if soak::wanted() { 60 } else { 4 });
    let mut claim =
        Claim::new("plain: heartbeats and ZMTP 3.1 subscriptions, seconds without a gap", span.as_secs() as usize);
    let mesh = with_ports(&[]);
    let node = &mesh.0[0];
    let beating = Client::start(&["sub", &port(node, "plain_pub"), "chat", "--beat"]);
    let publisher = Client::start(&["pub", "connect", &port(node, "plain_in"), "--beat"]);
    let newer = Newer::subscribe(&port(node, "plain_pub"));
    let heard = mesh.0[1].listen_in();
    said_until_heard(node, &beating);
    said_until_heard_in(node, "lobby", || newer.hears(b"chat ready"));
    publisher.says_until("chat first", || heard.times("first") > 0);
    let (begun, mut count) = (Instant::now(), 0);
    let mut poster = Poster::new(&mesh.0[1]);
    while begun.elapsed() < span {
        assert!(poster.say(&format!("number {count}")).is_promised());
        publisher.says(&format!("chat from outside {count}"));
        count += 1;
    }
    let last = format!("chat number {}", count - 1);
    eventually(PATIENCE, "the last one is there", || beating.times(&last) == 1);
    let numbers: Vec<String> = beating.lines().into_iter().filter(|line| line.starts_with("chat number")).collect();
    assert!(
        numbers.into_iter().eq((0..count).map(|number| format!("chat number {number}"))),
        "in order, without a gap"
    );
    assert_eq!(beating.times("lost") + publisher.times("lost"), 0);
    eventually(PATIENCE, "the newer one has it, too", || newer.hears(last.as_bytes()));
    let last = format!("from outside {}", count - 1);
    eventually(PATIENCE, "what came in is there, too", || heard.times(&last) == 1);
    let inside = (0..count).filter(|number| heard.times(&format!("from outside {number}")) == 1).count();
    assert_eq!(inside, count);
    claim.measured("messages_each_way", count);
}

#[test]
fn nonsense_at_the_plain_ports_ends_nobody() {
    let _alone = one_at_a_time();
    let mesh = with_ports(&[]);
    let node = &mesh.0[0];
    let subscriber = Client::sub(&port(node, "plain_pub"), "chat");
    said_until_heard(node, &subscriber);
    for (door, role) in [("plain_pub", "SUB"), ("plain_in", "PUB")] {
        let door = port(node, door);
        for exponent in 0..=64 {
            let length = 1_u64.checked_shl(exponent).unwrap_or(u64::MAX);
            for flags in [2, 2 | COMMAND, 2 | 1] {
                let packet = [&[flags][..], &length.to_be_bytes()].concat();
                say(&door, &[&greeting()[..], &packet]);
                say(&door, &[&greeting()[..], &ready(role), &packet, b"xxxx"]);
            }
        }
        // Messages without end, nonsense, and subscriptions by the thousand.
        say(&door, &[&greeting()[..], &ready(role), &frame(1, b"chat").repeat(1000)]);
        say(&door, &[b"GET / HTTP/1.1\r\n\r\n"]);
        say(&door, &[&greeting()[..], &ready("REQ")]);
        say(
            &door,
            &[
                &greeting()[..],
                &ready(role),
                &(0..1000).flat_map(|n| frame(0, format!("\x01{n}").as_bytes())).collect::<Vec<_>>(),
            ],
        );
    }
    assert!(Poster::new(node).say("unharmed").is_promised());
    eventually(PATIENCE, "it goes on", || subscriber.times("chat unharmed") == 1);
    assert_eq!(subscriber.times("lost"), 0);
}

/// A node with plain ports, and another one.
fn with_ports(args: &[&str]) -> Mesh {
    let ports = [&["--plain-pub", "127.0.0.1:0", "--plain-in", "127.0.0.1:0"], args].concat();
    Mesh::start(vec![Member::new("a").args(&ports), Member::new("b")])
}

fn port(node: &Hubless, key: &str) -> String {
    node.ready()[key].as_str().unwrap_or_else(|| panic!("no {key}")).to_string()
}

/// ZeroMQ does not say when a subscription has arrived: says `ready` in the lobby until it is heard.
fn said_until_heard(node: &Hubless, client: &Client) {
    said_until_heard_in(node, "lobby", || client.times("chat ready") > 0);
}

fn said_until_heard_in(node: &Hubless, room: &str, heard: impl Fn() -> bool) {
    let said = format!(r#"{{"room":"{room}","text":"ready"}}"#);
    eventually(PATIENCE, "the subscriber hears", || {
        assert_eq!(node.request("POST", "/api/v1/messages", &said).0, 201);
        heard()
    });
}

/// `tests/interop/plain.py`; killed when dropped.
struct Client {
    child: Child,
    stdin: Mutex<ChildStdin>,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Client {
    fn start(args: &[&str]) -> Client {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = common::python();
        command.arg(root.join("tests/interop/plain.py")).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the Python of `make setup`");
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let lines = Arc::new(Mutex::new(Vec::new()));
        let heard = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                heard.lock().unwrap().push(line);
            }
        });
        let client = Client { child, stdin: Mutex::new(stdin), lines };
        eventually(PATIENCE, "the client is ready", || client.times("ready") == 1);
        client
    }

    fn sub(address: &str, topic: &str) -> Client {
        Client::start(&["sub", address, topic])
    }

    fn to(address: &str) -> Client {
        Client::start(&["pub", "connect", address])
    }

    fn says(&self, line: &str) {
        writeln!(self.stdin.lock().unwrap(), "{line}").unwrap();
    }

    /// Before a subscription has arrived nothing is heard.
    fn says_until(&self, line: &str, heard: impl Fn() -> bool) {
        eventually(PATIENCE, line, || {
            self.says(line);
            heard()
        });
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    fn times(&self, wanted: &str) -> usize {
        self.lines.lock().unwrap().iter().filter(|line| *line == wanted).count()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill(); // It may have ended.
        let _ = self.child.wait();
    }
}

/// A subscriber of ZMTP 3.1, made of bytes: it subscribes by a command.
struct Newer {
    wire: TcpStream,
    heard: RefCell<Vec<u8>>,
}

impl Newer {
    fn subscribe(address: &str) -> Newer {
        let mut wire = TcpStream::connect(address).unwrap();
        let subscribe = frame(COMMAND, b"\x09SUBSCRIBEchat");
        wire.write_all(&[&greeting()[..], &ready("SUB"), &subscribe].concat()).unwrap();
        wire.set_nonblocking(true).unwrap();
        Newer { wire, heard: RefCell::default() }
    }

    /// Whether this has come by now.
    fn hears(&self, wanted: &[u8]) -> bool {
        let mut heard = self.heard.borrow_mut();
        let mut buffer = [0; 4096];
        while let Ok(read) = (&self.wire).read(&mut buffer) {
            assert!(read > 0, "it was hung up on");
            heard.extend_from_slice(&buffer[..read]);
        }
        heard.windows(wanted.len()).any(|window| window == wanted)
    }
}

/// Says these bytes, and waits until the other end hangs up or has nothing to say.
fn say(address: &str, bytes: &[&[u8]]) {
    let mut wire = TcpStream::connect(address).unwrap();
    wire.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let _ = wire.write_all(&bytes.concat()); // It may be hung up on already.
    let _ = wire.shutdown(std::net::Shutdown::Write);
    let _ = wire.read_to_end(&mut Vec::new()); // As above.
}

/// The greeting of ZMTP 3.1.
fn greeting() -> [u8; 64] {
    let mut bytes = [0; 64];
    (bytes[0], bytes[9], bytes[10], bytes[11]) = (0xff, 0x7f, 3, 1);
    bytes[12..16].copy_from_slice(b"NULL");
    bytes
}

fn ready(role: &str) -> Vec<u8> {
    let property = [&b"\x0bSocket-Type"[..], &(role.len() as u32).to_be_bytes(), role.as_bytes()].concat();
    frame(COMMAND, &[&b"\x05READY"[..], &property].concat())
}
