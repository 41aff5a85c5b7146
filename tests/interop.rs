//! The examples in other languages: each says a text that the mesh has, and hears what the mesh says.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::brokers::Redis;
use common::mesh::Member;
use common::rabbit::Rabbit;
use common::{eventually, eventually_some, python};
use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

/// A program that ends with this value.
struct Program {
    child: Child,
    folder: TempDir,
}

impl Program {
    fn start(mut command: Command) -> Program {
        let folder = TempDir::with_prefix("hlex").unwrap();
        let output = File::create(folder.path().join("output")).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        Program { child: command.spawn().expect("it starts"), folder }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("output")).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}", self.said());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn clients_in_other_languages_chat_with_the_mesh() {
    let (redis, rabbit) = (Redis::start(), Rabbit::start());
    let options = ["--redis", &redis.url(), "--amqp", &rabbit.url()];
    let mut node =
        Member::new("node").args(&options).args(&["--plain-pub", "127.0.0.1:0", "--plain-in", "127.0.0.1:0"]);
    node.spawn(&[]);
    eventually(PATIENCE, "both bridges are active", || {
        let bridges = node.get("/api/v1/bridges");
        bridges.as_array().unwrap().iter().filter(|bridge| bridge["state"] == "active").count() == 2
    });
    let plain = |key: &str| format!("tcp://{}", node.ready()[key].as_str().unwrap());
    let folder = examples().join("interop");
    for kind in ["py", "mjs"] {
        for (name, args, topic) in [
            ("redis_chat", vec![redis.url()], "chat_messages"),
            ("amqp_chat", vec![rabbit.url()], "chat"),
            ("zmq_chat", vec![plain("plain_pub"), plain("plain_in")], "chat"),
        ] {
            let file = format!("{name}.{kind}");
            let lines = std::fs::read_to_string(folder.join(&file)).unwrap().lines().count();
            assert!(lines < 30, "{file} has {lines} lines");
            let text = format!("hello big wörld from {file}");
            let mut program = if kind == "py" { python() } else { Command::new("node") };
            program.arg(folder.join(&file)).args(args).arg(&text);
            let program = Program::start(program);
            let times = || texts(&node).iter().filter(|said| **said == text).count();
            eventually(PATIENCE, &text, || times() == 1);
            let answer = format!("an answer to {file}");
            node.say(&answer);
            let line = format!("{topic}: {answer}");
            eventually(PATIENCE, &line, || program.said().lines().any(|said| said == line));
            assert_eq!(program.said().lines().filter(|said| *said == line).count(), 1, "{}", program.said());
            assert_eq!(times(), 1);
        }
    }
}

#[test]
fn two_sites_are_joined_by_the_script() {
    let rabbit = Rabbit::start();
    let mut script = Command::new(examples().join("two_sites/start.sh"));
    let binaries = Path::new(env!("CARGO_BIN_EXE_hubless")).parent().unwrap();
    let path = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap());
    let home = TempDir::with_prefix("hlhm").unwrap();
    script.arg(rabbit.url()).env("PATH", path).env("HOME", home.path()).env("TMPDIR", home.path());
    let mut program = Program::start(script);
    eventually(2 * PATIENCE, "all four nodes run", || program.said().contains("Ctrl-C ends"));
    let url = |name: &str| {
        let said = program.said();
        let line = said.lines().find(|line| line.contains(&format!("{name} is at "))).unwrap().to_string();
        line.rsplit_once("at ").unwrap().1.trim_end_matches('/').to_string()
    };
    let curl = |args: &[&str]| -> Value {
        let output = Command::new("curl").arg("-s").args(args).output().expect("curl is there: `make setup`");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    };
    for site in ["north", "south"] {
        let active = || {
            let active =
                |node| curl(&[&format!("{}/api/v1/bridges", url(&format!("{site}-{node}")))])[0]["state"] == "active";
            active(1) || active(2)
        };
        eventually(PATIENCE, "the site has an active bridge", active);
    }
    let said = r#"{"text":"from the north"}"#;
    let json = "content-type: application/json";
    curl(&["-H", json, "-d", said, &format!("{}/api/v1/messages", url("north-2"))]);
    for node in ["south-1", "south-2"] {
        let text = eventually_some(PATIENCE, "the other site sees it", || {
            let page = curl(&[&format!("{}/api/v1/messages", url(node))]);
            page["messages"][0]["text"].as_str().map(String::from)
        });
        assert_eq!(text, "from the north", "{node}");
    }
    let ended = Command::new("sh").args(["-c", &format!("kill -TERM {}", program.child.id())]).status().unwrap();
    assert!(ended.success());
    eventually(PATIENCE, "it ends", || program.child.try_wait().unwrap().is_some());
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

/// The texts of the lobby.
fn texts(node: &Member) -> Vec<String> {
    let page = node.get("/api/v1/messages?room=lobby&limit=1000");
    page["messages"].as_array().unwrap().iter().map(|message| message["text"].as_str().unwrap().to_string()).collect()
}
