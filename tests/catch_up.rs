//! Nodes that were cut off or away: what they missed arrives once, quickly, and at the expense of nobody.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use common::load::{self, Poster};
use common::log::same_logs;
use common::mesh::{Member, Mesh};
use common::raw::{self, Face, Raw};
use common::soak::{self, Claim, p99};
use common::{Hubless, Lan, elapse, eventually, one_at_a_time};
use hubless::id::Seq;
use hubless::replica::batch::Draft;
use hubless::replica::clock::{Mono, Now};
use hubless::replica::event::Output;
use hubless::replica::message::{Heartbeat, Message};
use hubless::replica::{Replica, WINDOW_BYTES_MAX};
use hubless::{Room, wire};
use serde_json::json;
use tokio_tungstenite::tungstenite::WebSocket;

const PATIENCE: Duration = Duration::from_secs(30);

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[test]
fn split_in_two_halves_heals_to_equal_logs() {
    let _alone = one_at_a_time();
    let count = soak::count(500, 5_000);
    let mut claim = Claim::new("catch up: split in two halves", count);
    let lan = Lan::new(4);
    let names = ["a", "b", "c", "d"];
    let mesh = Mesh::start((0..4).map(|machine| Member::at(names[machine], &lan, machine)).collect());
    let mut promised: BTreeSet<String> = ["before".to_string()].into();
    assert!(Poster::new(&mesh.0[0]).say("before").is_promised());
    same_logs(&mesh.running(), PATIENCE, &promised);

    lan.split(&[2, 3]);
    let (left, right) = mesh.0.split_at(2);
    let down = |one: &Member, other: &Member| one.sees(&other.node()) == "down";
    eventually(secs(20), "each half has lost the other", || {
        left.iter().all(|one| right.iter().all(|other| down(one, other) && down(other, one)))
    });
    for member in &mesh.0 {
        let (said, _) = load::publish(member, count / 2, |number| format!("{} {number}", member.name()));
        promised.extend(said.into_iter().map(|said| said.text));
    }
    for half in [left, right] {
        let half: Vec<&Hubless> = half.iter().map(|member| &**member).collect();
        let (log, _) = same_logs(&half, PATIENCE, &BTreeSet::new());
        assert_eq!(log.0.len(), 1 + count / 2 * 2, "the halves are apart");
    }

    lan.heal();
    let (log, took) = same_logs(&mesh.running(), secs(5), &promised);
    assert_eq!(log.0.len(), promised.len(), "each once, and nothing else");
    claim.measured("equal_after_heal_ms", took.as_millis() as u64);
}

/// The author is made of bytes, because no node of ours would keep its first entries to itself: what it published first
/// reaches nobody, what came after reaches one node, and then it is gone.
#[test]
fn hole_in_a_dead_authors_stream_hinders_nothing_beyond_it() {
    let _alone = one_at_a_time();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (run, count) = (raw::run(1), 10);
    let mut author = Replica::new(now(), raw::key(1), run.epoch, "author".into(), 1, WINDOW_BYTES_MAX, None);
    let mut publish = |what: &str| {
        let drafts = (0..count).map(|number| Draft::new(Room::lobby(), format!("{what} {number}"))).collect();
        author.publish(now(), drafts);
        let mut batches = Vec::new();
        while let Some(output) = author.poll_output() {
            if let Output::Send { message: Message::Batch(batch), .. } = output {
                batches.push(Message::Batch(batch));
            }
        }
        assert!(!batches.is_empty());
        batches
    };
    let mut mesh = Mesh(["a", "b", "c"].map(Member::new).into());
    mesh.start_again(&[0, 1]);
    let seeds: Vec<String> = [mesh.seeds(), vec![address.to_string()]].concat();
    mesh.0[2].spawn(&seeds);
    let mut ear = load::open(&mesh.0[2]);
    // What is older than a node is history to it, and no hole in what it hears.
    publish("in the hole");
    let beyond = publish("beyond the hole");
    let face = Face { run, mesh: "default", port: address.port() };
    let mut voice = Raw::answer(listener.accept().unwrap().0, &face).unwrap();
    mesh.all_up();
    // That nothing was said yet makes what follows owed to who listens; until it was heard, the author says it again.
    let beat = wire::encode(&Message::Heartbeat(Heartbeat::default()));
    voice.say(wire::TOPIC_MESH.as_bytes(), &beat).unwrap();
    let heard = mesh.0[2].listen_in();
    let last = format!("beyond the hole {}", count - 1);
    eventually(PATIENCE, "one node has heard the author", || {
        let body = |message: &Message| wire::encode(message);
        beyond.iter().for_each(|message| voice.say(wire::TOPIC_CHAT.as_bytes(), &body(message)).unwrap());
        heard.times(&last) > 0
    });
    let goodbye = wire::encode(&Message::Goodbye(Seq(2 * count)));
    voice.say(wire::TOPIC_MESH.as_bytes(), &goodbye).unwrap();
    drop((voice, listener));

    let promised = (0..count).map(|number| format!("beyond the hole {number}")).collect();
    let (log, _) = same_logs(&mesh.running(), secs(60), &promised);
    assert_eq!(log.0.len() as u64, count, "nothing is made up for the hole");
    // Whoever listened is told what is lost.
    let (asked, mut frames) = (Instant::now(), Vec::new());
    let lost = loop {
        assert!(asked.elapsed() < PATIENCE, "nothing is told as lost: {frames:?}");
        let frame = load::next(&mut ear).expect("news of the hole");
        if frame["type"] == "gap" && frame["reason"] == "lost" {
            break frame["missing"].as_u64();
        }
        frames.extend((frame["type"] != "peers").then_some(frame));
    };
    assert_eq!(lost, Some(count));
    mesh.restart();
    same_logs(&mesh.running(), PATIENCE, &promised);
}

fn now() -> Now {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Now { mono: Mono(0), wall_ms: since.as_millis() as u64 }
}

#[test]
fn missed_million_is_caught_up_while_the_author_goes_on() {
    let _alone = one_at_a_time();
    let count = soak::count(20_000, 1_000_000);
    let mut claim = Claim::new("catch up: missed messages", count);
    let mut mesh = Mesh::of(&["author", "holder", "returner"]);
    mesh.0[2].stop();
    let sent_before = sent(&mesh);
    let message = |number: usize| json!({ "room": "missed", "text": format!("{number:<256}") });
    let (_, took) = load::publish_each(&mesh.0[0], count, message, |_| None::<()>);
    claim.measured("published_per_s", (count as f64 / took.as_secs_f64()) as u64);
    let missed = |node: &Hubless| node.rooms().get("missed").copied().unwrap_or(0);
    eventually(secs(60), "the second node has all", || missed(&mesh.0[1]) == count as u64);

    // Live traffic for a while, then the same while the third one catches up.
    let live = Live::begin(&mesh);
    let before = Snapshot::of(&mesh);
    elapse(secs(if soak::wanted() { 20 } else { 3 }));
    let (calm, quiet_ms) = (Snapshot::of(&mesh), live.round_trips_ms());
    // The live traffic since it went is missing, too.
    let missing_bytes = calm.sent - sent_before;
    claim.measured("missing_bytes", missing_bytes);
    let seeds = mesh.seeds();
    let (returner, serving) = mesh.0.split_last_mut().unwrap();
    returner.spawn(&seeds);
    returner.ready();
    let mut resident = calm.resident_bytes;
    eventually(secs(120), "the third node has caught up", || {
        // Who asks all the time takes a core from those who talk.
        elapse(Duration::from_millis(100));
        resident = resident.max(serving.iter().map(|node| node.resident_bytes()).max().unwrap());
        missed(returner) == count as u64
    });
    let took = returner.started.elapsed();
    let busy_ms = live.round_trips_ms();
    live.end();
    elapse(secs(2)); // Some counters are shown each second.
    let after = Snapshot::of(&mesh);

    // What live traffic costs is known from before; the rest was sent for the one that returned.
    let live_bytes = (calm.sent - before.sent) as f64 / (calm.published - before.published) as f64;
    let repair_bytes = (after.sent - calm.sent) as f64 - (after.published - calm.published) as f64 * live_bytes;
    let (sent_ratio, grown) = (repair_bytes / missing_bytes as f64, resident - calm.resident_bytes);
    let repaired_ratio = mesh.0[2].metric("repaired_bytes") as f64 / missing_bytes as f64;
    let (quiet_p99, busy_p99) = (p99(quiet_ms), p99(busy_ms));
    let hundredths = |value: f64| (value * 100.0).round() / 100.0;
    claim.measured("catch_up_s", hundredths(took.as_secs_f64()));
    claim.measured("sent_over_missing", hundredths(sent_ratio));
    claim.measured("repaired_over_missing", hundredths(repaired_ratio));
    claim.measured("live_p99_ms", json!({ "before": hundredths(quiet_p99), "during": hundredths(busy_p99) }));
    claim.measured("serving_node_grew_mib", grown >> 20);
    assert!(took <= secs(60), "caught up after {took:?}");
    assert!(sent_ratio <= 1.2, "{sent_ratio:.2} times what was missing was sent");
    assert!(repaired_ratio <= 1.2, "{repaired_ratio:.2} times what was missing came");
    assert!(grown <= 128 << 20, "a serving node grew by {} MiB", grown >> 20);
    if soak::wanted() {
        assert!(busy_p99 <= 3.0 * quiet_p99, "live p99 {busy_p99:.1} ms during, {quiet_p99:.1} ms before");
    }

    let mut times = vec![0_u8; count];
    mesh.0[2].export(|message| {
        if message["room"] == "missed" {
            let number: usize = message["text"].as_str().unwrap().trim_end().parse().unwrap();
            times[number] = times[number].saturating_add(1);
        }
    });
    assert_eq!(times.iter().filter(|times| **times != 1).count(), 0, "each once");
}

/// Bytes that the running members have sent.
fn sent(mesh: &Mesh) -> u64 {
    mesh.running().iter().map(|node| node.metric("sent_bytes")).sum()
}

/// What the first two nodes have done so far.
struct Snapshot {
    sent: u64,
    published: u64,
    resident_bytes: u64,
}

impl Snapshot {
    fn of(mesh: &Mesh) -> Snapshot {
        let sum = |name| mesh.0[..2].iter().map(|node| node.metric(name)).sum();
        let resident_bytes = mesh.0[..2].iter().map(|node| node.resident_bytes()).max().unwrap();
        Snapshot { sent: sum("sent_bytes"), published: sum("published"), resident_bytes }
    }
}

/// A conversation between the first two nodes of a mesh, and an author who talks besides: about 1,000 messages a second.
struct Live {
    shared: std::sync::Arc<LiveShared>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct LiveShared {
    end: AtomicBool,
    round_trips_ms: std::sync::Mutex<Vec<f64>>,
}

impl Live {
    const PACE: Duration = Duration::from_millis(10);
    const BURST: usize = 10;

    fn begin(mesh: &Mesh) -> Live {
        let shared = std::sync::Arc::<LiveShared>::default();
        let (near, far, mut poster) = (load::open(&mesh.0[0]), load::open(&mesh.0[1]), Poster::new(&mesh.0[0]));
        let (asks, talks) = (shared.clone(), shared.clone());
        let threads = vec![
            std::thread::spawn(move || asks.ask(near)),
            std::thread::spawn(move || echo(far)),
            std::thread::spawn(move || {
                talks.paced(|number| {
                    let message = |nth: usize| json!({ "room": "live", "text": format!("live {number}.{nth:<200}") });
                    let answers = poster.post_all(&(0..Live::BURST).map(message).collect::<Vec<_>>()).unwrap();
                    assert!(answers.iter().all(|(status, _)| *status == 201), "{answers:?}");
                });
            }),
        ];
        Live { shared, threads }
    }

    /// Those since the last call.
    fn round_trips_ms(&self) -> Vec<f64> {
        std::mem::take(&mut *self.shared.round_trips_ms.lock().unwrap())
    }

    fn end(self) {
        self.shared.end.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().expect("the live traffic was served"));
    }
}

impl LiveShared {
    /// Does it again and again, each time when it is due.
    fn paced(&self, mut act: impl FnMut(usize)) {
        let started = Instant::now();
        for number in 0.. {
            if self.end.load(Ordering::Relaxed) {
                return;
            }
            elapse(self.due(started, number).saturating_duration_since(Instant::now()));
            act(number);
        }
    }

    fn due(&self, started: Instant, number: usize) -> Instant {
        started + Live::PACE * u32::try_from(number).expect("not for years")
    }

    /// Sends pings and takes the time until each comes back, counted from when it was due: one that waits for a slow one
    /// before it counts that wait, too.
    fn ask(&self, mut socket: WebSocket<UnixStream>) {
        let started = Instant::now();
        self.paced(|number| {
            let due = self.due(started, number);
            say(&mut socket, &format!("ping {number}"));
            await_text(&mut socket, &format!("pong {number}"));
            let took = due.elapsed().as_secs_f64() * 1e3;
            self.round_trips_ms.lock().unwrap().push(took);
        });
        say(&mut socket, "ping end");
        await_text(&mut socket, "pong end");
    }
}

/// Answers each ping.
fn echo(mut socket: WebSocket<UnixStream>) {
    loop {
        let frame = load::next(&mut socket).expect("the conversation goes on");
        let Some(number) = frame["text"].as_str().and_then(|text| text.strip_prefix("ping ")) else { continue };
        say(&mut socket, &format!("pong {number}"));
        if number == "end" {
            return;
        }
    }
}

fn say(socket: &mut WebSocket<UnixStream>, text: &str) {
    let frame = json!({ "type": "send", "room": "ping", "client_id": text, "text": text });
    socket.send(frame.to_string().into()).unwrap();
}

fn await_text(socket: &mut WebSocket<UnixStream>, text: &str) {
    while load::next(socket).unwrap_or_else(|| panic!("no {text}"))["text"] != text {}
}
