//! Brokers of a run's own, on ports of loopback, which keep nothing.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::child::System;
use crate::cost::Cost;
use crate::free_port;

/// Ends with its value.
pub struct Broker {
    process: Child,
    _folder: TempDir,
    /// What its clients connect to.
    pub place: String,
}

impl Broker {
    /// The broker of this system, once it serves; none if it needs none.
    pub fn start(system: System) -> Result<Option<Broker>, String> {
        let port = free_port();
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (mut command, scheme) = match system {
            System::Redis => {
                let mut command = Command::new("redis-server");
                command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
                // Nobody is cut who is behind for a moment.
                command.args(["--client-output-buffer-limit", "pubsub 0 0 0"]).current_dir(folder.path());
                (command, "redis")
            }
            System::Nats => {
                let config = folder.path().join("nats.conf");
                let lines = format!("listen: 127.0.0.1:{port}\nmax_pending: 1073741824\nwrite_deadline: \"60s\"\n");
                std::fs::write(&config, lines).map_err(|error| error.to_string())?;
                let mut command = Command::new("nats-server");
                command.arg("-c").arg(config);
                (command, "nats")
            }
            System::Hubless | System::Libzmq | System::Zenoh => return Ok(None),
        };
        let what = command.get_program().to_string_lossy().into_owned();
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let process = process.map_err(|error| format!("{what}: {error}; `make bench-peers` installs it"))?;
        let broker = Broker { process, _folder: folder, place: format!("{scheme}://127.0.0.1:{port}") };
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if began.elapsed() > Duration::from_secs(10) {
                return Err(format!("{what} does not serve"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Some(broker))
    }

    /// What it has cost so far.
    pub fn cost(&self) -> Cost {
        Cost::of(self.process.id())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
