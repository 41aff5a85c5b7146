//! What integration tests share: waiting for conditions, real nodes as processes, a LAN of network namespaces.
//!
//! Every node gets a home folder of its own, so tests neither meet each other nor the user's nodes. Everything started
//! here ends with the value that stands for it, also when a test fails; then what the node said on stderr is shown.

#![allow(dead_code, unused_imports, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod api;
pub mod brokers;
pub mod dice;
pub mod idle;
mod lan;
pub mod load;
pub mod log;
pub mod mesh;
pub mod rabbit;
pub mod raw;
pub mod shim;
pub mod soak;

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, io};

use serde_json::Value;
use tempfile::TempDir;

pub use api::Ear;
pub use lan::Lan;

/// Waits until `condition` holds and answers how long that took; panics with `what` if it does not within `deadline`.
#[track_caller]
pub fn eventually(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < deadline, "not within {deadline:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    started.elapsed()
}

/// As [`eventually`], for what is there at some time.
#[track_caller]
pub fn eventually_some<T>(deadline: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    eventually(deadline, what, || {
        found = condition();
        found.is_some()
    });
    found.expect("just seen")
}

/// Lets `span` go by, for what is measured over a span.
pub fn elapse(span: Duration) {
    let started = Instant::now();
    eventually(span + Duration::from_secs(5), "time goes by", || started.elapsed() >= span);
}

/// A port of loopback that nobody has at this moment, below those that systems give to whoever calls: else a client that
/// calls again and again where nobody listens may be given this very port, and answers itself.
pub fn free_port() -> u16 {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    let port = || (10_000 + (std::process::id() * 97 + TRIED.fetch_add(1, Ordering::Relaxed)) % 20_000) as u16;
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    std::iter::repeat_with(port).take(20_000).find(is_free).expect("a port is free")
}

/// The Python of the tests' own set-up.
pub fn python() -> Command {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python");
    assert!(python.exists(), "no {}: `make setup` makes it", python.display());
    Command::new(python)
}

/// For tests that measure times: one at a time in this test program.
pub fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a process runs.
#[derive(Clone, Debug)]
pub enum Place {
    /// As the test itself.
    Here,
    /// In this network namespace.
    Namespace(String),
}

impl Place {
    /// A command that runs in this place.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        match self {
            Place::Here => Command::new(program),
            Place::Namespace(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name]).arg(program);
                command
            }
        }
    }
}

/// A user's home folder; the clone is the same folder, removed with the last one.
#[derive(Clone, Debug)]
pub struct Home(Arc<TempDir>);

impl Home {
    /// An empty one.
    pub fn new() -> Home {
        let home = TempDir::with_prefix("hl").expect("a temporary folder");
        let runtime = home.path().join("run");
        fs::create_dir(&runtime).unwrap();
        fs::set_permissions(&runtime, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        Home(Arc::new(home))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// `hubless ARGS` in `place`, as a user with this home and nothing else in the environment.
    pub fn hubless(&self, place: &Place, args: &[&str]) -> Command {
        let mut command = place.command(env!("CARGO_BIN_EXE_hubless"));
        command.args(args).current_dir(self.path()).stdin(Stdio::null()).env_clear();
        for kept in ["PATH", "TMPDIR", "RUST_BACKTRACE", "LLVM_PROFILE_FILE"] {
            command.envs(std::env::var_os(kept).map(|value| (kept, value)));
        }
        command.env("HOME", self.path()).env("XDG_RUNTIME_DIR", self.path().join("run"));
        for (variable, folder) in [
            ("XDG_CONFIG_HOME", "config"),
            ("XDG_DATA_HOME", "data"),
            ("XDG_STATE_HOME", "state"),
            ("XDG_CACHE_HOME", "cache"),
        ] {
            command.env(variable, self.path().join(folder));
        }
        command
    }

    /// The first file called `name` in any folder of this home.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        let mut folders = vec![self.path().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.file_name() == name {
                    return Some(entry.path());
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(entry.path());
                }
            }
        }
        None
    }
}

/// A `hubless` process that serves, with a home of its own. Dropping it kills it.
#[derive(Debug)]
pub struct Hubless {
    child: Child,
    place: Place,
    home: Home,
    ready_file: PathBuf,
    stderr: PathBuf,
    /// Just before the process was made.
    pub started: Instant,
}

impl Hubless {
    /// Starts `hubless run --ready-file … ARGS` in a new home and waits until it serves.
    pub fn start(place: &Place, args: &[&str]) -> Hubless {
        let node = Hubless::spawn(place, &Home::new(), args);
        node.ready();
        node
    }

    /// As [`Hubless::start`], in this home, and without waiting.
    pub fn spawn(place: &Place, home: &Home, args: &[&str]) -> Hubless {
        Hubless::spawn_with(place, home, args, &[])
    }

    /// As [`Hubless::spawn`], with this in its environment.
    pub fn spawn_with(place: &Place, home: &Home, args: &[&str], env: &[(&'static str, OsString)]) -> Hubless {
        Hubless::spawn_command(place, home, "run", args, env)
    }

    /// As [`Hubless::spawn_with`], with another command that writes a ready file.
    pub fn spawn_command(
        place: &Place,
        home: &Home,
        name: &str,
        args: &[&str],
        env: &[(&'static str, OsString)],
    ) -> Hubless {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let ready_file = home.path().join(format!("ready-{number}.json"));
        let stderr = home.path().join(format!("stderr-{number}.log"));
        let mut command = home.hubless(place, &[name, "--ready-file"]);
        command.arg(&ready_file).args(args).envs(env.iter().cloned());
        command.stdout(Stdio::null()).stderr(fs::File::create(&stderr).unwrap());
        let started = Instant::now();
        let child = command.spawn().expect("hubless starts");
        Hubless { child, place: place.clone(), home: home.clone(), ready_file, stderr, started }
    }

    /// What the ready file says, once it is there.
    pub fn ready(&self) -> Value {
        let read = || serde_json::from_slice(&fs::read(&self.ready_file).ok()?).ok();
        eventually_some(Duration::from_secs(20), "the ready file is written", || {
            assert!(self.is_running(), "hubless has ended:\n{}", self.stderr());
            read()
        })
    }

    fn ready_word(&self, key: &str) -> String {
        let ready = self.ready();
        ready[key].as_str().unwrap_or_else(|| panic!("no `{key}` in {ready}")).to_string()
    }

    /// Its NodeId.
    pub fn node(&self) -> String {
        self.ready_word("node")
    }

    /// Where peers reach it, with the real port.
    pub fn listen(&self) -> String {
        self.ready_word("listen")
    }

    /// The address of page and API, with the real port, reachable in its place only.
    pub fn http(&self) -> String {
        self.ready_word("http")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id() // `ip netns exec` becomes what it runs.
    }

    /// Its home folder.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// `hubless ARGS` beside it: same place, same home.
    pub fn command(&self, args: &[&str]) -> Command {
        self.home.hubless(&self.place, args)
    }

    /// What it has said on stderr so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    /// Whether the process is there and no zombie.
    pub fn is_running(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    }

    /// Sends a signal: `KILL`, `TERM`, `STOP`, `CONT`, `INT`.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {}", self.pid())]).status();
        assert!(sent.expect("sh runs").success(), "kill -{signal} {}", self.pid());
    }

    /// Waits until it has ended.
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        eventually_some(deadline, "hubless ends", || self.child.try_wait().unwrap())
    }

    /// Asks it to end and expects that it does so in order.
    pub fn stop(mut self) {
        self.signal("TERM");
        let status = self.wait(Duration::from_secs(5));
        assert!(status.success(), "{status} after SIGTERM:\n{}", self.stderr());
    }

    /// Kills it without waiting for its end.
    pub fn begin_kill(&mut self) {
        self.child.kill().unwrap();
    }

    /// Kills it and answers its home, to start it again there.
    pub fn kill(mut self) -> Home {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.home.clone()
    }

    /// Processor time that it has used, of all its threads.
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("the process is there");
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let ticks: u64 = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10) // Linux shows hundredths of a second, whatever the kernel counts in.
    }

    /// How often each of its threads, of those that live, went to sleep.
    pub fn sleeps(&self) -> HashMap<OsString, u64> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the process is there");
        let slept = |status: String| {
            let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
            count.trim().parse::<u64>().unwrap()
        };
        let thread = |thread: io::Result<fs::DirEntry>| {
            let thread = thread.ok()?;
            // It may end meanwhile.
            Some((thread.file_name(), slept(fs::read_to_string(thread.path().join("status")).ok()?)))
        };
        threads.filter_map(thread).collect()
    }

    /// Memory that it holds, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the process is there");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Hubless {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.stderr.display(), self.stderr());
        }
    }
}
