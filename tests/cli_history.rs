//! The command line and the log: what is kept, printed, acknowledged, exported and imported, by real processes.
//!
//! Every test has homes of its own, and every node listens on loopback only.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail tests")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Output, Stdio};
use std::time::Duration;

use common::{Home, Hubless, Place, eventually};
use serde_json::Value;

/// Nothing here takes that long on a machine that works.
const DEADLINE: Duration = Duration::from_secs(30);
/// Options of a node that speaks on loopback only and with nobody it is not told of.
const QUIET: [&str; 3] = ["--listen", "127.0.0.1:0", "--no-mdns"];

/// A node in `home` that serves; its folder is the one of the name `ada`.
fn node(home: &Home, options: &[&str]) -> Hubless {
    let node = Hubless::spawn(&Place::Here, home, &[&QUIET[..], &["--no-http", "--name", "ada"], options].concat());
    node.ready();
    node
}

/// Two nodes, each in a home of its own, that are up at each other.
fn pair(second: &[&str]) -> (Hubless, Hubless) {
    let first = node(&Home::new(), &[]);
    let second = node(&Home::new(), &[&["--connect", &first.listen()], second].concat());
    eventually(DEADLINE, "both are up", || first.sees_up(&[&second]) && second.sees_up(&[&first]));
    (first, second)
}

fn folder(home: &Home) -> PathBuf {
    home.path().join("data/hubless/default/ada")
}

/// Runs the binary in `home` to its end.
fn run(home: &Home, arguments: &[&str]) -> Output {
    run_reading(home, arguments, "")
}

fn run_reading(home: &Home, arguments: &[&str], stdin: impl Into<Vec<u8>>) -> Output {
    let command = home.hubless(&Place::Here, arguments);
    assert_cmd::Command::from_std(command).write_stdin(stdin).timeout(DEADLINE).output().unwrap()
}

/// What it printed, after a good end.
#[track_caller]
fn printed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", said(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// It ended with `code` and said all of `parts` in `error: …` and perhaps a hint.
#[track_caller]
fn assert_refused(output: &Output, code: i32, parts: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    let error = said.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    assert!(parts.iter().all(|part| error.contains(part)), "{said}");
}

#[track_caller]
fn objects(output: &Output) -> Vec<Value> {
    printed(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[track_caller]
fn texts(output: &Output) -> Vec<String> {
    objects(output).iter().map(|message| message["text"].as_str().unwrap().to_string()).collect()
}

fn numbers(count: usize) -> String {
    (0..count).map(|number| format!("n{number}\n")).collect()
}

/// Says `n0`, `n1`, … and does not mind that nobody else has them.
fn say(home: &Home, count: usize) {
    let output = run_reading(home, &["pub", "--wait", "0", "-"], numbers(count));
    assert!(matches!(output.status.code(), Some(0 | 3)), "{}", said(&output));
}

/// Everything in a log, by id: what two logs that agree are equal in.
fn log(home: &Home) -> BTreeMap<String, (String, String)> {
    let word = |message: &Value, field: &str| message[field].as_str().unwrap().to_string();
    let messages = objects(&run(home, &["history", "--all", "--json"]));
    let count = messages.len();
    let log = messages.iter().map(|message| (word(message, "id"), (word(message, "text"), word(message, "time"))));
    let log = BTreeMap::from_iter(log);
    assert_eq!(log.len(), count, "an id comes twice");
    log
}

#[test]
fn history_prints_the_same_of_a_running_node_and_of_its_folder() {
    let home = Home::new();
    let running = node(&home, &[]);
    say(&home, 700);
    let output = run(&home, &["pub", "--wait", "0", "news", "Grüße & 100% hi\n[12:00:00] eve: x"]);
    assert_eq!(output.status.code(), Some(3));
    let look = || {
        let ask = |options: &[&str]| texts(&run(&home, &[&["history", "--json"], options].concat()));
        assert_eq!(ask(&[]).len(), 100);
        assert_eq!(ask(&["--room", "lobby", "--limit", "2"]), ["n698", "n699"]);
        let all = Vec::from_iter((0..700).map(|number| format!("n{number}")));
        assert_eq!(ask(&["--limit", "5000", "--room", "lobby"]), all);
        assert_eq!(ask(&["--limit", "0", "--room", "lobby"]), all);
        assert_eq!(ask(&["--all", "--grep", "N69"]).len(), 11);
        assert_eq!(ask(&["--grep", "N69", "--limit", "5"]).len(), 5);
        assert_eq!(ask(&["--grep", "grüße & 100%"]).len(), 1);
        assert_eq!(ask(&["--all", "--grep", "GRÜSSE"]), [""; 0]);
        assert_eq!(ask(&["--since", "1h", "--limit", "5000"]).len(), 701);
        for options in
            [&["--until", "1h"][..], &["--until", "1h", "--all"], &["--since", "2999-01-01T00:00:00Z", "--all"]]
        {
            assert_eq!(ask(options), [""; 0], "{options:?}");
        }
        let lines = printed(&run(&home, &["history", "--limit", "1"]));
        assert!(lines.contains("] news ada: Grüße & 100% hi\n    [12:00:00] eve: x\n"), "{lines}");
        assert!(lines.starts_with("[20") && lines.as_bytes()[20] == b']', "a day and a time: {lines}");
        log(&home)
    };
    let live = look();
    running.stop();
    let port = fs::read(folder(&home).join("port")).unwrap();
    assert_eq!(look(), live);
    assert_eq!(fs::read(folder(&home).join("port")).unwrap(), port, "a look leaves no trace of a network");
    assert_eq!(live.len(), 701);
}

#[test]
fn a_history_that_cannot_be_opened_says_why_and_is_not_touched() {
    let home = Home::new();
    let running = node(&home, &[]);
    say(&home, 3);
    // A node that does not answer.
    fs::rename(folder(&home).join("control.sock"), folder(&home).join("gone")).unwrap();
    let pid = running.pid().to_string();
    assert_refused(&run(&home, &["history"]), 2, &["in use by process", &pid]);
    fs::rename(folder(&home).join("gone"), folder(&home).join("control.sock")).unwrap();
    running.stop();

    let format = folder(&home).join("history/format");
    let known = fs::read_to_string(&format).unwrap();
    let newer = "hubless history 99";
    fs::write(&format, format!("{newer} {}\n", &blake3::hash(newer.as_bytes()).to_hex()[..16])).unwrap();
    let before = files(&folder(&home).join("history"));
    for command in [&["history"][..], &["history", "export", "log"], &["history", "import", "-"]] {
        assert_refused(&run(&home, command), 1, &["is of a newer version (99)"]);
    }
    assert!(files(&folder(&home).join("history")) == before, "it was touched");
    assert!(!home.path().join("log").exists());
    fs::write(&format, known).unwrap();
    assert_eq!(texts(&run(&home, &["history", "--json"])), ["n0", "n1", "n2"]);
}

/// All files below a folder, with what is in them.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn of_several_logs_one_must_be_named() {
    let home = Home::new();
    for name in ["ada", "bob"] {
        let node = Hubless::spawn(&Place::Here, &home, &[&QUIET[..], &["--no-http", "--name", name]].concat());
        node.ready();
        let folder = home.path().join("data/hubless/default").join(name);
        run(&home, &["pub", "--wait", "0", "--data-dir", folder.to_str().unwrap(), name]);
        node.stop();
    }
    assert_refused(&run(&home, &["history"]), 2, &["several logs", "ada, bob"]);
    assert_eq!(texts(&run(&home, &["history", "--json", "--name", "bob"])), ["bob"]);
}

#[test]
fn a_node_without_history_keeps_nothing() {
    let home = Home::new();
    let start = || {
        let node = node(&home, &["--no-history"]);
        eventually(DEADLINE, "it says so", || node.stderr().contains("none: what is said is gone with this node"));
        let output = run(&home, &["pub", "--wait", "0", "hi"]);
        assert_refused(&output, 3, &["it stays in this node's memory"]);
        let output = run(&home, &["history", "--json"]);
        assert_eq!(texts(&output), ["hi"]);
        assert!(said(&output).contains("keeps no history"), "{}", said(&output));
        assert_refused(&run(&home, &["sub", "--durable", "x", "--wait", "1s"]), 2, &["keeps no history"]);
        assert_refused(&run(&home, &["history", "export", "log"]), 2, &["keeps no history"]);
        assert_refused(&run_reading(&home, &["history", "import", "-"], "x"), 2, &["keeps no history"]);
        assert!(!home.path().join("log").exists() && !home.path().join("log.part").exists());
        let id = node.node();
        node.stop();
        id
    };
    assert_ne!(start(), start(), "its identity lasts for the run");
    let left = fs::read_dir(folder(&home)).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(Vec::from_iter(left), ["lock"]);
}

#[test]
fn what_is_kept_can_be_said_anywhere_and_is_shown_at_the_start() {
    let home = Home::new();
    fs::write(home.path().join("hubless.toml"), "fsync = \"os\"\nretain-days = 3\nretain-bytes = \"2G\"\n").unwrap();
    let first = node(&home, &[]);
    say(&home, 1_500);
    let output = run(&home, &["pub", "--json", "--wait", "0", "hi"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"state\":\"logged\""), "fsync is that of the file");
    first.stop();
    let second = node(&home, &["--fsync", "always"]);
    eventually(DEADLINE, "it shows the count", || {
        second.stderr().contains("1,501 messages, in ~/data/hubless/default/ada")
    });
    let output = run(&home, &["pub", "--json", "--wait", "0", "hi"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"state\":\"durable\""), "the option wins");
}

#[test]
fn the_oldest_messages_go_where_a_node_is_told_to_and_a_look_lets_nothing_go() {
    const LINES: usize = 3_000;
    let home = Home::new();
    fs::write(home.path().join("hubless.toml"), "retain-bytes = \"100K\"\n").unwrap();
    let long = "x".repeat(200);
    let lines: String = (0..LINES).map(|number| format!("{number} {long}\n")).collect();
    let all = || texts(&run(&home, &["history", "--all", "--json"]));
    let plenty = node(&home, &["--retain-bytes", "1G"]);
    run_reading(&home, &["pub", "--wait", "0", "-"], lines);
    plenty.stop();
    assert_eq!(all().len(), LINES);
    let told = node(&home, &[]);
    let held = || told.get("/api/v1/rooms")[0]["messages"].as_u64().unwrap();
    // So many take 100 KiB without anything around them.
    eventually(DEADLINE, "the oldest have gone", || held() <= 500);
    assert_eq!(all().last().map(|last| last.starts_with("2999 ")), Some(true), "the newest stay");
    told.stop();
}

#[test]
fn pub_waits_for_a_disk_unless_memory_is_enough() {
    let (first, second) = pair(&["--no-history"]);
    let output = run(first.home(), &["pub", "--wait", "500ms", "hi"]);
    assert_refused(&output, 3, &["known to have it on disk", "it stays in this machine's log"]);
    assert!(said(&output).contains("hint: another node has it in memory: `--volatile-ok`"), "{}", said(&output));
    let output = run(first.home(), &["pub", "--volatile-ok", "--json", "hi"]);
    let object = &objects(&output)[0];
    assert_eq!((&object["state"], &object["stored_by"]), (&"durable".into(), &0.into()));
    assert!(said(&output).contains("in the memory of one other node"), "{}", said(&output));
    // The other way round there is a disk.
    let output = run(second.home(), &["pub", "--json", "hi"]);
    let object = &objects(&output)[0];
    assert_eq!((&object["state"], &object["stored_by"]), (&"replicated".into(), &1.into()));
    assert!(said(&output).contains("on the disk of one other node"), "{}", said(&output));
}

#[test]
fn many_lines_are_published_in_order_and_share_their_fsyncs() {
    const LINES: usize = 20_000;
    let (first, second) = pair(&[]);
    let output = run_reading(first.home(), &["pub", "--json", "--wait", "20s", "-"], numbers(LINES));
    let answers = objects(&output);
    assert_eq!(answers.len(), LINES);
    assert!(answers.iter().all(|answer| answer["state"] == "replicated"));
    let seq = |answer: &Value| answer["id"].as_str().unwrap().rsplit('.').next().unwrap().parse::<u64>().unwrap();
    assert!(answers.windows(2).all(|two| seq(&two[0]) < seq(&two[1])), "out of order");
    assert!(said(&output).contains(&format!("all {LINES} messages are on the disk of another node")));
    let all = Vec::from_iter((0..LINES).map(|number| format!("n{number}")));
    for node in [&first, &second] {
        assert!(texts(&run(node.home(), &["history", "--all", "--json"])) == all, "another order in the log");
    }
}

#[test]
fn a_line_that_is_refused_does_not_hide_those_before_it() {
    let (first, _second) = pair(&[]);
    let long = "x".repeat(256 * 1024 + 1);
    let output = run_reading(first.home(), &["pub", "--json", "-"], format!("{}{long}\nafter\n", numbers(50)));
    assert_refused(&output, 2, &["line 51 is too long"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 50);
    assert_eq!(texts(&run(first.home(), &["history", "--json"])).len(), 50);
}

/// A durable reader that goes on.
struct Reader {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Reader {
    fn new(home: &Home, name: &str) -> Reader {
        let mut command = home.hubless(&Place::Here, &["sub", "--json", "--durable", name]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut notes = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(notes.any(|note| note.unwrap().contains("listening in lobby")));
        std::thread::spawn(move || notes.for_each(drop));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Reader { child, lines }
    }

    fn next(&mut self) -> String {
        let line = self.lines.next().unwrap().unwrap();
        let message: Value = serde_json::from_str(&line).unwrap();
        message["text"].as_str().unwrap().to_string()
    }

    /// Kills it; what it had printed, up to a line that it did not end.
    fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        let lines = self.lines.by_ref().map(Result::unwrap);
        let messages = lines.map_while(|line| serde_json::from_str::<Value>(&line).ok());
        messages.map(|message| message["text"].as_str().unwrap().to_string()).collect()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_durable_reader_goes_on_where_it_stopped() {
    let home = Home::new();
    let running = node(&home, &[]);
    let sub = |options: &[&str]| run(&home, &[&["sub", "--json", "--durable", "x"], options].concat());
    assert_refused(&sub(&["--wait", "300ms"]), 3, &["nothing was said in lobby"]);
    say(&home, 20);
    // Each takes as many as it prints, wherever a burst ends.
    assert_eq!(texts(&sub(&["-n", "3"])), ["n0", "n1", "n2"]);
    assert_eq!(texts(&sub(&["-n", "2"])), ["n3", "n4"]);
    let rest = texts(&sub(&["--wait", "2s"]));
    assert_eq!(rest, Vec::from_iter((5..20).map(|number| format!("n{number}"))));
    assert_refused(&sub(&["--wait", "300ms"]), 3, &["nothing was said in lobby"]);
    // It outlives the node.
    running.stop();
    let _running = node(&home, &[]);
    assert_refused(&sub(&["--wait", "300ms"]), 3, &["nothing was said in lobby"]);
    say(&home, 1);
    assert_eq!(texts(&sub(&["-n", "1"])), ["n0"]);
}

#[test]
fn a_durable_reader_that_is_killed_prints_everything_at_least_once() {
    const MESSAGES: usize = 3_000;
    let home = Home::new();
    let _running = node(&home, &[]);
    drop(Reader::new(&home, "x"));
    say(&home, MESSAGES);
    let mut order = Vec::new();
    for round in 0..6 {
        let mut reader = Reader::new(&home, "x");
        order.extend((0..(round + 1) * 40).map(|_| reader.next()));
        order.extend(reader.kill());
    }
    order.extend(texts(&run(&home, &["sub", "--json", "--durable", "x", "--wait", "3s"])));
    assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), MESSAGES, "each at least once");
    // What comes again comes in its order: nobody is ever ahead of what was acknowledged.
    let number = |text: &String| text[1..].parse::<usize>().unwrap();
    let mut next = 0;
    for text in &order {
        assert!(number(text) <= next, "n{next} was passed over for {text}");
        next = next.max(number(text) + 1);
    }
}

#[test]
fn the_newer_durable_reader_of_a_name_wins() {
    let home = Home::new();
    let _running = node(&home, &[]);
    let mut older = home.hubless(&Place::Here, &["sub", "--durable", "x"]);
    let mut older = older.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut notes = BufReader::new(older.stderr.take().unwrap()).lines();
    assert!(notes.any(|note| note.unwrap().contains("listening in lobby")));
    let mut newer = Reader::new(&home, "x");
    eventually(DEADLINE, "the older ends", || older.try_wait().unwrap().is_some());
    assert_eq!(older.wait().unwrap().code(), Some(1));
    assert!(notes.any(|note| note.unwrap() == "error: another reader has taken over as `x`"));
    say(&home, 1);
    assert_eq!(newer.next(), "n0");
}

#[test]
fn a_durable_reader_without_a_running_node_keeps_its_log() {
    let other = node(&Home::new(), &[]);
    let home = Home::new();
    let seed = other.listen();
    let sub = |options: &[&str]| {
        let common = ["sub", "--json", "--durable", "x", "--name", "ada", "--connect", &seed];
        run(&home, &[&common[..], &QUIET, options].concat())
    };
    assert_refused(&sub(&["--wait", "2s"]), 3, &["nothing was said in lobby"]);
    say(other.home(), 5);
    assert_eq!(texts(&sub(&["-n", "2", "--wait", "20s"])), ["n0", "n1"]);
    assert_eq!(texts(&sub(&["-n", "3", "--wait", "20s"])), ["n2", "n3", "n4"]);
    assert_eq!(log(&home), log(other.home()));
    // Somebody who has the folder is worked through, not beside.
    let running = node(&home, &[]);
    assert_refused(&sub(&["--alone"]), 2, &["in use by process", &running.pid().to_string()]);
}

#[test]
fn a_log_goes_out_and_in_whole() {
    let home = Home::new();
    let running = node(&home, &[]);
    say(&home, 2_000);
    let here = log(&home);
    let file = |name: &str| home.path().join(name);
    let output = run(&home, &["history", "export", "usb.log"]);
    assert_eq!(printed(&output), "");
    assert!(file("usb.log").exists() && !file("usb.log.part").exists());
    assert_refused(&run(&home, &["history", "export", "usb.log"]), 2, &["usb.log is there already"]);
    printed(&run(&home, &["history", "export", "usb.log", "--force"]));
    assert_refused(&run(&home, &["history", "export", "none/usb.log"]), 1, &["cannot write none/usb.log"]);
    running.stop();
    let piped = run(&home, &["history", "export", "-"]);
    assert_eq!(piped.status.code(), Some(0), "{}", said(&piped));
    assert!(piped.stdout == fs::read(file("usb.log")).unwrap(), "the folder gives the same as the node");

    // Into a folder that no node ever had, from a pipe; then again.
    let fresh = Home::new();
    let import = |home: &Home, options: &[&str], bytes: &[u8]| {
        run_reading(home, &[&["history", "import", "-", "--name", "ada"], options].concat(), bytes)
    };
    let output = import(&fresh, &["--json"], &piped.stdout);
    assert_eq!(objects(&output), [serde_json::json!({ "new": 2_000, "known": 0, "refused": 0 })]);
    let output = import(&fresh, &[], &piped.stdout);
    assert!(said(&output).contains("0 messages are new, 2000 were known"), "{}", said(&output));
    assert_eq!(log(&fresh), here);
    // A running node shows at once what it is given.
    let third = Home::new();
    let _node = node(&third, &[]);
    printed(&import(&third, &[], &piped.stdout));
    assert_eq!(log(&third), here);
}

#[test]
fn a_damaged_file_is_imported_as_far_as_it_is_whole() {
    let home = Home::new();
    let _running = node(&home, &[]);
    // Batches of their own, so that the file has many records.
    for _ in 0..30 {
        say(&home, 10);
    }
    let here = log(&home);
    let whole = run(&home, &["history", "export", "-"]).stdout;
    let import = |bytes: &[u8]| {
        let fresh = Home::new();
        let output = run_reading(&fresh, &["history", "import", "-", "--name", "ada"], bytes);
        (output, log(&fresh))
    };
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    let damaged = [&flipped, &whole[..whole.len() / 2], &whole[..whole.len() - 1], &[&whole[..], b"x"].concat()];
    let kept = damaged.map(|damaged| {
        let (output, there) = import(damaged);
        assert_refused(&output, 1, &["stdin: the file is ", "byte "]);
        assert!(there.iter().all(|(id, message)| here.get(id) == Some(message)));
        there.len()
    });
    // What is before the damage is kept, whatever it is; behind the last batch nothing is missing.
    assert_eq!(kept[0], kept[1]);
    assert!(0 < kept[0] && kept[0] < here.len());
    assert_eq!(kept[2..], [here.len(); 2]);
    let (output, there) = import(b"{\"some\":\"other file\"}");
    assert_refused(&output, 1, &["no exported history"]);
    assert_eq!(there.len(), 0);
}

#[test]
fn two_meshes_that_never_met_merge_by_stick_and_stay_once_when_they_meet() {
    let (ada, bob) = (node(&Home::new(), &[]), node(&Home::new(), &[]));
    say(ada.home(), 500);
    run_reading(bob.home(), &["pub", "--wait", "0", "-"], "only bob\n".repeat(300));
    let carry = |from: &Home, to: &Home| {
        let stick = to.path().join("stick.log");
        printed(&run(from, &["history", "export", stick.to_str().unwrap(), "--force"]));
        objects(&run(to, &["history", "import", "stick.log", "--json", "--name", "ada"]))[0].clone()
    };
    assert_eq!(carry(ada.home(), bob.home()), serde_json::json!({ "new": 500, "known": 0, "refused": 0 }));
    // One of them runs, of the other only the folder is there.
    let home = bob.home().clone();
    bob.stop();
    let bob = home;
    assert_eq!(carry(&bob, ada.home()), serde_json::json!({ "new": 300, "known": 500, "refused": 0 }));
    let merged = log(ada.home());
    assert_eq!(merged.len(), 800);
    assert_eq!(log(&bob), merged);
    // They meet.
    let bob = node(&bob, &["--connect", &ada.listen()]);
    eventually(DEADLINE, "both are up", || ada.sees_up(&[&bob]) && bob.sees_up(&[&ada]));
    printed(&run(bob.home(), &["pub", "after"]));
    printed(&run(ada.home(), &["pub", "after, too"]));
    let heard = log(ada.home());
    assert_eq!(heard.len(), 802);
    assert!(merged.iter().all(|(id, message)| heard.get(id) == Some(message)));
    assert_eq!(log(bob.home()), heard);
    // And once more the other way round: nothing of it is new to anybody.
    assert_eq!(carry(bob.home(), ada.home()), serde_json::json!({ "new": 0, "known": 802, "refused": 0 }));
}
