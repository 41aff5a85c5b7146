//! `hubless pub`: says something, and waits until another node has it on disk.
//!
//! Lines of stdin are published as they come, many on their way at a time and in their order; a second connection watches
//! each of them until another node has it, so neither the disk nor a slow mesh holds back the reading, and no line is called
//! safe that is not.

use std::io::Write;
use std::time::Duration;

use futures_util::{SinkExt, Stream, StreamExt};
use hubless::PAYLOAD_BYTES_MAX;
use hubless::id::Room;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Stdin};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::tungstenite::Message as Frame;

use super::api::Api;
use super::join::{Joined, Keeps, with_node};
use super::options::{self, Publish, WAIT_DEFAULT};
use super::terminal::{Terminal, clean, given};
use super::{Exit, Failure, Outcome, plain};

/// Lines published that are not yet known to be with another node; reading waits beyond it.
const UNHELD_MAX: usize = 65_536;
/// Lines handed to the node that it has not answered for; reading waits beyond it.
const UNANSWERED_MAX: usize = 1_024;
/// Lines that the node is asked about at a time.
const WATCHED_MAX: usize = 1_000;
/// How long the node may take to answer for a line.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest that one question to the node is open.
const POLL_MAX: Duration = Duration::from_secs(30);

/// What is to be said.
enum Texts {
    One(Option<String>),
    Lines { input: BufReader<Stdin>, number: u64 },
}

/// What the node says of a message that it was handed.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Answer {
    Accepted {
        id: String,
        state: String,
    },
    Error {
        code: String,
        message: String,
        client_id: Option<String>,
    },
    #[serde(other)]
    Other,
}

/// A message that the node has.
#[derive(Debug)]
struct Posted {
    id: String,
    state: String,
    /// When waiting for others to have it ends.
    by: Instant,
}

#[derive(Debug, Deserialize)]
struct Held {
    held_by: u64,
    stored_by: u64,
}

/// What became of the messages.
#[derive(Debug, Default)]
struct Tally {
    published: u64,
    /// How many are as safe as was asked for.
    safe: u64,
    /// How many others have in memory only.
    volatile: u64,
    /// How many nodes have the last one.
    nodes: u64,
    /// How safe the last one is here.
    state: String,
}

/// What is enough.
#[derive(Clone, Copy, Debug)]
struct Aim {
    volatile_ok: bool,
    wait: Duration,
    json: bool,
}

pub async fn publish(options: Publish) -> Outcome {
    let Publish { words, wait, volatile_ok, json, through } = options;
    let aim = Aim { volatile_ok, wait: wait.unwrap_or(WAIT_DEFAULT), json };
    let started = Instant::now();
    let (room, text) = match <[String; 2]>::try_from(words) {
        Ok([room, text]) => (options::room(&room).map_err(Failure::usage)?, text),
        Err(words) => (Room::lobby(), words.concat()),
    };
    let texts = if text == "-" {
        Texts::Lines { input: BufReader::new(tokio::io::stdin()), number: 0 }
    } else {
        check_len(text.len(), "the text")?;
        if text.is_empty() {
            return Err(Failure::usage("the text is empty"));
        }
        Texts::One(Some(text))
    };
    let terminal = Terminal::new(&through.log);
    let name = through.node.name.clone();
    with_node(&through, Keeps::Nothing, Err(Failure::failed("interrupted")), async |joined| {
        let Joined { api, own } = joined;
        if let Some(own) = own
            && timeout_at(started + aim.wait, own.handle.wait_for_peers(1)).await.is_err()
        {
            return Err(Failure::nothing(format!(
                "no other node was found within {}: nothing was published",
                given(aim.wait)
            ))
            .hint("start `hubless` on another machine, or name one with `--connect HOST`"));
        }
        let deadline = matches!(texts, Texts::One(_)).then(|| started + aim.wait);
        let (to_watch, watched) = mpsc::channel(UNHELD_MAX);
        let watching = watch(api.another(), watched, aim);
        let posting = async { Ok(post(api, texts, &room, name.as_deref(), to_watch, deadline, aim.wait).await) };
        let (posted, tally) = tokio::try_join!(posting, watching)?;
        let outcome = report(&tally, aim, own.is_some(), &terminal);
        posted.and(outcome)
    })
    .await
}

impl Texts {
    /// Where the last one stood, as the beginning of an error.
    fn place(&self) -> String {
        match self {
            Texts::One(_) => String::new(),
            Texts::Lines { number, .. } => format!("line {number}: "),
        }
    }

    /// Whether the next one is there already.
    fn more(&self) -> bool {
        let Texts::Lines { input, .. } = self else { return false };
        let ready = input.buffer().rsplitn(2, |byte| *byte == b'\n').nth(1).unwrap_or_default();
        ready.iter().any(|byte| !matches!(byte, b'\r' | b'\n'))
    }

    /// The next one; empty lines say nothing.
    async fn next(&mut self) -> Outcome<Option<String>> {
        let Texts::Lines { input, number } = self else {
            let Texts::One(text) = self else { return Ok(None) };
            return Ok(text.take());
        };
        loop {
            let mut line = Vec::new();
            let unread = |error| Failure::failed(format!("cannot read stdin: {}", plain(&error)));
            // Two more for the end of the line.
            let mut limited = input.take(PAYLOAD_BYTES_MAX as u64 + 2);
            if limited.read_until(b'\n', &mut line).await.map_err(unread)? == 0 {
                return Ok(None);
            }
            *number += 1;
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            let text = text.strip_suffix(b"\r").unwrap_or(text);
            check_len(text.len(), &format!("line {number}"))?;
            let text = std::str::from_utf8(text);
            let text = text.map_err(|_| Failure::usage(format!("line {number} is not text in UTF-8")))?;
            if !text.is_empty() {
                return Ok(Some(text.into()));
            }
        }
    }
}

fn check_len(bytes: usize, what: &str) -> Outcome {
    if bytes <= PAYLOAD_BYTES_MAX {
        return Ok(());
    }
    Err(Failure::usage(format!("{what} is too long: a message has at most {PAYLOAD_BYTES_MAX} bytes")))
}

/// Hands all texts to the node, in order, and passes on what it has. What was published before something went wrong is
/// watched to its end all the same.
async fn post(
    api: &Api,
    mut texts: Texts,
    room: &Room,
    name: Option<&str>,
    to_watch: mpsc::Sender<Posted>,
    deadline: Option<Instant>,
    wait: Duration,
) -> Outcome {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| Failure::failed(format!("no random numbers: {error}")))?;
    let ids = format!("{:032x}", u128::from_le_bytes(random));
    let stopped = || Failure::failed("the node has stopped");
    let (mut sink, mut source) = api.socket().await?.split();
    sink.send(Frame::text(json!({ "type": "hello" }).to_string())).await.map_err(|_| stopped())?;
    // Where each message stood that the node has not answered for; closed after the last one.
    let (on_its_way, mut unanswered) = mpsc::channel(UNANSWERED_MAX);
    let refused = Notify::new();
    let saying = async {
        let say = async {
            let mut number = 0_u64;
            while let Some(text) = texts.next().await? {
                number += 1;
                let mut frame =
                    json!({ "type": "send", "client_id": format!("{ids}.{number}"), "room": room, "text": text });
                if let Some(name) = name {
                    frame["name"] = name.into();
                }
                let place = match on_its_way.try_reserve() {
                    Ok(place) => place,
                    Err(_) => {
                        sink.flush().await.map_err(|_| stopped())?;
                        on_its_way.reserve().await.map_err(|_| stopped())?
                    }
                };
                sink.feed(Frame::text(frame.to_string())).await.map_err(|_| stopped())?;
                place.send(texts.place());
                // While more lines wait to be read, they go out together.
                if !texts.more() {
                    sink.flush().await.map_err(|_| stopped())?;
                }
            }
            Ok(())
        };
        let said = tokio::select! {
            said = say => said,
            () = refused.notified() => Ok(()),
        };
        drop(on_its_way);
        // What is handed over is published, whatever became of the rest.
        sink.flush().await.map_err(|_| stopped())?;
        said
    };
    let hearing = async {
        let mut outcome = Ok(());
        while let Some(place) = unanswered.recv().await {
            let answer = timeout(ANSWER_TIMEOUT, answer(&mut source, &ids)).await;
            let answer = answer.map_err(|_| Failure::failed(format!("{place}the node does not answer")));
            match answer?.ok_or_else(stopped)? {
                Answer::Accepted { id, state } => {
                    let by = deadline.unwrap_or_else(|| Instant::now() + wait);
                    if to_watch.send(Posted { id, state, by }).await.is_err() {
                        break;
                    }
                }
                // Those behind it may be on their way; nothing more is read.
                Answer::Error { code, message, .. } => {
                    refused.notify_one();
                    outcome =
                        outcome.and_then(|()| Err(Failure::new(exit(&code), format!("{place}{}", clean(&message)))));
                }
                Answer::Other => {}
            }
        }
        outcome
    };
    let hearing = async {
        let heard = hearing.await;
        // Whatever it was, there is nothing more to be said.
        refused.notify_one();
        heard
    };
    let (said, heard) = tokio::join!(saying, hearing);
    heard.and(said)
}

/// The node's next word about a message of ours.
async fn answer(
    source: &mut (impl Stream<Item = Result<Frame, tokio_tungstenite::tungstenite::Error>> + Unpin),
    ids: &str,
) -> Option<Answer> {
    loop {
        let Frame::Text(text) = source.next().await?.ok()? else { continue };
        // All that is said comes along here; it need not be understood.
        if !["{\"type\":\"accepted\"", "{\"type\":\"error\""].iter().any(|kind| text.starts_with(kind)) {
            continue;
        }
        match serde_json::from_str(&text).ok()? {
            Answer::Other => {}
            Answer::Error { client_id, .. } if client_id.as_ref().is_some_and(|id| !id.starts_with(ids)) => {}
            answer => return Some(answer),
        }
    }
}

/// How a command ends that the node refused something with this code.
fn exit(code: &str) -> Exit {
    match code {
        "disk_full" | "disk_failing" | "history" | "stopped" | "too_many" => Exit::Failed,
        _ => Exit::Usage,
    }
}

/// Waits for each message until another node has it or its time is over.
async fn watch(mut api: Api, mut posted: mpsc::Receiver<Posted>, aim: Aim) -> Outcome<Tally> {
    let Aim { volatile_ok, json, .. } = aim;
    let aim = if volatile_ok { "count" } else { "stored" };
    let mut tally = Tally::default();
    let mut out = std::io::BufWriter::new(std::io::stdout());
    let mut some = Vec::new();
    while posted.recv_many(&mut some, WATCHED_MAX).await > 0 {
        let by = some.iter().map(|posted| posted.by).max().unwrap_or_else(Instant::now);
        let ids = Vec::from_iter(some.iter().map(|posted| posted.id.as_str()));
        let enough = |held: &Held| if volatile_ok { held.held_by > 0 } else { held.stored_by > 0 };
        let held = loop {
            let left = by.saturating_duration_since(Instant::now()).min(POLL_MAX);
            let question = json!({ "ids": ids, aim: 1, "wait": format!("{}ms", left.as_millis()) });
            let held: Vec<Held> = api.post("/api/v1/messages/held", &question, left).await?;
            if left < POLL_MAX || held.iter().all(enough) {
                break held;
            }
        };
        for (Posted { id, state, .. }, held) in some.drain(..).zip(held) {
            let Held { held_by, stored_by } = held;
            let safe = enough(&held);
            let state = if stored_by > 0 { "replicated".into() } else { state };
            tally.published += 1;
            tally.safe += u64::from(safe);
            tally.volatile += u64::from(!safe && held_by > 0);
            tally.nodes = if volatile_ok { held_by } else { stored_by };
            if json {
                let line = json!({ "id": id, "state": state, "stored_by": stored_by });
                writeln!(out, "{line}").map_err(Failure::output)?;
            }
            tally.state = state;
        }
        out.flush().map_err(Failure::output)?;
    }
    Ok(tally)
}

fn report(tally: &Tally, aim: Aim, own: bool, terminal: &Terminal) -> Outcome {
    let Tally { published, safe, volatile, nodes, ref state } = *tally;
    let place = if aim.volatile_ok { "in the memory" } else { "on the disk" };
    match (published, published - safe) {
        (0, _) => Ok(()),
        (1, 0) => {
            let nodes = if nodes == 1 { "one other node".into() } else { format!("{nodes} other nodes") };
            terminal.note(format_args!("it is {place} of {nodes}"));
            Ok(())
        }
        (_, 0) => {
            terminal.note(format_args!("all {published} messages are {place} of another node"));
            Ok(())
        }
        (_, missed) => {
            let one = published == 1;
            let which = if one { "it".into() } else { format!("{missed} of {published} messages") };
            let kept = if state == "sent" { "this node's memory" } else { "this machine's log" };
            let rest = match (own, one) {
                (true, _) => "what no other node has is lost, for this command's node has ended".into(),
                (false, true) => format!("it stays in {kept}"),
                (false, false) => format!("they stay in {kept}"),
            };
            let disk = if aim.volatile_ok { "" } else { " on disk" };
            let hint = if volatile > 0 {
                "another node has it in memory: `--volatile-ok` takes that as enough"
            } else {
                "`hubless peers` shows who is there"
            };
            let within = given(aim.wait);
            Err(Failure::nothing(format!("no other node is known to have {which}{disk} within {within}; {rest}"))
                .hint(hint))
        }
    }
}
