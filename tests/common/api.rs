//! How a test talks to a node: HTTP and WebSocket over its control socket, which crosses network namespaces.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, WebSocket};

use super::{Hubless, eventually_some};

const PATIENCE: Duration = Duration::from_secs(10);

impl Hubless {
    /// A connection to its control socket, once that is there.
    pub fn connect(&self) -> UnixStream {
        let stream = eventually_some(PATIENCE, "the control socket takes connections", || {
            assert!(self.is_running(), "hubless has ended:\n{}", self.stderr());
            UnixStream::connect(self.home().find("control.sock")?).ok()
        });
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Status and body of an HTTP request; a body that is not JSON comes as a JSON string.
    pub fn request(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut stream = self.connect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        parse(&answer).unwrap_or_else(|| panic!("{method} {path}: {}", String::from_utf8_lossy(&answer)))
    }

    /// `GET`, expecting 200.
    pub fn get(&self, path: &str) -> Value {
        let (status, body) = self.request("GET", path, "");
        assert_eq!(status, 200, "GET {path}: {body}");
        body
    }

    /// Says `text` in the lobby and answers the message's id.
    pub fn say(&self, text: &str) -> String {
        let (status, body) = self.request("POST", "/api/v1/messages", &json!({ "text": text }).to_string());
        assert_eq!(status, 201, "{body}");
        body["id"].as_str().expect("an id").to_string()
    }

    /// Its peers as the API shows them.
    pub fn peers(&self) -> Vec<Value> {
        self.get("/api/v1/peers").as_array().expect("an array").clone()
    }

    /// The state in which it sees the node `peer` best: a restarted one is listed with its earlier runs.
    pub fn sees(&self, peer: &str) -> String {
        let rank = |state: &str| ["up", "one_way", "suspect", "incompatible", "down"].iter().position(|s| *s == state);
        let states = self.peers().into_iter().filter(|shown| shown["node"] == peer);
        let states = states.map(|shown| shown["state"].as_str().expect("a state").to_string());
        states.min_by_key(|state| rank(state)).unwrap_or_else(|| "unknown".into())
    }

    /// Whether it sees all these nodes `up`.
    pub fn sees_up(&self, peers: &[&Hubless]) -> bool {
        peers.iter().all(|peer| self.sees(&peer.node()) == "up")
    }

    /// Listens to all that is said from now on.
    pub fn listen_in(&self) -> Ear {
        Ear::new(self.connect(), usize::MAX)
    }

    /// The same, of which only the beginnings of the texts are kept.
    pub fn listen_in_briefly(&self, chars: usize) -> Ear {
        Ear::new(self.connect(), chars)
    }
}

/// A message as the WebSocket `hubless.v1` brought it.
#[derive(Clone, Debug)]
pub struct Heard {
    /// When.
    pub at: Instant,
    /// Whose node it came from.
    pub node: String,
    /// What was said.
    pub text: String,
    /// The whole frame.
    pub frame: Value,
}

/// A WebSocket to a node; hears until it is dropped or the node ends.
#[derive(Debug)]
pub struct Ear {
    heard: Arc<Mutex<Vec<Heard>>>,
    stream: UnixStream,
}

impl Ear {
    fn new(stream: UnixStream, chars: usize) -> Ear {
        let mut request = "ws://localhost/".into_client_request().unwrap();
        request.headers_mut().insert("Sec-WebSocket-Protocol", "hubless.v1".parse().unwrap());
        let (mut socket, _) = tungstenite::client::client(request, stream.try_clone().unwrap()).expect("a WebSocket");
        socket.send(json!({ "type": "hello", "name": "test" }).to_string().into()).unwrap();
        while read(&mut socket).expect("a welcome")["type"] != "welcome" {}
        stream.set_read_timeout(None).unwrap();
        let ear = Ear { heard: Arc::default(), stream };
        let heard = Arc::clone(&ear.heard);
        std::thread::spawn(move || {
            while let Some(frame) = read(&mut socket) {
                if frame["type"] == "message" {
                    let word = |key: &str| frame[key].as_str().unwrap_or_default().to_string();
                    let text = word("text").chars().take(chars).collect();
                    let (at, node) = (Instant::now(), word("node"));
                    let frame = if chars == usize::MAX { frame } else { Value::Null };
                    let message = Heard { at, node, text, frame };
                    heard.lock().unwrap_or_else(PoisonError::into_inner).push(message);
                }
            }
        });
        ear
    }

    /// Everything heard so far, in order.
    pub fn heard(&self) -> MutexGuard<'_, Vec<Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often `text` was heard.
    pub fn times(&self, text: &str) -> usize {
        self.heard().iter().filter(|heard| heard.text == text).count()
    }

    /// When a text that begins so was first heard.
    pub fn first(&self, beginning: &str) -> Option<Instant> {
        self.heard().iter().find(|heard| heard.text.starts_with(beginning)).map(|heard| heard.at)
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        // Ends the thread that reads; the node may have closed it already.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// The next JSON frame; none at the end.
fn read(socket: &mut WebSocket<UnixStream>) -> Option<Value> {
    loop {
        match socket.read().ok()? {
            tungstenite::Message::Text(text) => return Some(serde_json::from_str(&text).expect("frames are JSON")),
            tungstenite::Message::Close(_) => return None,
            _ => {}
        }
    }
}

/// Status and body of an HTTP/1.1 answer that ended with its connection.
fn parse(answer: &[u8]) -> Option<(u16, Value)> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?.to_ascii_lowercase();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let mut body = answer[end + 4..].to_vec();
    if head.contains("transfer-encoding: chunked") {
        body = chunks(&body)?;
    }
    let value = serde_json::from_slice(&body);
    Some((status, value.unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned().into())))
}

fn chunks(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..end]).ok()?.split(';').next()?;
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(end + 2..end + 2 + size)?);
        rest = rest.get(end + 2 + size + 2..)?;
    }
}
