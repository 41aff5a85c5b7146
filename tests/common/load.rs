//! Many who publish at once through a node, and what each of them was told.

use std::collections::VecDeque;
use std::io::{self, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, WebSocket};

use super::Hubless;
use super::log::Answer;

/// Longer than any disk of a test takes.
const PATIENCE: Duration = Duration::from_secs(30);
/// Sends of one WebSocket that wait for their answers.
const SENDS_OUT: usize = 32;

/// What became of a publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Accepted.
    Accepted {
        /// The entry.
        id: String,
        /// `durable` and so on.
        state: String,
    },
    /// Refused with this code.
    Refused(String),
    /// Nobody knows: the node ended before it answered.
    Unknown,
}

/// A publish; the text is its client id, too.
#[derive(Clone, Debug)]
pub struct Said {
    /// What was said.
    pub text: String,
    /// What came of it.
    pub outcome: Outcome,
}

impl Said {
    /// Whether the node has promised to keep it.
    pub fn is_promised(&self) -> bool {
        matches!(&self.outcome, Outcome::Accepted { state, .. } if ["durable", "replicated"].contains(&state.as_str()))
    }
}

/// A connection that is kept for many requests.
#[derive(Debug)]
pub struct Poster(Option<BufReader<UnixStream>>);

impl Poster {
    /// To the API of this node.
    pub fn new(node: &Hubless) -> Poster {
        let stream = node.connect();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Poster(Some(BufReader::new(stream)))
    }

    /// Publishes in the lobby; status and answer.
    pub fn post(&mut self, message: &Value) -> io::Result<(u16, Value)> {
        Ok(self.post_all(std::slice::from_ref(message))?.remove(0))
    }

    /// Asks for all at once, then reads all answers.
    pub fn post_all(&mut self, messages: &[Value]) -> io::Result<Vec<(u16, Value)>> {
        let mut stream = self.0.take().ok_or(io::ErrorKind::NotConnected)?;
        let mut asked = String::new();
        for message in messages {
            let body = message.to_string();
            asked += &format!(
                "POST /api/v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            );
        }
        stream.get_mut().write_all(asked.as_bytes())?;
        let mut answers = Vec::new();
        for _ in messages {
            let mut answer = Answer::read(stream)?;
            let body = answer.text()?;
            answers.push((answer.status, serde_json::from_str(&body).unwrap_or(Value::String(body))));
            stream = answer.into_stream();
        }
        self.0 = Some(stream);
        Ok(answers)
    }

    /// Publishes a text under itself as client id.
    pub fn say(&mut self, text: &str) -> Said {
        let outcome = match self.post(&json!({ "text": text, "client_id": text })) {
            Ok((201, answer)) => accepted(&answer),
            Ok((status, answer)) => Outcome::Refused(format!("{status} {answer}")),
            Err(_) => Outcome::Unknown,
        };
        Said { text: text.into(), outcome }
    }
}

fn accepted(answer: &Value) -> Outcome {
    let word = |key: &str| answer[key].as_str().unwrap_or_else(|| panic!("no {key} in {answer}")).to_string();
    Outcome::Accepted { id: word("id"), state: word("state") }
}

/// Voices that publish until they are told to end, or their node ends.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    voices: Vec<JoinHandle<Vec<Said>>>,
}

#[derive(Debug, Default)]
struct Shared {
    end: AtomicBool,
    accepted: AtomicUsize,
}

impl Load {
    /// So many connections that post one by one, and a WebSocket with many sends at once. `label` begins each text.
    pub fn begin(node: &Hubless, label: &str, posters: usize) -> Load {
        let shared = Arc::new(Shared::default());
        let mut voices = Vec::new();
        for voice in 0..posters {
            let (shared, label) = (Arc::clone(&shared), format!("{label}.{voice}"));
            let mut poster = Poster::new(node);
            voices.push(std::thread::spawn(move || shared.post(&mut poster, &label)));
        }
        let (socket, shares, label) = (open(node), Arc::clone(&shared), format!("{label}.ws"));
        voices.push(std::thread::spawn(move || shares.send(socket, &label)));
        Load { shared, voices }
    }

    /// How many were accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Ends it; what was said.
    pub fn end(self) -> Vec<Said> {
        self.shared.end.store(true, Ordering::Relaxed);
        self.voices.into_iter().flat_map(|voice| voice.join().expect("a voice ends in order")).collect()
    }
}

impl Shared {
    fn goes_on(&self) -> bool {
        !self.end.load(Ordering::Relaxed)
    }

    fn post(&self, poster: &mut Poster, label: &str) -> Vec<Said> {
        let mut said = Vec::new();
        while self.goes_on() {
            let last = poster.say(&format!("{label}.{}", said.len()));
            let outcome = last.outcome.clone();
            said.push(last);
            match outcome {
                Outcome::Accepted { .. } => _ = self.accepted.fetch_add(1, Ordering::Relaxed),
                Outcome::Refused(_) => {}
                Outcome::Unknown => break,
            }
        }
        said
    }

    /// Keeps some sends out, and answers what came of each; a node that ends leaves the last ones unknown.
    fn send(&self, mut socket: WebSocket<UnixStream>, label: &str) -> Vec<Said> {
        let (mut said, mut out, mut number) = (Vec::new(), VecDeque::new(), 0);
        'talk: loop {
            while self.goes_on() && out.len() < SENDS_OUT {
                let text = format!("{label}.{number}");
                number += 1;
                let frame = json!({ "type": "send", "client_id": &text, "text": &text });
                out.push_back(text);
                if socket.send(frame.to_string().into()).is_err() {
                    break 'talk;
                }
            }
            if out.is_empty() {
                break;
            }
            let Some(frame) = next(&mut socket) else { break };
            let outcome = match frame["type"].as_str() {
                Some("accepted") => accepted(&frame),
                Some("error") => Outcome::Refused(frame["code"].to_string()),
                _ => continue,
            };
            let answered = frame["client_id"].as_str().unwrap_or_else(|| panic!("no client_id in {frame}"));
            let place = out.iter().position(|text| text == answered).expect("an answer to what was sent");
            let text = out.remove(place).expect("just found");
            if matches!(outcome, Outcome::Accepted { .. }) {
                self.accepted.fetch_add(1, Ordering::Relaxed);
            }
            said.push(Said { text, outcome });
        }
        said.extend(out.into_iter().map(|text| Said { text, outcome: Outcome::Unknown }));
        said
    }
}

/// A WebSocket `hubless.v1` that has been welcomed.
pub fn open(node: &Hubless) -> WebSocket<UnixStream> {
    let mut request = "ws://localhost/".into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", "hubless.v1".parse().unwrap());
    let stream = node.connect();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut socket, _) = tungstenite::client::client(request, stream).expect("a WebSocket");
    socket.send(json!({ "type": "hello", "name": "load" }).to_string().into()).unwrap();
    while next(&mut socket).expect("a welcome")["type"] != "welcome" {}
    socket
}

/// The next JSON frame; none when the node ends or says nothing for long.
pub fn next(socket: &mut WebSocket<UnixStream>) -> Option<Value> {
    loop {
        match socket.read().ok()? {
            tungstenite::Message::Text(text) => return Some(serde_json::from_str(&text).expect("frames are JSON")),
            tungstenite::Message::Close(_) => return None,
            _ => {}
        }
    }
}

/// Publishes `count` texts in the lobby; see [`publish_each`].
pub fn publish(node: &Hubless, count: usize, text: impl Fn(usize) -> String + Sync) -> (Vec<Said>, Duration) {
    publish_each(node, count, |number| json!({ "text": text(number) }), Some)
}

/// Publishes `count` messages over several connections, many at once; fails unless all are promised. Answers what `keep`
/// makes of them, and how long it took.
pub fn publish_each<T: Send>(
    node: &Hubless,
    count: usize,
    message: impl Fn(usize) -> Value + Sync,
    keep: impl Fn(Said) -> Option<T> + Sync,
) -> (Vec<T>, Duration) {
    const CONNECTIONS: usize = 8;
    const AT_ONCE: usize = 64;
    let started = Instant::now();
    let part = |connection: usize| {
        let mut poster = Poster::new(node);
        let numbers: Vec<usize> = (connection..count).step_by(CONNECTIONS).collect();
        let mut kept = Vec::new();
        for numbers in numbers.chunks(AT_ONCE) {
            let messages: Vec<Value> = numbers.iter().map(|number| message(*number)).collect();
            let answers = poster.post_all(&messages).expect("answers");
            for (message, (status, answer)) in messages.iter().zip(answers) {
                assert_eq!(status, 201, "{answer}");
                let text = message["text"].as_str().expect("a text").to_string();
                let said = Said { text, outcome: accepted(&answer) };
                assert!(said.is_promised(), "{said:?}");
                kept.extend(keep(said));
            }
        }
        kept
    };
    let part = &part;
    let kept = std::thread::scope(|scope| {
        let parts: Vec<_> = (0..CONNECTIONS).map(|connection| scope.spawn(move || part(connection))).collect();
        parts.into_iter().flat_map(|part| part.join().expect("all are promised")).collect()
    });
    (kept, started.elapsed())
}
