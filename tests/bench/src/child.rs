//! The processes of a run: the one that compares, and those that publish and receive.
//!
//! They talk in lines: a child tells (`ready PLACE`, `joined`, `sent N`, `heard …`, `trips …`), the parent orders (`go`,
//! `end`). A child that is dropped is killed.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child as Process, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Whose messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    Hubless,
    Libzmq,
    Zenoh,
    Redis,
    Nats,
}

impl System {
    pub fn name(self) -> &'static str {
        match self {
            System::Hubless => "hubless",
            System::Libzmq => "libzmq",
            System::Zenoh => "zenoh",
            System::Redis => "redis",
            System::Nats => "nats",
        }
    }
}

/// In a child: says a line to the parent.
pub fn tell(line: &str) {
    println!("{line}");
}

/// In a child: waits for this line; a parent that has gone ends it.
pub fn order(expected: &str) {
    let mut line = String::new();
    match std::io::stdin().read_line(&mut line) {
        Ok(bytes) if bytes > 0 && line.trim() == expected => {}
        _ => std::process::exit(1),
    }
}

/// In the parent: a process of this very program.
#[derive(Debug)]
pub struct Child {
    process: Process,
    orders: ChildStdin,
    lines: Receiver<String>,
    what: String,
}

impl Child {
    /// What it keeps for the run is kept in `folder`.
    pub fn start(system: System, role: &str, words: &[&str], folder: &Path) -> std::io::Result<Child> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["child", system.name(), role])
            .env("TMPDIR", folder)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = process.stdin.take().expect("piped");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        let (line_in, lines) = channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| line_in.send(line)));
        Ok(Child { process, orders, lines, what: format!("{} {role}", system.name()) })
    }

    /// Waits for a line that begins with `word` and answers the rest of it.
    pub fn hear(&self, word: &str) -> Result<String, String> {
        let line = self.lines.recv_timeout(Duration::from_secs(60));
        let line =
            line.map_err(|_| format!("{}: has ended, or said nothing for a minute, before `{word}`", self.what))?;
        let rest = line.strip_prefix(word).ok_or_else(|| format!("{}: `{line}` instead of `{word}`", self.what))?;
        Ok(rest.trim().to_string())
    }

    pub fn order(&mut self, word: &str) -> Result<(), String> {
        writeln!(self.orders, "{word}").map_err(|error| format!("{}: {error}", self.what))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
