//! Attackers on the LAN beside two nodes that go on talking: at worst they are ignored.
//!
//! Each attack runs for a while against a listener that is nobody's, then as long against both nodes; in the middle of each
//! a third node joins. Nothing that was said may be missing or doubled, no node may end or grow, and the newcomer may not be
//! kept out.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use common::dice::Dice;
use common::load::Poster;
use common::mesh::{Member, Mesh};
use common::raw::{self, Face, Raw, frame};
use common::soak::{self, Claim, p99};
use common::{elapse, eventually, one_at_a_time};
use serde_json::json;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;
/// Attackers at once.
const ATTACKERS: usize = 4;
/// What a node may grow by while it is attacked.
const GROWTH_BYTES_MAX: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn frames_of_every_length_end_nobody() {
    withstand("hostile: frames of every length", |attacker| {
        let mut exponent = 0;
        while attacker.goes_on() {
            for flags in [LONG, LONG | COMMAND, LONG | MORE] {
                let length = 1_u64.checked_shl(exponent).unwrap_or(u64::MAX);
                let header = [&[flags], &length.to_be_bytes()[..], b"xxxx"].concat();
                attacker.try_write(&[&greeting()[..], &header].concat());
                if let Some(mut peer) = attacker.call() {
                    _ = peer.write(&header);
                }
            }
            exponent = (exponent + 1) % 65;
        }
    });
}

#[test]
fn a_dialled_peer_that_answers_with_frames_of_every_length_ends_nobody() {
    withstand("hostile: dialled, frames of every length", |attacker| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut exponent = 0;
        while attacker.goes_on() {
            // Whoever is called dials back.
            let run = attacker.run();
            let Ok(_caller) = Raw::call(attacker.target, &attacker.face(run, port)) else { continue };
            attacker.made.fetch_add(1, Relaxed);
            let until = Instant::now() + Duration::from_millis(200);
            while Instant::now() < until && attacker.goes_on() {
                let Ok((stream, _)) = listener.accept() else {
                    elapse(Duration::from_millis(2));
                    continue;
                };
                stream.set_nonblocking(false).unwrap();
                if let Ok(mut peer) = Raw::answer(stream, &attacker.face(run, port)) {
                    let length = 1_u64.checked_shl(exponent).unwrap_or(u64::MAX);
                    let flags = [LONG, LONG | COMMAND, LONG | MORE][exponent as usize % 3];
                    _ = peer.write(&[&[flags], &length.to_be_bytes()[..], b"xxxx"].concat());
                    exponent = (exponent + 1) % 65;
                }
                break;
            }
        }
    });
}

#[test]
fn endless_messages_and_floods_of_subscriptions_end_nobody() {
    withstand("hostile: endless messages, floods of subscriptions", |attacker| {
        while attacker.goes_on() {
            if let Some(mut peer) = attacker.call() {
                let more = frame(MORE, &[7; 200]).repeat(50);
                while attacker.goes_on() && peer.write(&more).is_ok() {}
            }
            if let Some(mut peer) = attacker.call() {
                for number in 0.. {
                    if !attacker.goes_on() || peer.subscribe(&format!("topic {number}")).is_err() {
                        break;
                    }
                }
            }
        }
    });
}

#[test]
fn greetings_and_readys_with_changed_bytes_end_nobody() {
    withstand("hostile: changed greetings and READYs", |attacker| {
        let mut dice = Dice::new();
        while attacker.goes_on() {
            let mut bytes = Raw::opening("SUB", &attacker.face(attacker.run(), 9));
            for _ in 0..=dice.below(4) {
                let at = dice.below(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << dice.below(8);
            }
            bytes.truncate(bytes.len() - dice.below(2) as usize * dice.below(bytes.len() as u64) as usize);
            attacker.try_write(&bytes);
        }
    });
}

#[test]
fn silent_connections_keep_nobody_out() {
    let many = soak::count(100, 2_500);
    withstand("hostile: silent connections", move |attacker| {
        let mut open = Vec::new();
        while attacker.goes_on() {
            if open.len() < many {
                open.extend(attacker.connect());
            } else {
                elapse(Duration::from_millis(20));
            }
        }
    });
}

#[test]
fn a_storm_of_connections_keeps_nobody_out() {
    let pace = Duration::from_millis(soak::count(8, 1) as u64) * 4 / 5;
    withstand("hostile: a storm of connections", move |attacker| {
        while attacker.goes_on() {
            let began = Instant::now();
            if let Some(stream) = attacker.connect() {
                // No port of ours is left waiting.
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            }
            elapse(pace.saturating_sub(began.elapsed()));
        }
    });
}

#[test]
fn those_who_subscribe_and_do_not_read_hold_nobody_back() {
    withstand("hostile: subscribers that do not read", |attacker| {
        let mut open = Vec::new();
        while attacker.goes_on() {
            if open.len() < 8 {
                open.extend(attacker.call().map(|mut peer| {
                    _ = peer.subscribe("chat");
                    peer
                }));
            }
            elapse(Duration::from_millis(50));
        }
    });
}

#[test]
fn a_stopped_subscriber_holds_nobody_back_and_is_complete_when_it_goes_on() {
    const BODY: usize = 64 * 1024;
    const VOICES: u32 = 8;
    const FILL: u64 = 2_000;
    let _alone = one_at_a_time();
    let soak = soak::wanted();
    // 20 MB/s for the large claim.
    let (stopped, mb_per_s) = if soak { (30, 20) } else { (6, 10) };
    let (stopped, pace) =
        (Duration::from_secs(stopped), VOICES * Duration::from_secs(1) / (mb_per_s * 1_000_000 / BODY as u32));
    let mut claim = Claim::new("hostile: a stopped subscriber", 1);
    let mesh = Mesh::of(&["a", "b", "stopped"]);
    let node = |number: usize| &mesh.0[number];
    let ear = node(1).listen_in_briefly(16);
    let (end, said) = (AtomicBool::new(false), AtomicU64::new(0));
    let (grown, back) = std::thread::scope(|scope| {
        for _ in 0..VOICES {
            scope.spawn(|| {
                let (mut poster, rest) = (Poster::new(node(0)), "x".repeat(BODY - 16));
                let mut next = Instant::now();
                while !end.load(Relaxed) {
                    let number = said.fetch_add(1, Relaxed);
                    // The first ones as fast as it goes.
                    if number >= FILL {
                        elapse(next.saturating_duration_since(Instant::now()));
                        next += pace;
                    } else {
                        // But a page that listens is let go when it is too far behind.
                        eventually(PATIENCE, "what was said is heard", || {
                            number.saturating_sub(ear.heard().len() as u64) < 200
                        });
                        next = Instant::now();
                    }
                    let (status, answer) = poster.post(&json!({ "text": format!("n{number:<15}{rest}") })).unwrap();
                    assert_eq!(status, 201, "{answer}");
                }
            });
        }
        let _ends = EndOf(&end);
        // Windows and caches are full before it is measured.
        eventually(2 * PATIENCE, "the windows are full", || ear.heard().len() as u64 >= FILL);
        let resident = || [0, 1].map(|number| node(number).resident_bytes());
        let before = resident();
        node(2).signal("STOP");
        let mut grown = 0;
        let until = Instant::now() + stopped;
        while Instant::now() < until {
            elapse(Duration::from_millis(200));
            grown = resident()
                .iter()
                .zip(&before)
                .map(|(now, then)| now.saturating_sub(*then))
                .max()
                .max(Some(grown))
                .unwrap();
        }
        end.store(true, Relaxed);
        node(2).signal("CONT");
        (grown, Instant::now())
    });
    let count = said.load(Relaxed);
    eventually(PATIENCE, "the other has heard all", || ear.heard().len() as u64 >= count);
    let texts: std::collections::BTreeSet<String> = ear.heard().iter().map(|heard| heard.text.trim().into()).collect();
    assert_eq!((texts.len() as u64, ear.heard().len() as u64), (count, count), "each once");
    eventually(4 * PATIENCE, "the one that was stopped is complete", || node(2).messages() == count);
    assert_eq!([0, 1, 2].map(|number| node(number).messages()), [count; 3]);
    claim.measured("messages", count);
    claim.measured("mb_per_s", BODY as u64 * (count - FILL) / stopped.as_millis() as u64 / 1_000);
    claim.measured("grew_mib", grown >> 20);
    claim.measured("complete_ms", back.elapsed().as_millis() as u64);
    assert!(grown <= GROWTH_BYTES_MAX, "a node grew by {} MiB", grown >> 20);
}

/// One of those who attack.
struct Attacker<'a> {
    target: SocketAddr,
    /// Whether `target` speaks at all.
    answers: bool,
    end: &'a AtomicBool,
    lives: &'a AtomicU64,
    /// Connections that were made.
    made: &'a AtomicU64,
}

impl Attacker<'_> {
    fn goes_on(&self) -> bool {
        !self.end.load(Relaxed)
    }

    /// A run that nobody had before.
    fn run(&self) -> hubless::id::Run {
        raw::run(1_000 + self.lives.fetch_add(1, Relaxed))
    }

    fn face(&self, run: hubless::id::Run, port: u16) -> Face<'static> {
        Face { run, mesh: "default", port }
    }

    fn connect(&self) -> Option<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.target, Duration::from_millis(200)).ok();
        self.made.fetch_add(stream.is_some().into(), Relaxed);
        stream
    }

    /// Through the handshake, as one that wants to hear; none if that is refused, or with whoever does not speak.
    fn call(&self) -> Option<Raw> {
        if !self.answers {
            self.try_write(&Raw::opening("SUB", &self.face(self.run(), 9)));
            return None;
        }
        let called = Raw::call(self.target, &self.face(self.run(), 9)).ok();
        self.made.fetch_add(called.is_some().into(), Relaxed);
        called
    }

    /// Sends these bytes over a connection of their own, and sees for a moment what comes of it.
    fn try_write(&self, bytes: &[u8]) {
        let Some(mut stream) = self.connect() else { return };
        stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        _ = stream.write_all(bytes);
        _ = stream.read(&mut [0; 256]);
    }
}

/// Lets an attack run, first at nobody, then at two nodes that talk.
fn withstand(what: &'static str, attack: impl Fn(&Attacker<'_>) + Sync) {
    let _alone = one_at_a_time();
    let span = Duration::from_secs(if soak::wanted() { 20 } else { 2 });
    let mut claim = Claim::new(what, 1);
    let mut mesh = Mesh::of(&["a", "b", "early", "newcomer"]);
    mesh.0[2..].iter_mut().for_each(Member::stop);
    let listens: Vec<SocketAddr> = mesh.0[..2].iter().map(|node| node.listen().parse().unwrap()).collect();
    let ear = mesh.0[1].listen_in();
    let talk = Talk::default();
    let (lives, made, sink) = (AtomicU64::new(0), AtomicU64::new(0), TcpListener::bind("127.0.0.1:0").unwrap());
    let nobody = [sink.local_addr().unwrap(); 2];
    let during = |targets: &[SocketAddr], answers: bool, meanwhile: &mut dyn FnMut()| {
        let end = AtomicBool::new(false);
        let first = talk.said();
        std::thread::scope(|scope| {
            for number in 0..ATTACKERS {
                let attacker = Attacker {
                    target: targets[number % targets.len()],
                    answers,
                    end: &end,
                    lives: &lives,
                    made: &made,
                };
                let attack = &attack;
                scope.spawn(move || attack(&attacker));
            }
            // Whatever happens here, the attackers end.
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(meanwhile));
            end.store(true, Relaxed);
            done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        first..talk.said()
    };

    std::thread::scope(|scope| {
        for _ in 0..Talk::VOICES {
            let poster = Poster::new(&mesh.0[0]);
            scope.spawn(|| talk.go_on(poster));
        }
        let _ends = EndOf(&talk.end);
        scope.spawn(|| swallow(&sink, &talk.end));
        elapse(span / 2);
        // In the middle of either run a node joins that knows nothing yet.
        let joins = |mesh: &mut Mesh, number: usize| {
            elapse(span / 2);
            let seeds = mesh.seeds();
            let newcomer: &mut Member = &mut mesh.0[number];
            newcomer.spawn(&seeds);
            newcomer.ready();
            let hears = newcomer.listen_in();
            eventually(Duration::from_secs(5), "a newcomer hears them in the midst of it", || {
                hears.first("talk ").is_some()
            });
            let joined = newcomer.started.elapsed();
            elapse(span / 2);
            joined
        };
        let calm = during(&nobody, false, &mut || _ = joins(&mut mesh, 2));
        mesh.0[2].stop();
        let resident = |mesh: &Mesh| mesh.0[..2].iter().map(|node| node.resident_bytes()).max().unwrap();
        let before = resident(&mesh);
        let (mut grown, mut joined) = (0, Duration::ZERO);
        made.store(0, Relaxed);
        let attacked = during(&listens, true, &mut || {
            joined = joins(&mut mesh, 3);
            grown = resident(&mesh).saturating_sub(before);
        });
        talk.end.store(true, Relaxed);
        let count = talk.said();
        eventually(PATIENCE, "all that was said is heard", || ear.heard().len() >= count);
        let mut times = vec![0; count];
        let (mut calm_ms, mut attacked_ms) = (Vec::new(), Vec::new());
        for heard in ear.heard().iter() {
            let number: usize = heard.text.strip_prefix("talk ").unwrap().trim_end().parse().unwrap();
            times[number] += 1;
            let took_ms = (heard.at - talk.at(number)).as_secs_f64() * 1e3;
            if calm.contains(&number) {
                calm_ms.push(took_ms);
            } else if attacked.contains(&number) {
                attacked_ms.push(took_ms);
            }
        }
        assert_eq!(times.iter().filter(|times| **times != 1).count(), 0, "each once");
        let (calm_p99, attacked_p99) = (p99(calm_ms), p99(attacked_ms));
        let hundredths = |value: f64| (value * 100.0).round() / 100.0;
        claim.measured("messages", json!({ "elsewhere": calm.len(), "attacked": attacked.len() }));
        claim.measured("connections", made.load(Relaxed));
        assert!(made.load(Relaxed) >= 8, "that is no attack");
        claim.measured("p99_ms", json!({ "elsewhere": hundredths(calm_p99), "attacked": hundredths(attacked_p99) }));
        claim.measured("grew_mib", grown >> 20);
        claim.measured("joined_ms", joined.as_millis() as u64);
        assert!(joined <= Duration::from_secs(5), "the newcomer took {joined:?}");
        assert!(grown <= GROWTH_BYTES_MAX, "a node grew by {} MiB", grown >> 20);
        if soak::wanted() {
            assert!(
                attacked_p99 <= 3.0 * calm_p99,
                "p99 {attacked_p99:.1} ms, {calm_p99:.1} ms beside the same attack"
            );
        }
    });
    mesh.0.remove(2);
    assert!(mesh.0.iter().all(Member::runs));
}

/// What the first node says, 1,000 messages a second.
#[derive(Default)]
struct Talk {
    end: AtomicBool,
    said: std::sync::Mutex<Vec<Instant>>,
}

impl Talk {
    /// Each waits for its answers, so one alone could not say as much.
    const VOICES: usize = 5;
    const PACE: Duration = Duration::from_millis(10);
    const BURST: usize = 2;

    fn go_on(&self, mut poster: Poster) {
        let started = Instant::now();
        for turn in 0.. {
            elapse((started + Talk::PACE * turn).saturating_duration_since(Instant::now()));
            if self.end.load(Relaxed) {
                return;
            }
            let first = {
                let mut said = self.said.lock().unwrap();
                said.extend([Instant::now(); Talk::BURST]);
                said.len() - Talk::BURST
            };
            let texts: Vec<_> =
                (first..first + Talk::BURST).map(|number| json!({ "text": format!("talk {number:<100}") })).collect();
            let answers = poster.post_all(&texts).unwrap();
            assert!(answers.iter().all(|(status, _)| *status == 201), "{answers:?}");
        }
    }

    fn said(&self) -> usize {
        self.said.lock().unwrap().len()
    }

    fn at(&self, number: usize) -> Instant {
        self.said.lock().unwrap()[number]
    }
}

/// Sets a flag when it goes, also by a panic.
struct EndOf<'a>(&'a AtomicBool);

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Accepts whoever comes, reads a little and lets go.
fn swallow(listener: &TcpListener, end: &AtomicBool) {
    listener.set_nonblocking(true).unwrap();
    let mut open = std::collections::VecDeque::new();
    while !end.load(Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                open.push_back(stream);
                if open.len() > 128 {
                    open.pop_front();
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => elapse(Duration::from_millis(1)),
            Err(error) => panic!("{error}"),
        }
    }
}

fn greeting() -> Vec<u8> {
    Raw::opening("SUB", &Face { run: raw::run(1), mesh: "default", port: 9 })[..64].to_vec()
}
