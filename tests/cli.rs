//! The binary as people and scripts meet it: exit codes, messages, configuration, files, and nodes that work together.
//!
//! Every test has a home of its own, and every node listens on loopback only.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail tests")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

const HUBLESS: &str = env!("CARGO_BIN_EXE_hubless");
/// Nothing here takes that long on a machine that works.
const DEADLINE: Duration = Duration::from_secs(20);
/// Options of a node that speaks on loopback only and with nobody it is not told of.
const QUIET: [&str; 3] = ["--listen", "127.0.0.1:0", "--no-mdns"];

/// A user's home, empty at first.
struct Home {
    folder: TempDir,
}

/// A node that runs; killed when dropped.
struct Node {
    child: Child,
    ready: Value,
    stderr: PathBuf,
}

impl Home {
    fn new() -> Home {
        Home { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The binary in this home, with nothing else in its environment.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(HUBLESS);
        command.args(arguments).current_dir(self.folder.path()).env_clear().stdin(Stdio::null());
        command.env("HOME", self.folder.path()).env("XDG_DATA_HOME", self.path("data"));
        command.env("XDG_CONFIG_HOME", self.path("config")).env("TMPDIR", self.folder.path());
        command
    }

    /// Runs the binary to its end.
    fn hubless(&self, arguments: &[&str]) -> Output {
        assert_cmd::Command::from_std(self.command(arguments)).timeout(DEADLINE).output().unwrap()
    }

    fn hubless_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        let mut command = self.command(arguments);
        command.envs(environment.iter().copied());
        assert_cmd::Command::from_std(command).timeout(DEADLINE).output().unwrap()
    }

    fn hubless_reading(&self, arguments: &[&str], stdin: impl Into<Vec<u8>>) -> Output {
        assert_cmd::Command::from_std(self.command(arguments)).write_stdin(stdin).timeout(DEADLINE).output().unwrap()
    }

    /// Starts a node and waits until it serves.
    fn node(&self, arguments: &[&str]) -> Node {
        self.start(self.command(arguments))
    }

    fn start(&self, mut command: Command) -> Node {
        let number = fs::read_dir(self.folder.path()).unwrap().count();
        let ready = self.path(&format!("ready-{number}"));
        let stderr = self.path(&format!("stderr-{number}"));
        command.arg("--ready-file").arg(&ready).stderr(fs::File::create(&stderr).unwrap());
        let mut child = command.spawn().unwrap();
        let serves = eventually(|| {
            assert!(child.try_wait().unwrap().is_none(), "{}", read(&stderr));
            ready.exists()
        });
        assert!(serves, "{}", read(&stderr));
        let ready = serde_json::from_str(&read(&ready)).unwrap();
        Node { child, ready, stderr }
    }

    /// Two nodes of this home that are up at each other.
    fn pair(&self) -> (Node, Node) {
        let first = self.node(&[&QUIET[..], &["--http", "127.0.0.1:0"]].concat());
        let seed = first.text("listen");
        let second = self.node(&[&QUIET[..], &["--http", "127.0.0.1:0", "--connect", &seed]].concat());
        for node in [&first, &second] {
            assert!(eventually(|| node.said().contains(" up at ")), "{}", node.said());
        }
        (first, second)
    }
}

impl Node {
    fn text(&self, field: &str) -> String {
        self.ready[field].as_str().unwrap_or_default().to_string()
    }

    /// What it has written to stderr.
    fn said(&self) -> String {
        read(&self.stderr)
    }

    fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Its exit code, and how long it took to get there.
    fn end(&mut self) -> (Option<i32>, Duration) {
        let asked = Instant::now();
        assert!(eventually(|| self.child.try_wait().unwrap().is_some()), "it goes on: {}", self.said());
        (self.child.wait().unwrap().code(), asked.elapsed())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap().success());
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

/// Whether `condition` holds before the deadline.
fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while !condition() {
        if started.elapsed() > DEADLINE {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    true
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// It ended with `code`, wrote no data, and said `error: …` with this in it and nothing but a hint after it.
#[track_caller]
fn assert_refused(output: &Output, code: i32, part: &str) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(stdout(output), "");
    let lines = Vec::from_iter(said.lines().skip_while(|line| line.starts_with("note: ")));
    assert!(lines[0].starts_with("error: ") && lines[0].contains(part), "{said}");
    assert!(lines[1..].iter().all(|line| line.starts_with("hint: ")) && lines.len() <= 2, "{said}");
}

#[test]
fn help_and_version_are_data() {
    let home = Home::new();
    for arguments in [&["-h"][..], &["--help"], &["run", "-h"], &["pub", "--help"], &["help", "sub"], &["--version"]] {
        let output = home.hubless(arguments);
        assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()), "{arguments:?}");
        assert!(stdout(&output).contains("hubless"), "{arguments:?}");
    }
    let help = stdout(&home.hubless(&["--help"]));
    assert!(help.contains("HUBLESS_HTTP") && help.contains("Exit codes"), "{help}");
    for there in ["--no-history", "--fsync", "--retain-days", "--retain-bytes", "history", "--redis", "--amqp", "check"]
    {
        assert!(help.contains(there), "{there}: {help}");
    }
    for absent in ["doctor", "bench"] {
        assert!(!help.contains(absent), "{absent}: {help}");
    }
}

#[test]
fn bad_usage_exits_with_2_and_says_why() {
    let home = Home::new();
    let too_long = "x".repeat(65);
    for (arguments, part) in [
        (&["--mehs", "x"][..], "--mehs"),
        (&["frobnicate"], "frobnicate"),
        (&["--http", "here"], "ADDR:PORT"),
        (&["--connect", "http://x"], "HOST[:PORT]"),
        (&["--mesh", "A B"], "mesh name"),
        (&["--name", ""], "a name is"),
        (&["--log-format", "xml"], "json"),
        (&["-v", "-q"], "--quiet"),
        (&["--http", "127.0.0.1:0", "--no-http"], "--no-http"),
        (&["pub"], "TEXT"),
        (&["pub", "a", "b", "c"], "'c'"),
        (&["pub", ""], "the text is empty"),
        (&["pub", "news", ""], "the text is empty"),
        (&["pub", "No Room", "hi"], "1 to 64 of a-z"),
        (&["pub", &too_long, "hi"], "1 to 64 of a-z"),
        (&["pub", "--wait", "soon", "hi"], "duration"),
        (&["sub", ".x"], "1 to 64 of a-z"),
        (&["sub", "-n", "0"], "0"),
        (&["sub", "--since", "yesterday"], "neither a duration"),
        (&["sub", "--since", "1m", "--after", "x"], "--after"),
        (&["--mesh", "x", "pub", "hi"], "pub"),
        (&["--fsync", "never"], "always, group or os"),
        (&["--retain-days", "0"], "0"),
        (&["--retain-bytes", "much"], "500M"),
        (&["sub", "--since", "1m", "--durable", "x"], "--durable"),
        (&["history", "--limit", "10001"], "10001"),
        (&["history", "--limit", "1", "--all"], "--all"),
        (&["history", "--until", "later"], "neither a duration"),
        (&["history", "--json", "export", "x"], "export"),
        (&["history", "export"], "FILE"),
        (&["history", "import", "none"], "cannot read none: No such file"),
        (&["history"], "no node of mesh default has kept a history here"),
        (&["history", "export", "log"], "no node of mesh default has kept a history here"),
        (&["history", "--name", "ada"], "there is no history in"),
        (&["history", "--data-dir", "nowhere"], "there is no history in nowhere"),
    ] {
        assert_refused(&home.hubless(arguments), 2, part);
    }
    assert!(!home.path("data").exists(), "nothing was started");
}

#[test]
fn an_address_that_is_not_ours_is_refused_with_a_hint() {
    let output = Home::new().hubless(&["--listen", "192.0.2.1:0", "--no-mdns", "--no-http"]);
    assert_refused(&output, 2, "cannot listen on 192.0.2.1:0");
    assert!(stderr(&output).contains("hint: this machine does not have this address"));
    let output = Home::new().hubless(&[&QUIET[..], &["--http", "192.0.2.1:0"]].concat());
    assert_refused(&output, 2, "cannot serve the page on 192.0.2.1:0");
}

#[test]
fn a_port_given_by_hand_that_is_taken_is_an_error() {
    let home = Home::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = home.hubless(&["--listen", &address, "--no-mdns", "--no-http"]);
    assert_refused(&output, 2, &format!("cannot listen on {address}"));
    assert!(stderr(&output).contains("another program has this port"));
    let output = home.hubless(&[&QUIET[..], &["--http", &address]].concat());
    assert_refused(&output, 2, &format!("cannot serve the page on {address}"));
    // The same from the environment is by hand, too.
    let output = home.hubless_with(&QUIET, &[("HUBLESS_HTTP", &address)]);
    assert_refused(&output, 2, &format!("cannot serve the page on {address}"));
}

#[test]
fn a_configuration_that_cannot_be_read_is_an_error_that_names_it() {
    let home = Home::new();
    assert_refused(&home.hubless(&["--config", "none.toml"]), 2, "none.toml");
    assert_refused(&home.hubless_with(&[], &[("HUBLESS_CONFIG", "none.toml")]), 2, "none.toml");
    fs::create_dir(home.path("folder.toml")).unwrap();
    assert_refused(&home.hubless(&["--config", "folder.toml"]), 2, "folder.toml");
    for (text, part) in [
        ("mesh = ", "line 1"),
        ("mesh = \"a\"\nmehs = \"b\"", "`mehs`"),
        ("mesh = \"A B\"\nhttp = \"nowhere\"", "ADDR:PORT"),
        ("no-mdns = \"perhaps\"", "a switch is"),
        ("[mesh]\nname = \"a\"", "`mesh`"),
        ("config = \"other.toml\"", "`config`"),
    ] {
        fs::write(home.path("hubless.toml"), text).unwrap();
        let output = home.hubless(&["run"]);
        assert_refused(&output, 2, "hubless.toml: ");
        assert!(stderr(&output).contains(part), "{text}: {}", stderr(&output));
    }
    fs::write(home.path("hubless.toml"), "no_mdns = true").unwrap();
    assert!(stderr(&home.hubless(&["peers"])).contains("hint: write `no-mdns`"));
}

#[test]
fn a_bad_value_in_the_environment_is_named() {
    let output = Home::new().hubless_with(&[], &[("HUBLESS_HTTP", "nowhere")]);
    assert_refused(&output, 2, "HUBLESS_HTTP=nowhere");
    let output = Home::new().hubless_with(&[], &[("HUBLESS_NO_MDNS", "perhaps")]);
    assert_refused(&output, 2, "a switch is 1, true, 0 or false");
}

#[test]
fn a_variable_that_is_set_to_nothing_is_not_set() {
    let home = Home::new();
    let mut command = home.command(&[&QUIET[..], &["--no-http"]].concat());
    command.envs(["HUBLESS_NAME", "HUBLESS_HTTP", "HUBLESS_NO_MDNS", "HUBLESS_CONNECT"].map(|name| (name, "")));
    let node = home.start(command);
    assert!(!node.text("name").is_empty());
}

#[test]
fn an_option_beats_the_environment_and_that_beats_files() {
    let home = Home::new();
    fs::create_dir_all(home.path("config/hubless")).unwrap();
    fs::write(home.path("config/hubless/hubless.toml"), "name = \"user\"\nmesh = \"user\"\nno-http = true\n").unwrap();
    let run = |arguments: &[&str], environment: &[(&str, &str)]| {
        let mut command = home.command(&[&QUIET[..], arguments].concat());
        command.envs(environment.iter().copied());
        let node = home.start(command);
        (node.text("name"), node.text("mesh"), node.ready["http"].clone())
    };
    let (name, mesh, http) = run(&[], &[]);
    assert_eq!((name.as_str(), mesh.as_str(), http), ("user", "user", Value::Null));

    fs::write(home.path("hubless.toml"), "name = \"here\"\nmesh = \"here\"\n").unwrap();
    let (name, mesh, _) = run(&[], &[("HUBLESS_NAME", "environment")]);
    assert_eq!((name.as_str(), mesh.as_str()), ("environment", "here"));

    fs::write(home.path("given.toml"), "name = \"given\"\n").unwrap();
    let (name, mesh, _) = run(&["--config", "given.toml"], &[]);
    assert_eq!((name.as_str(), mesh.as_str()), ("given", "user"));

    let environment = [("HUBLESS_NAME", "environment"), ("HUBLESS_MESH", "environment"), ("HUBLESS_NO_HTTP", "0")];
    let (name, mesh, http) = run(&["--name", "option", "--http", "127.0.0.1:0"], &environment);
    assert_eq!((name.as_str(), mesh.as_str()), ("option", "environment"));
    assert!(http.is_string());
    // `--no-http` in a file is weaker than `--http` on the line.
    let (_, _, http) = run(&["--http", "127.0.0.1:0"], &[]);
    assert!(http.is_string());
}

#[test]
fn the_ready_file_says_where_the_node_is() {
    let home = Home::new();
    let node = home.node(&[&QUIET[..], &["--http", "127.0.0.1:0", "--name", "ada", "--mesh", "lab"]].concat());
    let fields = Vec::from_iter(node.ready.as_object().unwrap().keys().map(String::as_str));
    assert_eq!(fields, ["epoch", "http", "listen", "mesh", "name", "node", "pid", "plain_in", "plain_pub"]);
    assert_eq!((node.text("name").as_str(), node.text("mesh").as_str()), ("ada", "lab"));
    assert_eq!((node.text("node").len(), node.text("epoch").len()), (52, 16));
    assert_eq!(node.ready["pid"], node.child.id());
    assert!(node.ready["plain_pub"].is_null() && node.ready["plain_in"].is_null());
    for field in ["listen", "http"] {
        let address: SocketAddr = node.text(field).parse().unwrap();
        assert!(address.port() != 0 && std::net::TcpStream::connect(address).is_ok(), "{field}");
    }
    let welcome = "ada on mesh lab (open: anyone here can read and write)";
    assert!(eventually(|| node.said().contains(welcome)), "{}", node.said());
    assert!(node.said().contains(&format!("http://{}/", node.text("http"))), "{}", node.said());
}

#[test]
fn a_ready_file_that_cannot_be_written_is_refused_before_anything_starts() {
    let home = Home::new();
    fs::create_dir(home.path("folder")).unwrap();
    for path in ["none/ready", "folder"] {
        let output = home.hubless(&[&QUIET[..], &["--no-http", "--ready-file", path]].concat());
        assert_refused(&output, 2, &format!("cannot write the ready file {path}: "));
        assert!(stderr(&output).contains("hint: "));
    }
    assert!(!home.path("data").exists(), "nothing was started");
}

#[test]
fn what_a_node_keeps_is_for_its_owner_only() {
    let home = Home::new();
    let node = home.node(&[&QUIET[..], &["--no-http", "--name", "ada"]].concat());
    let folder = home.path("data/hubless/default/ada");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    assert!(eventually(|| folder.join("control.sock").exists()));
    for file in ["lock", "identity", "control.sock"] {
        assert_eq!(mode(&folder.join(file)), 0o600, "{file}");
    }
    assert_eq!(read(&folder.join("lock")).trim(), node.child.id().to_string());
}

#[test]
fn a_node_keeps_its_identity_and_takes_a_new_epoch() {
    let home = Home::new();
    let arguments = [&QUIET[..], &["--no-http", "--data-dir", "kept"]].concat();
    let (node, epoch) = {
        let mut node = home.node(&arguments);
        node.signal("TERM");
        node.end();
        (node.text("node"), node.text("epoch"))
    };
    let again = home.node(&arguments);
    assert_eq!(again.text("node"), node);
    assert_ne!(again.text("epoch"), epoch);
}

#[test]
fn a_second_node_beside_the_first_takes_the_next_name() {
    let home = Home::new();
    let arguments = [&QUIET[..], &["--no-http"]].concat();
    let nodes = [home.node(&arguments), home.node(&arguments), home.node(&arguments)];
    let name = nodes[0].text("name");
    assert_eq!(nodes[1].text("name"), format!("{name}-2"));
    assert_eq!(nodes[2].text("name"), format!("{name}-3"));
    assert!(nodes[1].said().contains("is running here already"), "{}", nodes[1].said());

    let output = home.hubless(&[&arguments[..], &["--name", &name]].concat());
    assert_refused(&output, 2, &format!("in use by process {}", nodes[0].child.id()));
}

#[test]
fn the_page_takes_the_next_free_port() {
    let home = Home::new();
    let (first, second) = (home.node(&QUIET), home.node(&QUIET));
    let address = |node: &Node| node.text("http").parse::<SocketAddr>().unwrap();
    assert_ne!(address(&first).port(), address(&second).port());
    assert!(address(&first).ip().is_loopback() && address(&second).ip().is_loopback());
    assert!(second.said().contains("port 8080 is taken"), "{}", second.said());
}

#[test]
fn a_node_whose_folder_has_a_long_path_is_found_too() {
    let home = Home::new();
    let folder = home.path(&"deep".repeat(20)).join("data");
    let folder = folder.to_str().unwrap();
    let mut node = home.node(&[&QUIET[..], &["--no-http", "--data-dir", folder]].concat());
    let pointer = Path::new(folder).join("control.path");
    assert!(eventually(|| pointer.exists()));
    let socket = PathBuf::from(read(&pointer));
    assert!(socket.as_os_str().len() <= 100 && socket.exists());
    let output = home.hubless(&["peers", "--json", "--data-dir", folder]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "[]\n"), "{}", stderr(&output));
    node.signal("TERM");
    node.end();
    assert!(!socket.exists() && !pointer.exists() && !socket.parent().unwrap().exists());
}

#[test]
fn what_a_killed_node_left_behind_hinders_nobody() {
    let home = Home::new();
    let arguments = [&QUIET[..], &["--no-http", "--name", "ada"]].concat();
    drop(home.node(&arguments));
    assert!(home.path("data/hubless/default/ada/control.sock").exists());
    // Nobody listens there, so the command joins by itself.
    let output = home.hubless(&["pub", "--wait", "200ms", "--listen", "127.0.0.1:0", "--no-mdns", "hi"]);
    assert_refused(&output, 3, "no other node was found");
    let _node = home.node(&arguments);
    let output = home.hubless(&["peers", "--json"]);
    assert_eq!(stdout(&output), "[]\n", "{}", stderr(&output));
}

#[test]
fn a_private_folder_of_a_killed_node_is_removed_by_the_next_one() {
    let home = Home::new();
    let folder = format!("{}/node", "x".repeat(100));
    let killed = home.node(&[&QUIET[..], &["--no-http", "--data-dir", &folder]].concat());
    let pointer = home.path(&folder).join("control.path");
    assert!(eventually(|| pointer.exists()));
    let private = PathBuf::from(read(&pointer)).parent().unwrap().to_path_buf();
    let lock = fs::File::open(private.join("lock")).unwrap();
    assert!(lock.try_lock().is_err(), "it is in use");
    drop((killed, lock));
    // What is young may be about to be locked.
    let old = std::time::SystemTime::now() - Duration::from_secs(3_600);
    fs::File::open(&private).unwrap().set_modified(old).unwrap();
    let _next = home.node(&[&QUIET[..], &["--no-http"]].concat());
    assert!(!private.exists());
}

#[test]
fn sigterm_ends_a_node_in_order_and_in_time() {
    let home = Home::new();
    let (mut first, second) = home.pair();
    let http: SocketAddr = first.text("http").parse().unwrap();
    let mut browser = std::net::TcpStream::connect(http).unwrap();
    let upgrade = format!(
        "GET / HTTP/1.1\r\nHost: {http}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    browser.write_all(upgrade.as_bytes()).unwrap();
    browser.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut browser = BufReader::new(browser);
    let mut line = String::new();
    browser.read_line(&mut line).unwrap();
    assert!(line.contains("101"), "{line}");
    first.signal("TERM");
    // It said goodbye at once, while it waits for the browser, which answers nothing: nobody has to miss it first.
    assert!(eventually(|| second.said().contains(" down")), "{}", second.said());
    assert!(first.child.try_wait().unwrap().is_none(), "peers were told last");
    assert!(!second.said().contains("silent"), "{}", second.said());
    let (code, took) = first.end();
    assert_eq!(code, Some(0), "{}", first.said());
    assert!(took < Duration::from_secs(5), "{took:?}");
    // A close frame with code 1001 was the last word.
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(&mut browser, &mut rest);
    assert!(rest.windows(4).any(|bytes| bytes[0] == 0x88 && bytes[2..] == 1001u16.to_be_bytes()), "{rest:?}");
}

#[test]
fn sigint_ends_a_node_too() {
    let home = Home::new();
    let mut node = home.node(&[&QUIET[..], &["--no-http"]].concat());
    node.signal("INT");
    assert_eq!(node.end().0, Some(0), "{}", node.said());
}

#[test]
fn pub_beside_a_running_node_works_through_it() {
    let home = Home::new();
    let (first, _second) = home.pair();
    let output = home.hubless(&["pub", "hi"]);
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), String::new()), "{}", stderr(&output));
    let output = home.hubless(&["pub", "--json", "--name", "ada", "news", "hello world"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let said: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(
        said["id"].as_str().unwrap().starts_with(&first.text("node")),
        "the host's own node is asked first: {said}"
    );
    let fields = Vec::from_iter(said.as_object().unwrap().keys().map(String::as_str));
    assert_eq!(fields, ["id", "state", "stored_by"]);
    assert_eq!((&said["state"], &said["stored_by"]), (&"replicated".into(), &1.into()));

    let output = home.hubless(&["sub", "--json", "-n", "1", "--since", "10m", "--wait", "10s", "news"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let heard: Value = serde_json::from_str(&stdout(&output)).unwrap();
    for (field, value) in [("id", &said["id"]), ("text", &"hello world".into()), ("name", &"ada".into())] {
        assert_eq!(&heard[field], value, "{heard}");
    }
}

#[test]
fn each_line_of_stdin_is_a_message() {
    let home = Home::new();
    let _pair = home.pair();
    let output = home.hubless_reading(&["pub", "--json", "news", "-"], "one\n\ntwo\r\nthree");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().count(), 3);
    let output = home.hubless(&["sub", "--since", "10m", "-n", "3", "--wait", "10s", "news"]);
    let texts = Vec::from_iter(stdout(&output).lines().map(|line| line.split(": ").nth(1).unwrap().to_string()));
    assert_eq!(texts, ["one", "two", "three"], "{}", stderr(&output));
}

#[test]
fn a_text_that_is_too_long_is_refused() {
    let home = Home::new();
    let _pair = home.pair();
    let longest = "x".repeat(256 * 1024);
    let output = home.hubless_reading(&["pub", "-"], longest.clone());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let output = home.hubless_reading(&["pub", "-"], format!("fits\n{longest}x\n"));
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("error: line 2 is too long: a message has at most 262144 bytes"));
    let output = home.hubless_reading(&["pub", "-"], [0xff, 0xfe]);
    assert_refused(&output, 2, "line 1 is not text in UTF-8");
}

#[test]
fn pub_that_nobody_takes_exits_with_3() {
    let home = Home::new();
    let output = home.hubless(&[&["pub", "--alone", "--wait", "300ms", "hi"], &QUIET[..]].concat());
    assert_refused(&output, 3, "no other node was found within 300ms: nothing was published");
    let output = home.hubless(&[&["pub", "--alone", "--wait", "0", "hi"], &QUIET[..]].concat());
    assert_refused(&output, 3, "within 0s: nothing was published");
    let _node = home.node(&[&QUIET[..], &["--no-http"]].concat());
    let output = home.hubless(&["pub", "--wait", "300ms", "hi"]);
    assert_refused(
        &output,
        3,
        "no other node is known to have it on disk within 300ms; it stays in this machine's log",
    );
    let output = home.hubless_reading(&["pub", "--wait", "300ms", "-"], "one\ntwo\n");
    assert_refused(&output, 3, "have 2 of 2 messages on disk within 300ms; they stay in this machine's log");
}

#[test]
fn a_command_without_a_running_node_joins_for_the_moment() {
    let (home, elsewhere) = (Home::new(), Home::new());
    let node = home.node(&[&QUIET[..], &["--no-http"]].concat());
    let seed = ["--connect", &node.text("listen")];
    let join = |arguments: &[&str]| elsewhere.hubless(&[arguments, &QUIET[..], &seed[..]].concat());
    let output = join(&["pub", "--name", "guest", "from afar"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let output = join(&["sub", "-n", "1", "--since", "10m", "--wait", "10s"]);
    assert!(stdout(&output).ends_with("] guest: from afar\n"), "{}{}", stdout(&output), stderr(&output));
    let output = join(&["peers", "--json"]);
    let peers: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(peers.as_array().unwrap().iter().any(|peer| peer["node"] == node.text("node")), "{peers}");
    assert!(!elsewhere.path("data").exists(), "it left something behind");
    assert_eq!(fs::read_dir(elsewhere.folder.path()).unwrap().count(), 0, "it left something behind");
}

#[test]
fn sub_prints_what_is_said_while_it_listens() {
    let home = Home::new();
    let _pair = home.pair();
    let mut sub =
        home.command(&["sub", "-n", "2", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut notes = BufReader::new(sub.stderr.take().unwrap());
    let mut note = String::new();
    notes.read_line(&mut note).unwrap();
    assert!(note.contains("listening in lobby"), "{note}");
    for (room, text) in [("lobby", "one"), ("elsewhere", "not this"), ("lobby", "two")] {
        let output = home.hubless(&["pub", room, text]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
    assert!(eventually(|| sub.try_wait().unwrap().is_some()), "it still waits");
    let output = sub.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let texts =
        stdout(&output).lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["text"].clone()).collect();
    assert_eq!(Value::Array(texts), serde_json::json!(["one", "two"]));
}

#[test]
fn sub_that_hears_nothing_in_time_exits_with_3() {
    let home = Home::new();
    let _node = home.node(&[&QUIET[..], &["--no-http"]].concat());
    assert_refused(&home.hubless(&["sub", "--wait", "200ms"]), 3, "nothing was said in lobby within 200ms");
    assert_refused(&home.hubless(&["sub", "--after", "!!"]), 2, "cursor");
}

#[test]
fn sub_ends_well_when_interrupted_and_says_so_when_its_node_goes() {
    let home = Home::new();
    let mut node = home.node(&[&QUIET[..], &["--no-http"]].concat());
    let listen = || {
        let mut sub = home.command(&["sub"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut notes = BufReader::new(sub.stderr.take().unwrap());
        let mut note = String::new();
        notes.read_line(&mut note).unwrap();
        assert!(note.contains("listening in lobby"), "{note}");
        (sub, notes)
    };
    let (mut interrupted, _notes) = listen();
    signal(&interrupted, "INT");
    assert_eq!(interrupted.wait().unwrap().code(), Some(0));
    let (mut left, mut notes) = listen();
    node.signal("TERM");
    assert_eq!(node.end().0, Some(0));
    assert_eq!(left.wait().unwrap().code(), Some(1));
    let mut error = String::new();
    notes.read_line(&mut error).unwrap();
    assert_eq!(error, "error: the node has stopped\n");
}

#[test]
fn peers_shows_who_is_there() {
    let home = Home::new();
    let (first, second) = home.pair();
    let output = home.hubless(&["peers", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let peers: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(peers.as_array().unwrap().len(), 1, "{peers}");
    assert_eq!((&peers[0]["node"], &peers[0]["state"]), (&second.text("node").into(), &"up".into()));
    let table = stdout(&home.hubless(&["peers"]));
    let lines = Vec::from_iter(table.lines());
    assert!(lines[0].starts_with("NAME") && lines[1].starts_with(&second.text("name")), "{table}");
    let output =
        home.hubless(&["peers", "--json", "--data-dir", &format!("data/hubless/default/{}", second.text("name"))]);
    let peers: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(peers[0]["node"], first.text("node"), "each folder leads to its own node");
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let home = Home::new();
    let mut peers = home
        .command(&["peers", "--alone", "--listen", "127.0.0.1:0", "--no-mdns"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(peers.stdout.take());
    assert_eq!(peers.wait().unwrap().code(), Some(0));
}

#[test]
fn as_json_every_line_of_a_node_is_an_event() {
    let home = Home::new();
    let mut node = home.node(&[&QUIET[..], &["--no-http", "--log-format", "json"]].concat());
    assert!(eventually(|| node.said().contains("serving")));
    node.signal("TERM");
    node.end();
    for line in node.said().lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert!(event["level"].is_string() && event["message"].is_string(), "{line}");
    }
}

/// What a process holds, in KiB.
fn rss_kib(pid: u32) -> u64 {
    let status = read(Path::new(&format!("/proc/{pid}/status")));
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    rss.trim().strip_suffix("kB").unwrap().trim().parse().unwrap()
}

#[test]
fn many_sockets_cost_little_memory_before_and_after_they_heard_much() {
    const SOCKETS: usize = 500;
    let home = Home::new();
    let node = home.node(&[&QUIET[..], &["--http", "127.0.0.1:0"]].concat());
    let (address, pid) = (node.text("http"), node.child.id());
    let open = |number: usize| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let json = number.is_multiple_of(2);
        let protocol = if json { "Sec-WebSocket-Protocol: hubless.v1\r\n" } else { "" };
        let head = format!(
            "GET / HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{protocol}\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        if json {
            let hello = br#"{"type":"hello"}"#;
            let mut frame = vec![0x81, 0x80 | hello.len() as u8, 0, 0, 0, 0];
            frame.extend_from_slice(hello);
            stream.write_all(&frame).unwrap();
        }
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 101");
        if json {
            assert!(take_until(&mut stream, b"\"type\":\"welcome\"") > 0);
        }
        stream
    };
    // The first ones bring what all share.
    let mut sockets: Vec<TcpStream> = (0..100).map(open).collect();
    let before = rss_kib(pid);
    sockets.extend((0..SOCKETS).map(open));
    let each = |what: &str| {
        let kib = rss_kib(pid).saturating_sub(before) as usize / SOCKETS;
        assert!(kib <= 24, "{what}: {kib} KiB each");
    };
    each("idle");
    let mut speaker = sockets.pop().unwrap();
    let readers: Vec<_> = sockets
        .into_iter()
        .map(|mut stream| {
            let reader = move || {
                take_until(&mut stream, b"the last one");
                stream
            };
            std::thread::Builder::new().stack_size(128 * 1024).spawn(reader).unwrap()
        })
        .collect();
    for number in 1..=1_000 {
        let text = if number < 1_000 { format!("text {number}") } else { "the last one".into() };
        let frame = [&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0], text.as_bytes()].concat();
        speaker.write_all(&frame).unwrap();
    }
    let sockets: Vec<TcpStream> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
    each("after 1,000 messages");
    drop((sockets, speaker));
}

/// Reads on until this has come; answers how much that was.
fn take_until(stream: &mut TcpStream, end: &[u8]) -> usize {
    let (mut held, mut buffer, mut all) = (Vec::new(), [0; 16 * 1024], 0);
    while !held.windows(end.len()).any(|bytes: &[u8]| bytes == end) {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "hung up on after {all} bytes");
        all += read;
        held.drain(..held.len().saturating_sub(end.len()));
        held.extend_from_slice(&buffer[..read]);
    }
    all
}
