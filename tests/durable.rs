//! What `durable` means: the disk has it. On disks that are slow, that fail, and toward a subscriber that is killed.
//!
//! The disks are real ones under `tests/shim/hubless_shim.c`; the first tests show that it does what the others rely on.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime};

use common::dice::Dice;
use common::load::{self, Outcome, Poster};
use common::log::same_logs;
use common::mesh::{Member, Mesh};
use common::shim::{self, Entries, Errno, Shim};
use common::soak::{self, Claim};
use common::{Hubless, eventually, eventually_some, one_at_a_time, python};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn the_shim_forgets_what_was_not_synced() {
    let read = |shim: &tried::Tried, name: &str| fs::read(shim.root.join(name)).ok();
    for entries in [Entries::Kept, Entries::Synced] {
        let tried = tried::run(entries);
        assert_eq!(read(&tried, "appended").unwrap(), b"synced");
        assert_eq!(read(&tried, "cut").unwrap(), b"0123\0\0\0\089");
        assert_eq!(read(&tried, "folder/inside").unwrap(), b"inside");
        let overwritten = read(&tried, "overwritten").unwrap();
        let (place, bytes) = overwritten.iter().enumerate().find(|(_, byte)| **byte != 0).unwrap();
        assert_eq!((overwritten.len(), place, *bytes), (1 << 20, 4096, b'k'));
        assert_eq!(overwritten[4096..].iter().rposition(|byte| *byte != 0), Some(3));
        assert_eq!(read(&tried, "never").unwrap(), b"", "its folder was synced, it was not");
        let gone = |name: &str| read(&tried, name).is_none();
        assert!(gone("late.new") && gone("nothing of it"), "{entries:?}");
        match entries {
            Entries::Kept => {
                assert!(gone("old"));
                assert_eq!(read(&tried, "late").unwrap(), b"late");
                // What a failed sync has lost, the next one does not bring.
                assert_eq!(read(&tried, "failed").unwrap(), b"aaaa\0\0\0\0cccc");
            }
            Entries::Synced => {
                assert_eq!(read(&tried, "old").unwrap(), b"old", "its removal was not synced");
                assert!(gone("late") && gone("failed"));
            }
        }
    }
}

mod tried {
    use super::*;

    pub struct Tried {
        pub root: PathBuf,
        _home: tempfile::TempDir,
    }

    /// A folder after `tests/shim/try_shim.py` and a power cut.
    pub fn run(entries: Entries) -> Tried {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().canonicalize().unwrap().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("old"), "old").unwrap();
        let shim = Shim::over(&root);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim/try_shim.py");
        let output = python().arg(script).envs(shim.env()).output().expect("Python runs");
        assert_eq!(output.status.signal(), Some(9), "{}", String::from_utf8_lossy(&output.stderr));
        shim.cut_power(entries);
        Tried { root, _home: home }
    }
}

#[test]
fn the_shim_shifts_the_time_of_day() {
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    for offset_s in [-1_700_000_000.5, -0.25, 0.75, 3_456_000.0] {
        let mut command = python();
        command.args(["-c", "import time; print(time.time(), time.time_ns() / 1e9, int(time.monotonic()))"]);
        let before = now();
        let output = command.envs(shim::clock_env((offset_s * 1e3) as i64)).output().expect("Python runs");
        let after = now();
        let said = String::from_utf8(output.stdout).unwrap();
        let times: Vec<f64> = said.split_whitespace().map(|time| time.parse().unwrap()).collect();
        for time in &times[..2] {
            assert!((before - 0.01..after + 0.01).contains(&(time - offset_s)), "{time} is not {offset_s} off");
        }
        assert!(times[2] >= 0.0);
    }
}

#[test]
fn slow_sync_delays_the_answer_and_nothing_else() {
    let _alone = one_at_a_time();
    let (ours, theirs) = (millis(300), millis(1_500));
    let trials = soak::count(3, 20);
    let mut claim = Claim::new("durable: slow sync", trials);
    let mesh = Mesh::start(vec![Member::new("a").on_shim(), Member::new("b").on_shim()]);
    let (author, peer) = (&mesh.0[0], &mesh.0[1]);
    let ear = peer.listen_in();
    author.rooms(); // Its log is made.
    author.shim().delay(ours);
    peer.shim().delay(theirs);
    let (mut heard_ms, mut answered_ms, mut stored_ms) = (Vec::new(), Vec::new(), Vec::new());
    for trial in 0..trials {
        let text = format!("slow {trial}");
        let mut poster = Poster::new(author);
        let asked = Instant::now();
        let (said, answered, stored) = std::thread::scope(|scope| {
            let voice = scope.spawn(|| (poster.say(&text), asked.elapsed()));
            let shown = || {
                let page = author.get("/api/v1/messages?limit=1");
                page["messages"].as_array().unwrap().iter().find(|message| message["text"] == *text).cloned()
            };
            let message = eventually_some(PATIENCE, "the author knows that its peer has it on disk", || {
                shown().filter(|message| message["stored_by"] == 1)
            });
            let stored = asked.elapsed();
            assert_eq!(message["state"], "replicated");
            let (said, answered) = voice.join().unwrap();
            (said, answered, stored)
        });
        assert!(matches!(&said.outcome, Outcome::Accepted { state, .. } if state == "durable"), "{said:?}");
        assert!(answered >= ours, "durable after {answered:?}, and a sync takes {ours:?}");
        assert!(stored >= theirs, "stored by the peer after {stored:?}, and its sync takes {theirs:?}");
        let heard = ear.first(&text).expect("the peer's subscriber has it long since") - asked;
        assert!(heard < millis(100), "the peer's subscriber waited {heard:?}");
        for (list, time) in [(&mut heard_ms, heard), (&mut answered_ms, answered), (&mut stored_ms, stored)] {
            list.push(time.as_secs_f64() * 1e3);
        }
    }
    claim.times_ms("heard_ms", heard_ms);
    claim.times_ms("answered_ms", answered_ms);
    claim.times_ms("stored_ms", stored_ms);
}

#[test]
fn each_way_to_sync_promises_what_it_does() {
    let _alone = one_at_a_time();
    let delay = millis(300);
    for (fsync, state, waits) in [("always", "durable", true), ("group", "durable", true), ("os", "logged", false)] {
        let mesh = Mesh::start(vec![Member::new("a").on_shim().args(&["--fsync", fsync])]);
        let mut poster = Poster::new(&mesh.0[0]);
        mesh.0[0].rooms(); // Its log is made.
        mesh.0[0].shim().delay(delay);
        let asked = Instant::now();
        let said = poster.say("hi");
        let took = asked.elapsed();
        mesh.0[0].shim().delay(Duration::ZERO);
        assert!(matches!(&said.outcome, Outcome::Accepted { state: said, .. } if said == state), "{fsync}: {said:?}");
        assert_eq!(took >= delay, waits, "{fsync}: {took:?}");
    }
}

#[test]
fn failing_sync_with_eio_refuses_and_relays_and_recovers() {
    failing("EIO from fsync", 503, |shim, on| shim.fail_syncs(on.then_some(Errno::Io)));
}

#[test]
fn failing_sync_with_enospc_refuses_and_relays_and_recovers() {
    failing("ENOSPC from fsync", 507, |shim, on| shim.fail_syncs(on.then_some(Errno::NoSpace)));
}

#[test]
fn failing_write_with_enospc_refuses_and_relays_and_recovers() {
    failing("ENOSPC from write", 507, |shim, on| shim.fail_writes(on.then_some(Errno::NoSpace)));
}

/// One of three nodes has a disk that fails for a while.
fn failing(how: &str, status: u16, switch: impl Fn(&Shim, bool)) {
    let _alone = one_at_a_time();
    let mut mesh = Mesh::start(vec![Member::new("a").on_shim(), Member::new("b"), Member::new("c")]);
    let mut promised = BTreeSet::new();
    for number in 0..20 {
        let said = Poster::new(&mesh.0[0]).say(&format!("before {number}"));
        assert!(said.is_promised(), "{said:?}");
        promised.insert(said.text);
    }
    same_logs(&mesh.running(), PATIENCE, &promised);

    let (ear, far_ear) = (mesh.0[0].listen_in(), mesh.0[2].listen_in());
    switch(mesh.0[0].shim(), true);
    for number in 0..5 {
        let body = serde_json::json!({ "text": format!("refused {number}") });
        let (answered, answer) = Poster::new(&mesh.0[0]).post(&body).expect("an answer");
        assert_eq!(answered, status, "{how}: {answer}");
        assert!(answer["error"]["code"].as_str().is_some_and(|code| !code.is_empty()), "{how}: {answer}");
    }
    let ready: Value = mesh.0[0].request("GET", "/readyz", "").1;
    assert_ne!(ready["history"], true, "{how}: {ready}");
    for number in 0..20 {
        let said = Poster::new(&mesh.0[1]).say(&format!("meanwhile {number}"));
        assert!(said.is_promised(), "{said:?}");
        promised.insert(said.text);
    }
    for ear in [&ear, &far_ear] {
        let all = || (0..20).all(|number| ear.times(&format!("meanwhile {number}")) == 1);
        eventually(PATIENCE, "what others say is heard at the node that cannot keep it", all);
    }

    switch(mesh.0[0].shim(), false);
    let said = eventually_some(PATIENCE, "it takes publishes again, by itself", || {
        let said = Poster::new(&mesh.0[0]).say("after");
        said.is_promised().then_some(said)
    });
    promised.insert(said.text);
    same_logs(&mesh.running(), PATIENCE, &promised);
    // What it promises now is on the disk, too: a sync that failed must not be trusted by the next one.
    mesh.cut_power(&[0], Entries::Kept);
    mesh.0[1].stop();
    mesh.0[2].stop();
    mesh.start_again(&[0]);
    same_logs(&mesh.running(), PATIENCE, &promised);
    mesh.start_again(&[1, 2]);
    same_logs(&mesh.running(), PATIENCE, &promised);
}

#[test]
fn python_durable_subscriber_that_is_killed_acknowledges_every_message() {
    let _alone = one_at_a_time();
    let (kills, count) = (soak::count(4, 20), 2_000);
    let mut dice = Dice::new();
    let mut claim = Claim::new("durable: Python subscriber, killed", kills);
    claim.seeded(dice.seed);
    // Its client speaks TCP.
    let home = common::Home::new();
    let file = home.path().join("taken");
    let folder = home.path().join("node");
    let args = ["--no-mdns", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--name", "a", "--data-dir"];
    let args = [&args[..], &[folder.to_str().unwrap()]].concat();
    let node = Hubless::spawn(&common::Place::Here, &home, &args);
    node.ready();
    let taken = || -> Vec<String> {
        let text = fs::read_to_string(&file).unwrap_or_default();
        // A line that a kill cut off was not acknowledged.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        text[..whole].lines().map(String::from).collect()
    };
    let mut client = Client::start(&node, &file);
    eventually(PATIENCE, "its cursor has a name", || {
        assert!(client.0.try_wait().unwrap().is_none(), "the subscriber has ended");
        !node.get("/api/v1/durables").as_array().expect("an array").is_empty()
    });
    let part = count / kills;
    for kill in 0..kills {
        std::thread::scope(|scope| {
            let voice = scope.spawn(|| load::publish(&node, part, |number| format!("{kill}.{number}")));
            let enough = taken().len() + dice.below(part as u64 / 2) as usize;
            eventually(PATIENCE, "the subscriber takes some", || {
                assert!(client.0.try_wait().unwrap().is_none(), "the subscriber has ended");
                taken().len() >= enough
            });
            drop(client);
            voice.join().unwrap();
        });
        cut_half_line(&file);
        client = Client::start(&node, &file);
    }
    let all: BTreeSet<String> = (0..kills).flat_map(|k| (0..part).map(move |n| format!("{k}.{n}"))).collect();
    eventually(PATIENCE, "all of it is taken", || taken().into_iter().collect::<BTreeSet<_>>() == all);
    claim.measured("taken_again", taken().len() - all.len());
    assert!(taken().len() - all.len() <= kills * 1_000, "at most what is unacknowledged comes again");

    // The cursor stays with the node: after a kill of it the next subscriber gets what is new, and little else.
    drop(client);
    cut_half_line(&file);
    let home = node.kill();
    let node = Hubless::spawn(&common::Place::Here, &home, &args);
    node.ready();
    let before = taken().len();
    let _client = Client::start(&node, &file);
    assert!(Poster::new(&node).say("the last").is_promised());
    eventually(PATIENCE, "the last is taken", || taken().last().is_some_and(|text| text == "the last"));
    assert!(taken().len() - before <= 1_001, "{} came again", taken().len() - before - 1);
}

/// `tests/interop/durable.py`, killed when dropped.
struct Client(Child);

impl Client {
    fn start(node: &Hubless, file: &Path) -> Client {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/durable.py");
        let mut command = python();
        command.arg(script).arg(node.http()).arg("py").arg(file).stdin(Stdio::null());
        Client(command.spawn().expect("Python runs"))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The next subscriber shall not go on in the middle of a line.
fn cut_half_line(file: &Path) {
    let Ok(text) = fs::read(file) else { return };
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    fs::File::options().write(true).open(file).unwrap().set_len(whole as u64).unwrap();
}
