//! A RabbitMQ of a test's own, on ports of its own and with its own epmd.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::{eventually, free_port};

/// How long it may take to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// Dropping it kills it and all that it keeps.
#[derive(Debug)]
pub struct Rabbit {
    folder: TempDir,
    epmd: Child,
    epmd_port: u16,
    nodes_port: u16,
    server: Option<Child>,
    pub port: u16,
}

impl Rabbit {
    /// Starts one and waits until it serves.
    pub fn start() -> Rabbit {
        Rabbit::start_with("")
    }

    /// The same, with this in its `rabbitmq.conf`.
    pub fn start_with(configuration: &str) -> Rabbit {
        let epmd_port = free_port();
        let epmd = Command::new("epmd").args(["-port", &epmd_port.to_string(), "-address", "127.0.0.1"]).spawn();
        let folder = TempDir::with_prefix("hlmq").unwrap();
        for name in ["mnesia", "log", "config", "schema"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("plugins"), "[].").unwrap();
        fs::write(folder.path().join("rabbitmq.conf"), configuration).unwrap();
        let epmd = epmd.expect("epmd is there: `make setup`");
        let mut rabbit = Rabbit { folder, epmd, epmd_port, nodes_port: free_port(), server: None, port: free_port() };
        rabbit.start_again();
        rabbit
    }

    /// Starts it anew with what it keeps.
    pub fn start_again(&mut self) {
        assert!(self.server.is_none());
        let _ = fs::remove_file(self.pid_file());
        let script = glob("/usr/lib/rabbitmq/lib", "rabbitmq_server-").join("sbin/rabbitmq-server");
        let log = fs::File::create(self.folder.path().join("output")).unwrap();
        let mut server = self.environment(script);
        let server = server.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        self.server = Some(server.expect("RabbitMQ is there: `make setup`"));
        eventually(PATIENCE, "RabbitMQ writes its pid", || self.pid_file().exists());
        let pid_file = self.pid_file();
        let waited = self.ctl(&["wait", "--timeout", "90", pid_file.to_str().unwrap()]);
        assert!(waited.is_ok(), "{waited:?}");
    }

    /// Kills it, as a power cut would that leaves the disk alone.
    pub fn kill(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        let pid = fs::read_to_string(self.pid_file()).unwrap_or_default();
        if !pid.trim().is_empty() {
            let _ = Command::new("sh").args(["-c", &format!("kill -KILL {}", pid.trim())]).status();
        }
        let _ = server.kill();
        let _ = server.wait();
    }

    /// `amqp://…`
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}", self.port)
    }

    /// `rabbitmqctl ARGS`: what it prints.
    pub fn ctl(&self, args: &[&str]) -> Result<String, String> {
        let ctl = glob("/usr/lib/rabbitmq/lib", "rabbitmq_server-").join("sbin/rabbitmqctl");
        let output = self.environment(ctl).arg("-q").args(args).stdin(Stdio::null()).output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap()),
            false => Err(format!("{output:?}")),
        }
    }

    fn pid_file(&self) -> PathBuf {
        self.folder.path().join("pid")
    }

    fn environment(&self, program: PathBuf) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        let path = |name: &str| self.folder.path().join(name);
        for (variable, name) in [
            ("HOME", ""),
            ("RABBITMQ_MNESIA_BASE", "mnesia"),
            ("RABBITMQ_LOG_BASE", "log"),
            ("RABBITMQ_PID_FILE", "pid"),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", "plugins"),
            ("RABBITMQ_CONFIG_FILE", "rabbitmq.conf"),
            ("RABBITMQ_GENERATED_CONFIG_DIR", "config"),
            ("RABBITMQ_SCHEMA_DIR", "schema"),
            ("RABBITMQ_FEATURE_FLAGS_FILE", "features"),
            ("RABBITMQ_CONF_ENV_FILE", "environment"),
        ] {
            command.env(variable, path(name));
        }
        command
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", format!("hubless{}@localhost", self.port))
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_DIST_PORT", self.nodes_port.to_string())
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none",
            );
        command
    }
}

impl Drop for Rabbit {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.folder.path().join("output")).unwrap_or_default());
        }
        self.kill();
        let _ = self.epmd.kill();
        let _ = self.epmd.wait();
    }
}

/// The newest thing in `folder` whose name begins so.
fn glob(folder: &str, prefix: &str) -> PathBuf {
    let begins = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
    let found = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).filter(begins).max();
    found.unwrap_or_else(|| panic!("nothing in {folder} begins with {prefix}: `make setup` installs it"))
}
