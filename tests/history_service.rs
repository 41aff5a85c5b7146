//! The history service with a real RabbitMQ: what a tutorial's chat server publishes is kept, whoever dies in between.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use common::dice::Dice;
use common::rabbit::Rabbit;
use common::soak::{self, Claim};
use common::{Home, Hubless, Place, elapse, eventually, eventually_some, python};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);
/// Messages that the broker gives before the first of them is acknowledged.
const PREFETCH: usize = 256;

#[test]
fn what_is_published_is_kept_and_served_in_the_order_in_which_it_came() {
    let mut rabbit = Rabbit::start();
    let home = Home::new();
    let service = serve(&home, &rabbit.url());
    let http = service.http();
    eventually(PATIENCE, "the broker gives messages", || service.stderr().contains("the broker gives messages"));
    assert_eq!(get(&http, "/", "localhost"), (200, json!([])));

    let mut server = ChatServer::start(&rabbit);
    server.publish(&json!({ "texts": ["hello big world", "zażółć 🦀 \"quoted\"\n", "again", "again", "again"] }));
    // One id is one message, however often it comes; bytes that are no text are counted.
    server.publish(&json!({ "text": "named", "id": "order-7" }));
    server.publish(&json!({ "text": "named", "id": "order-7" }));
    server.publish(&json!({ "text": "another text of that name", "id": "order-7" }));
    server.publish(&json!({ "text": { "hex": "ff00fe" } }));
    server.publish(&json!({ "text": "in a room", "key": "chat.nodejs" }));
    server.publish(&json!({ "text": "the last" }));
    let expected = json!([
        "hello big world",
        "zażółć 🦀 \"quoted\"\n",
        "again",
        "again",
        "again",
        "named",
        "in a room",
        "the last"
    ]);
    eventually(PATIENCE, "all of it is kept", || get(&http, "/", "localhost").1 == expected);
    let (status, page) = get(&http, "/messages?limit=3", "localhost");
    let shown: Vec<_> = page["messages"].as_array().unwrap().iter().map(|message| &message["text"]).collect();
    assert_eq!((status, json!(shown)), (200, json!(["named", "in a room", "the last"])));
    let said = &page["messages"][1];
    assert_eq!((&said["room"], &said["via"], &said["name"]), (&"nodejs".into(), &"amqp".into(), &"guest".into()));
    let place = page["before"].as_str().unwrap();
    let (_, older) = get(&http, &format!("/messages?limit=100&before={place}"), "localhost");
    assert_eq!(older["messages"].as_array().unwrap().len(), 5);
    assert_eq!(get(&http, "/", "evil.example").0, 421, "a foreign Host");
    eventually(PATIENCE, "the queue is empty", || {
        rabbit.ctl(&["list_queues", "--no-table-headers", "messages"]).unwrap().trim() == "0"
    });

    // A broker that dies loses nothing that it confirmed, and the service comes back by itself.
    rabbit.kill();
    eventually(PATIENCE, "that is said", || service.stderr().contains("it is tried again and again"));
    assert_eq!(get(&http, "/", "localhost").1, expected);
    rabbit.start_again();
    let mut server = ChatServer::start(&rabbit);
    server.publish(&json!({ "text": "after the broker's death" }));
    eventually(PATIENCE, "what is said after it is kept", || {
        get(&http, "/", "localhost").1.as_array().unwrap().last().unwrap() == "after the broker's death"
    });
    assert!(!service.stderr().contains("guest:guest"), "{}", service.stderr());
    service.stop();

    // What the exchange gives while nobody serves waits in the queue.
    server.publish(&json!({ "text": "while nobody served" }));
    let service = serve(&home, &rabbit.url());
    eventually(PATIENCE, "it is kept by the next one", || {
        get(&service.http(), "/", "localhost").1.as_array().unwrap().last().unwrap() == "while nobody served"
    });
    service.stop();
}

#[test]
fn a_service_that_is_killed_again_and_again_loses_nothing() {
    let (kills, count) = (soak::count(2, 10), soak::count(1_000, 10_000));
    let mut claim = Claim::new("history-service: killed while messages pass", kills);
    let mut dice = Dice::new();
    claim.seeded(dice.seed);
    let rabbit = Rabbit::start();
    let home = Home::new();
    let mut service = Some(serve(&home, &rabbit.url()));
    eventually(PATIENCE, "the broker gives messages", || {
        service.as_ref().unwrap().stderr().contains("the broker gives messages")
    });
    // Half of them have ids; of the others many are equal.
    let named: Vec<String> = (0..count).map(|number| format!("named {number}")).collect();
    let equal: Vec<String> = (0..count).map(|number| format!("equal {}", number % 10)).collect();
    let pieces = 20 * kills;
    std::thread::scope(|scope| {
        let publishing = scope.spawn(|| {
            let mut server = ChatServer::start(&rabbit);
            for (number, (named, equal)) in
                named.chunks(count.div_ceil(pieces)).zip(equal.chunks(count.div_ceil(pieces))).enumerate()
            {
                server.publish(&json!({ "texts": named, "id": number.to_string() }));
                server.publish(&json!({ "texts": equal }));
            }
        });
        for _ in 0..kills {
            elapse(Duration::from_millis(200 + dice.below(1_500)));
            let home = service.take().unwrap().kill();
            service = Some(serve(&home, &rabbit.url()));
        }
        publishing.join().unwrap();
    });
    let service = service.unwrap();
    let http = service.http();
    let kept = |prefix: &str| -> BTreeMap<String, usize> {
        let mut times = BTreeMap::new();
        for text in get(&http, "/", "localhost").1.as_array().unwrap() {
            let text = text.as_str().unwrap();
            if text.starts_with(prefix) {
                *times.entry(text.to_string()).or_default() += 1;
            }
        }
        times
    };
    eventually(4 * PATIENCE, "the queue is empty", || {
        // Those that are given and not acknowledged count, too.
        rabbit.ctl(&["list_queues", "--no-table-headers", "messages"]).unwrap().trim() == "0"
    });
    let once = kept("named ");
    assert_eq!(once.len(), count, "none is missing");
    assert!(once.values().all(|times| *times == 1), "each once");
    let equal = kept("equal ");
    assert!(equal.values().all(|times| *times >= count / 10), "none is missing: {equal:?}");
    let doubles = equal.values().sum::<usize>() - count;
    claim.measured("messages", 2 * count);
    claim.measured("doubles_without_id", doubles);
    assert!(doubles <= kills * PREFETCH, "{doubles} doubles");
    service.stop();
}

#[test]
fn very_many_messages_stream_out_in_bounded_memory() {
    let count = soak::count(20_000, 1_000_000);
    let mut claim = Claim::new("history-service: all of it streamed out", count);
    let rabbit = Rabbit::start();
    let service = serve(&Home::new(), &rabbit.url());
    eventually(PATIENCE, "the broker gives messages", || service.stderr().contains("the broker gives messages"));
    ChatServer::start(&rabbit).publish(&json!({ "count": count }));
    eventually(40 * PATIENCE, "the queue is empty", || {
        rabbit.ctl(&["list_queues", "--no-table-headers", "messages"]).unwrap().trim() == "0"
    });
    let before = service.resident_bytes();
    let mut stream = TcpStream::connect(service.http()).unwrap();
    write!(stream, "GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let (mut text, mut most) = (Vec::new(), 0);
    let mut buffer = vec![0; 1024 * 1024];
    loop {
        let read = stream.read(&mut buffer).unwrap();
        if read == 0 {
            break;
        }
        text.extend_from_slice(&buffer[..read]);
        most = most.max(service.resident_bytes());
    }
    let body = text.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let texts: Vec<String> = serde_json::from_slice(&text[body..]).unwrap();
    assert_eq!(texts.len(), count);
    assert!(
        texts.iter().enumerate().all(|(at, text)| *text == format!("number {at}")),
        "in the order in which it came"
    );
    let grown_mib = most.saturating_sub(before) / 1024 / 1024;
    claim.measured("grown_mib", grown_mib);
    assert!(grown_mib <= 64, "it grew by {grown_mib} MiB");
    service.stop();
}

#[test]
fn a_refusal_of_the_broker_is_told_with_what_to_do() {
    let rabbit = Rabbit::start();
    // Somebody has declared the exchange otherwise.
    let script = "import pika, sys; c = pika.BlockingConnection(pika.URLParameters(sys.argv[1])).channel(); \
                  c.exchange_declare('chat', 'topic', durable=True)";
    assert!(python().args(["-c", script, &rabbit.url()]).status().unwrap().success());
    let service = serve(&Home::new(), &rabbit.url());
    eventually(PATIENCE, "it is told", || {
        let said = service.stderr();
        said.contains("'type' for exchange 'chat'") && said.contains("declare it alike in the other program")
    });
    assert_eq!(get(&service.http(), "/", "localhost"), (200, json!([])));
    service.stop();
    let service = serve(&Home::new(), &rabbit.url().replace("guest:guest", "guest:wrong-password"));
    eventually(PATIENCE, "it is told", || service.stderr().contains("check its name, password and permissions"));
    assert!(!service.stderr().contains("wrong-password"), "{}", service.stderr());
    service.stop();
    let bad = Home::new().hubless(&Place::Here, &["history-service", "--amqp", "amqp:/u:secret@"]).output().unwrap();
    let said = String::from_utf8(bad.stderr).unwrap();
    assert_eq!(bad.status.code(), Some(2), "{said}");
    assert!(said.starts_with("error: --amqp: this is no AMQP URL") && !said.contains("secret"), "{said}");
}

fn serve(home: &Home, url: &str) -> Hubless {
    let args = ["--http", "127.0.0.1:0", "--amqp", url];
    let service = Hubless::spawn_command(&Place::Here, home, "history-service", &args, &[]);
    service.ready();
    service
}

/// Status and JSON body of `GET path`.
fn get(http: &str, path: &str, host: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(http).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // Of version 1.0, so that the body comes in one piece.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_else(|error| panic!("{path}: {error}: {body}")))
}

/// One that publishes as the tutorial does, with the broker's confirm.
struct ChatServer {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl ChatServer {
    fn start(rabbit: &Rabbit) -> ChatServer {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/amqp.py");
        let mut command = python();
        command.arg(script).arg(rabbit.url()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        ChatServer { child, stdin, stdout }
    }

    fn publish(&mut self, order: &Value) {
        writeln!(self.stdin, "{order}").unwrap();
        let mut line = String::new();
        eventually_some(20 * PATIENCE, "the broker confirms", || {
            self.stdout.read_line(&mut line).ok().filter(|n| *n > 0)
        });
        assert!(line.trim().parse::<usize>().is_ok(), "{line}");
    }
}

impl Drop for ChatServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
