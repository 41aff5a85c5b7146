//! Brokers of a test's own, and stock clients of theirs.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{eventually, free_port, python};

const PATIENCE: Duration = Duration::from_secs(30);

/// A Redis of a test's own, which keeps nothing. Dropping it kills it.
#[derive(Debug)]
pub struct Redis {
    folder: TempDir,
    server: Option<Child>,
    pub port: u16,
}

impl Redis {
    /// Starts one and waits until it serves.
    pub fn start() -> Redis {
        Redis::start_with(&[])
    }

    /// The same, with further options.
    pub fn start_with(options: &[&str]) -> Redis {
        let mut redis = Redis { folder: TempDir::with_prefix("hlrd").unwrap(), server: None, port: free_port() };
        redis.start_again(options);
        redis
    }

    /// A Sentinel that watches the primary at `port` under the name `main`, alone, and acts within a second.
    pub fn sentinel(port: u16) -> Redis {
        let folder = TempDir::with_prefix("hlrd").unwrap();
        let config = folder.path().join("sentinel.conf");
        let lines = [
            format!("sentinel monitor main 127.0.0.1 {port} 1"),
            "sentinel down-after-milliseconds main 500".into(),
            "sentinel failover-timeout main 3000".into(),
        ];
        std::fs::write(&config, lines.join("\n")).unwrap();
        let mut redis = Redis { folder, server: None, port: free_port() };
        let mut server = Command::new("redis-server");
        server.arg(config).args(["--sentinel", "--bind", "127.0.0.1", "--port", &redis.port.to_string()]);
        redis.spawn(server);
        redis
    }

    /// So many servers that are one Cluster.
    pub fn cluster(servers: usize) -> Vec<Redis> {
        let server = |_| Redis::start_with(&["--cluster-enabled", "yes", "--cluster-port", &free_port().to_string()]);
        let servers: Vec<Redis> = (0..servers).map(server).collect();
        let addresses: Vec<String> = servers.iter().map(|server| format!("127.0.0.1:{}", server.port)).collect();
        let create = ["--cluster", "create", "--cluster-yes"].map(String::from);
        let made = Command::new("redis-cli").args(create.iter().chain(&addresses)).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        eventually(PATIENCE, "the Cluster is one", || {
            servers.iter().all(|server| server.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok"))
        });
        servers
    }

    /// Starts it anew, with further options.
    pub fn start_again(&mut self, options: &[&str]) {
        assert!(self.server.is_none());
        let mut server = Command::new("redis-server");
        server.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        server.arg("--dir").arg(self.folder.path()).args(options);
        self.spawn(server);
    }

    fn spawn(&mut self, mut server: Command) {
        server.stdin(Stdio::null()).stdout(Stdio::null());
        self.server = Some(server.spawn().expect("Redis is there: `make setup`"));
        eventually(PATIENCE, "Redis serves", || {
            let answer = self.cli(&["PING"]);
            answer.contains("PONG") || answer.contains("NOAUTH")
        });
    }

    /// Kills it.
    pub fn kill(&mut self) {
        let mut server = self.server.take().expect("it runs");
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// `redis://…`
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// `redis-cli ARGS`: what it prints.
    pub fn cli(&self, args: &[&str]) -> String {
        let output = Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(args).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// A certificate for 127.0.0.1 and the authority that signed it.
#[derive(Debug)]
pub struct Certificate(TempDir);

impl Certificate {
    pub fn new() -> Certificate {
        let folder = TempDir::with_prefix("hlca").unwrap();
        let openssl = |args: &str| {
            let mut openssl = Command::new("openssl");
            openssl.args(args.split(' ')).current_dir(folder.path()).stdin(Stdio::null()).stderr(Stdio::null());
            assert!(openssl.status().expect("openssl is there: `make setup`").success(), "{args}");
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(&format!("req -x509 {key} -subj /CN=authority -days 2 -keyout ca.key -out ca.pem"));
        openssl(&format!("req {key} -subj /CN=broker -keyout key.pem -out request.pem"));
        std::fs::write(folder.path().join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
        openssl(
            "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out cert.pem",
        );
        Certificate(folder)
    }

    /// The path of `ca.pem`, `cert.pem` or `key.pem`.
    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_string()
    }
}

/// Stock clients of a broker: `tests/interop/broker.py`. Dropping it ends them.
#[derive(Debug)]
pub struct Foreign {
    program: Child,
    orders: Mutex<ChildStdin>,
    heard: Arc<Mutex<Vec<Value>>>,
}

impl Foreign {
    /// Waits until they listen.
    pub fn start(args: &[&str]) -> Foreign {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/broker.py");
        let mut program = python();
        program.arg(script).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = program.spawn().unwrap();
        let heard: Arc<Mutex<Vec<Value>>> = Arc::default();
        let (lines, hearing) = (BufReader::new(program.stdout.take().unwrap()).lines(), heard.clone());
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                hearing.lock().unwrap_or_else(PoisonError::into_inner).push(serde_json::from_str(&line).expect("JSON"));
            }
        });
        let foreign = Foreign { orders: Mutex::new(program.stdin.take().unwrap()), program, heard };
        foreign.listens(1);
        foreign
    }

    /// Waits until they have begun to listen for the `times`th time.
    #[track_caller]
    pub fn listens(&self, times: usize) {
        eventually(PATIENCE, "foreign clients listen", || {
            self.all().iter().filter(|line| line["listening"] == true).count() >= times
        });
    }

    /// Publishes, and waits until all of it is.
    #[track_caller]
    pub fn publish(&self, order: &Value) {
        let done = |lines: &[Value]| lines.iter().filter(|line| line["done"].is_number()).count();
        let before = done(&self.all());
        writeln!(self.orders.lock().unwrap(), "{order}").unwrap();
        eventually(20 * PATIENCE, "foreign clients have published", || done(&self.all()) > before);
    }

    /// Publishes these texts.
    #[track_caller]
    pub fn say(&self, to: &str, texts: &[&str]) {
        self.publish(&json!({ "to": to, "texts": texts }));
    }

    /// What was printed so far.
    pub fn all(&self) -> MutexGuard<'_, Vec<Value>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The messages that came so far.
    pub fn heard(&self) -> Vec<Value> {
        self.all().iter().filter(|line| line["text"].is_string()).cloned().collect()
    }

    /// The texts of the messages that came so far and begin so.
    pub fn texts(&self, prefix: &str) -> Vec<String> {
        let lines = self.all();
        let texts = lines.iter().filter_map(|line| line["text"].as_str()).filter(|text| text.starts_with(prefix));
        texts.map(String::from).collect()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}
