//! `hubless pub`: says something, and waits until another node has it.
//!
//! Lines of stdin are published as they come; a second connection watches each of them until another node holds it, so a
//! slow mesh does not hold back the reading, and no line is called safe that is not.

use std::io::Write;
use std::time::Duration;

use hubless::PAYLOAD_BYTES_MAX;
use hubless::id::Room;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Stdin};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::api::Api;
use super::join::{Joined, with_node};
use super::options::{self, Publish, WAIT_DEFAULT};
use super::terminal::{Terminal, given};
use super::{Failure, Outcome, plain};

/// Lines published that are not yet known to be with another node; reading waits beyond it.
const UNHELD_MAX: usize = 1_024;
/// The longest that one question to the node is open.
const POLL_MAX: Duration = Duration::from_secs(30);

/// What is to be said.
enum Texts {
    One(Option<String>),
    Lines { input: BufReader<Stdin>, number: u64 },
}

/// The answer to a message that was posted.
#[derive(Debug, Deserialize)]
struct Posted {
    id: String,
    state: String,
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
    held: u64,
    /// How many nodes hold the last one.
    held_by: u64,
}

pub async fn publish(options: Publish) -> Outcome {
    let Publish { words, wait, json, through } = options;
    let wait = wait.unwrap_or(WAIT_DEFAULT);
    let started = Instant::now();
    let (room, text) = match <[String; 2]>::try_from(words) {
        Ok([room, text]) => (options::room(&room).map_err(Failure::usage)?, text),
        Err(words) => (Room::lobby(), words.concat()),
    };
    let mut texts = if text == "-" {
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
    with_node(&through, Err(Failure::failed("interrupted")), async |joined| {
        let Joined { api, own } = joined;
        if let Some(own) = own
            && timeout_at(started + wait, own.handle.wait_for_peers(1)).await.is_err()
        {
            return Err(Failure::nothing(format!(
                "no other node was found within {}: nothing was published",
                given(wait)
            ))
            .hint("start `hubless` on another machine, or name one with `--connect HOST`"));
        }
        let (to_watch, watched) = mpsc::channel(UNHELD_MAX);
        let watching = watch(api.another(), watched, json);
        let posting = async {
            let mut post = async || {
                while let Some(text) = texts.next().await? {
                    let by = match &texts {
                        Texts::One(_) => started + wait,
                        Texts::Lines { .. } => Instant::now() + wait,
                    };
                    let posted = post(api, &room, &text, name.as_deref()).await?;
                    if to_watch.send((posted, by)).await.is_err() {
                        break;
                    }
                }
                Ok(())
            };
            let outcome: Outcome = post().await;
            // What was published before something went wrong is watched to its end all the same.
            drop(to_watch);
            Ok(outcome)
        };
        let (posted, tally) = tokio::try_join!(posting, watching)?;
        let outcome = report(&tally, wait, own.is_some(), &terminal);
        posted.and(outcome)
    })
    .await
}

impl Texts {
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

async fn post(api: &mut Api, room: &Room, text: &str, name: Option<&str>) -> Outcome<Posted> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| Failure::failed(format!("no random numbers: {error}")))?;
    let client_id = format!("{:032x}", u128::from_le_bytes(random));
    let mut body = json!({ "room": room, "text": text, "client_id": client_id });
    if let Some(name) = name {
        body["name"] = name.into();
    }
    Ok(api.post("/api/v1/messages", &body).await?)
}

/// Waits for each message until another node holds it or its time is over.
async fn watch(mut api: Api, mut posted: mpsc::Receiver<(Posted, Instant)>, json: bool) -> Outcome<Tally> {
    let mut tally = Tally::default();
    while let Some((Posted { id, state }, by)) = posted.recv().await {
        let Held { held_by, stored_by } = loop {
            let left = by.saturating_duration_since(Instant::now()).min(POLL_MAX);
            let path = format!("/api/v1/messages/{id}/held?count=1&wait={}ms", left.as_millis());
            let held: Held = api.get(&path, left).await?;
            if held.held_by > 0 || left < POLL_MAX {
                break held;
            }
        };
        tally.published += 1;
        tally.held += u64::from(held_by > 0);
        tally.held_by = held_by;
        if json {
            let line = json!({ "id": id, "state": state, "held_by": held_by, "stored_by": stored_by });
            writeln!(std::io::stdout().lock(), "{line}").map_err(Failure::output)?;
        }
    }
    Ok(tally)
}

fn report(tally: &Tally, wait: Duration, own: bool, terminal: &Terminal) -> Outcome {
    let Tally { published, held, held_by } = *tally;
    match (published, published - held) {
        (0, _) => Ok(()),
        (1, 0) => {
            let nodes = if held_by == 1 { "one other node".into() } else { format!("{held_by} other nodes") };
            terminal.note(format_args!("it is in the memory of {nodes}"));
            Ok(())
        }
        (_, 0) => {
            terminal.note(format_args!("all {published} messages are in the memory of another node"));
            Ok(())
        }
        (_, missed) => {
            let one = published == 1;
            let which = if one { "it".into() } else { format!("{missed} of {published} messages") };
            let rest = match (own, one) {
                (true, _) => "what no other node has is lost, for this command's node has ended",
                (false, true) => "it stays in this node's memory",
                (false, false) => "they stay in this node's memory",
            };
            Err(Failure::nothing(format!("no other node is known to have {which} within {}; {rest}", given(wait)))
                .hint("`hubless peers` shows who is there"))
        }
    }
}
