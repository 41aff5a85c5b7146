//! The page and the API as other machines reach them: with the token, from there only so much at once.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use common::{Hubless, Lan, eventually};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);

/// A program on another machine.
struct Guest {
    child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Guest {
    fn new(lan: &Lan, machine: usize, host: &str, port: &str) -> Guest {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/guest.py");
        let mut command = lan.place(machine).command("python3");
        command.arg(script).args([host, port]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("Python runs");
        let (orders, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Guest { child, orders, answers: BufReader::new(answers).lines() }
    }

    fn ask(&mut self, order: &Value) -> Value {
        writeln!(self.orders, "{order}").unwrap();
        serde_json::from_str(&self.answers.next().unwrap().unwrap()).unwrap()
    }

    fn get(&mut self, path: &str, headers: &Value) -> (u64, Value) {
        let answer = self.ask(&json!({ "path": path, "headers": headers }));
        (answer["status"].as_u64().unwrap(), answer)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn upgrade(more: &[(&str, &str)]) -> Value {
    let mut headers = json!({
        "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": "hubless.v1",
    });
    for (name, value) in more {
        headers[name] = (*value).into();
    }
    headers
}

#[test]
fn who_is_elsewhere_needs_the_token_and_who_is_here_does_not() {
    let lan = Lan::new(2);
    let node = Hubless::start(&lan.place(0), &["--http", "0.0.0.0:0"]);
    let port = node.http().rsplit(':').next().unwrap().to_string();
    let host = lan.address(0);
    // The link that people open is in what the node says; the secret is in a file of its owner's.
    let begin = format!("http://{host}:{port}/?token=");
    eventually(PATIENCE, "the link is shown", || node.stderr().contains(&begin));
    let shown = node.stderr();
    let token = shown.split(&begin).nth(1).unwrap().split_whitespace().next().unwrap().to_string();
    let file = node.home().find("web.token").expect("the token is kept");
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), token);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    let mut here = Guest::new(&lan, 0, "127.0.0.1", &port);
    for path in ["/", "/api/v1/node", "/metrics", "/readyz"] {
        assert_ne!(here.get(path, &json!({})).0, 401, "{path}");
    }
    let mut there = Guest::new(&lan, 1, &host, &port);
    let (status, answer) = there.get("/api/v1/node", &json!({}));
    assert_eq!((status, answer["headers"]["x-content-type-options"].as_str()), (401, Some("nosniff")));
    assert!(answer["body"].as_str().unwrap().contains(r#""code":"token""#), "{answer}");
    for (path, headers) in [
        ("/", json!({})),
        ("/metrics", json!({})),
        ("/metrics/", json!({})),
        ("/readyz/", json!({})),
        ("//api/v1/node", json!({})),
        ("/api/v1/../v1/node/", json!({})),
        ("/api/v1/messages?token=wrong", json!({})),
        ("/api/v1/node", json!({ "Authorization": "Bearer wrong" })),
        ("/", upgrade(&[])),
        ("/?token=", upgrade(&[])),
    ] {
        assert_eq!(there.get(path, &headers).0, 401, "{path} {headers}");
    }
    let post = json!({ "path": "/api/v1/messages", "method": "POST", "body": r#"{"text":"from outside"}"# });
    assert_eq!(there.ask(&post)["status"], 401);
    assert_eq!(node.messages(), 0);
    // A person is asked for it; what the page is made of is no secret.
    let (status, door) = there.get("/", &json!({ "Accept": "text/html,*/*" }));
    assert!(status == 401 && door["body"].as_str().unwrap().contains("name=\"token\""), "{door}");
    assert_eq!(there.get("/healthz", &json!({})).0, 200);
    assert_eq!(there.get("/style.css", &json!({})).0, 200);

    // With it all is open, in each of the three ways, and it does not stay in the address.
    let bearer = format!("Bearer {token}");
    assert_eq!(there.get("/api/v1/node", &json!({ "Authorization": bearer })).0, 200);
    assert_eq!(there.get(&format!("/api/v1/messages?limit=1&token={token}"), &json!({})).0, 200);
    assert_eq!(there.get(&format!("/?token={token}"), &upgrade(&[])).0, 101);
    let (status, answer) = there.get(&format!("/?token={token}"), &json!({ "Accept": "text/html" }));
    assert_eq!((status, answer["headers"]["location"].as_str()), (303, Some("/")));
    let cookie = answer["headers"]["set-cookie"].as_str().unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();
    assert_eq!(there.get("/", &json!({ "Cookie": cookie, "Accept": "text/html" })).0, 200);
    assert_eq!(there.get("/", &upgrade(&[("Cookie", cookie), ("Origin", &format!("http://{host}:{port}"))])).0, 101);
    assert_eq!(there.get("/", &upgrade(&[("Cookie", cookie), ("Origin", "http://evil.example")])).0, 403);
    assert_eq!(node.get("/api/v1/node")["name"], node.ready()["name"], "the control socket asks for none");

    // The next life has the same one.
    let home = node.home().clone();
    let name = node.ready()["name"].as_str().unwrap().to_string();
    node.stop();
    let node = Hubless::spawn(&lan.place(0), &home, &["--http", "0.0.0.0:0", "--name", &name, "--log-format", "json"]);
    let port = node.http().rsplit(':').next().unwrap().to_string();
    let mut there = Guest::new(&lan, 1, &host, &port);
    assert_eq!(there.get("/", &json!({ "Cookie": cookie })).0, 200);
    assert!(!node.stderr().contains(&token), "the secret is in the log");
}

#[test]
fn one_address_has_a_bounded_share_of_the_page() {
    let lan = Lan::new(3);
    let node = Hubless::start(&lan.place(0), &["--http", "0.0.0.0:0"]);
    let port = node.http().rsplit(':').next().unwrap().to_string();
    let host = lan.address(0);
    let mut greedy = Guest::new(&lan, 1, &host, &port);
    let mut modest = Guest::new(&lan, 2, &host, &port);
    assert_eq!(greedy.ask(&json!({ "connect": 200 })), 64);
    assert_eq!(modest.ask(&json!({ "connect": 10 })), 10);
    eventually(PATIENCE, "what was closed counts no more", || greedy.ask(&json!({ "connect": 1 })) == 1);
    let counts = greedy.ask(&json!({ "rush": 20_000, "path": "/healthz" }));
    assert!(counts["200"].as_u64() >= Some(1_500) && counts["429"].as_u64() > Some(0), "{counts}");
    assert_eq!(modest.get("/healthz", &json!({})).0, 200);
    let mut here = Guest::new(&lan, 0, "127.0.0.1", &port);
    let counts = here.ask(&json!({ "rush": 6_000, "path": "/healthz" }));
    assert_eq!(counts, json!({ "200": 6_000 }), "this machine itself is not limited");
}
