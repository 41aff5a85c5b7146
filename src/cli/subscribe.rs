//! `hubless sub`: prints what is said in a room.
//!
//! What was said before is read page by page; the last cursor of that opens the live part, so nothing falls between them
//! and nothing comes twice.

use std::io::Write;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use hubless::id::Room;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::api::Api;
use super::join::{Joined, Own, with_node};
use super::options::Subscribe;
use super::terminal::{Terminal, clean, given};
use super::{Failure, Outcome};

/// Without another node by then, a person is told.
const LONELY_AFTER: Duration = Duration::from_secs(3);
/// Messages in a page.
const PAGE: usize = 500;

/// A page of messages, as the API gives it.
#[derive(Deserialize)]
struct Page {
    messages: Vec<Value>,
    after: String,
    before: Option<String>,
}

/// Prints messages and counts them.
struct Printer {
    room: Room,
    since: Option<Timestamp>,
    json: bool,
    printed: u64,
    wanted: Option<u64>,
}

pub async fn subscribe(options: Subscribe) -> Outcome {
    let Subscribe { room, since, after, count, wait, json, through } = options;
    let deadline = wait.map(|wait| Instant::now() + wait);
    let terminal = Terminal::new(&through.log);
    let mut printer = Printer { room, since, json, printed: 0, wanted: count };
    with_node(&through, Ok(()), async |joined| {
        let follow = follow(joined, &mut printer, after, &terminal);
        let Some(deadline) = deadline else { return follow.await };
        match timeout_at(deadline, follow).await {
            Ok(outcome) => outcome,
            Err(_) => printer.time_is_over(wait.unwrap_or_default()),
        }
    })
    .await
}

async fn follow(joined: &mut Joined, printer: &mut Printer, after: Option<String>, terminal: &Terminal) -> Outcome {
    let Joined { api, own } = joined;
    if let Some(own) = own {
        // A node of the moment knows nothing of the past before it has met another one.
        let past = after.is_some() || printer.since.is_some();
        look_around(own, past, terminal).await;
    }
    let after = match printer.since {
        Some(since) => Some(print_past(api, since, printer).await?),
        None => after,
    };
    if printer.is_done() {
        return Ok(());
    }
    let mut socket = api.socket().await?;
    let mut hello = json!({ "type": "hello" });
    if let Some(after) = after {
        hello["after"] = after.into();
    }
    let stopped = || Failure::failed("the node has stopped");
    socket.send(Frame::text(hello.to_string())).await.map_err(|_| stopped())?;
    while let Some(frame) = socket.next().await {
        match frame.map_err(|_| stopped())? {
            Frame::Text(text) => {
                hear(text.as_str(), printer, terminal)?;
                if printer.is_done() {
                    // The node is not owed a goodbye; it gets one where it listens.
                    let _ = socket.close(None).await;
                    return Ok(());
                }
            }
            Frame::Close(Some(close)) if close.code == CloseCode::Again => {
                return Err(Failure::failed("this reader was too slow for the node, which has closed the line"));
            }
            Frame::Close(_) => break,
            _ => {}
        }
    }
    Err(stopped())
}

/// Tells a person that nobody is there; waits for the first node if `wait` says so.
async fn look_around(own: &Own, wait: bool, terminal: &Terminal) {
    let (handle, terminal) = (own.handle.clone(), terminal.clone());
    let looking = async move {
        if timeout(LONELY_AFTER, handle.wait_for_peers(1)).await.is_err() {
            terminal.note("no other node was found so far");
        }
    };
    if wait {
        looking.await;
    } else {
        tokio::spawn(looking);
    }
}

/// Prints what is held since then, oldest first, and answers with the cursor to go on from.
async fn print_past(api: &mut Api, since: Timestamp, printer: &mut Printer) -> Outcome<String> {
    let question = format!("/api/v1/messages?room={}&since={since:.3}&limit={PAGE}", printer.room);
    let Page { messages, after, mut before } = api.get(&question, Duration::ZERO).await?;
    let mut pages = vec![messages];
    while let Some(place) = before {
        let page: Page = api.get(&format!("{question}&before={place}"), Duration::ZERO).await?;
        before = page.before;
        pages.push(page.messages);
    }
    for message in pages.into_iter().rev().flatten() {
        if !printer.is_done() {
            printer.print(message)?;
        }
    }
    Ok(after)
}

/// Does what one frame says.
fn hear(text: &str, printer: &mut Printer, terminal: &Terminal) -> Outcome {
    let Ok(mut frame) = serde_json::from_str::<Value>(text) else { return Ok(()) };
    let kind = frame["type"].as_str().unwrap_or_default().to_string();
    match kind.as_str() {
        "welcome" => terminal.note(format_args!("listening in {}", printer.room)),
        "message" => {
            // In a frame, the word `type` is taken.
            if let Some(object) = frame.as_object_mut() {
                object.remove("type");
                if let Some(content_type) = object.remove("content_type") {
                    object.insert("type".into(), content_type);
                }
            }
            printer.print(frame)?;
        }
        "gap" => {
            let reason = frame["reason"].as_str().unwrap_or_default();
            let what = match reason {
                "late" => "messages are missing here, and may still come",
                "slow" => "messages were skipped, for this reader is too slow",
                _ => "messages are missing for good",
            };
            terminal.note(format_args!("{} {what} ({})", frame["missing"], clean(reason)));
        }
        "error" => {
            let message = frame["message"].as_str().unwrap_or("the node refuses");
            return Err(Failure::usage(clean(message)));
        }
        _ => {}
    }
    Ok(())
}

impl Printer {
    fn is_done(&self) -> bool {
        self.wanted.is_some_and(|wanted| self.printed >= wanted)
    }

    /// Prints `message` if it is wanted.
    fn print(&mut self, message: Value) -> Outcome {
        let time = message["time"].as_str().and_then(|time| time.parse::<Timestamp>().ok());
        let too_old = self.since.is_some_and(|since| time.is_some_and(|time| time < since));
        if message["room"] != self.room.as_str() || too_old {
            return Ok(());
        }
        let line = if self.json { message.to_string() } else { for_people(&message, time) };
        writeln!(std::io::stdout().lock(), "{line}").map_err(Failure::output)?;
        self.printed += 1;
        Ok(())
    }

    fn time_is_over(&self, wait: Duration) -> Outcome {
        match (self.printed, self.wanted) {
            (0, _) => Err(Failure::nothing(format!("nothing was said in {} within {}", self.room, given(wait)))),
            (printed, Some(wanted)) => {
                Err(Failure::nothing(format!("only {printed} of {wanted} messages came within {}", given(wait))))
            }
            _ => Ok(()),
        }
    }
}

/// `[12:00:00] ada: hi`; further lines of one text are set in, so that none of them looks like another message.
fn for_people(message: &Value, time: Option<Timestamp>) -> String {
    let time = time.map(|time| time.to_zoned(TimeZone::system()).strftime("%H:%M:%S").to_string());
    let name = clean(message["name"].as_str().unwrap_or_default());
    let text = match message["text"].as_str() {
        Some(text) => text.lines().map(clean).collect::<Vec<_>>().join("\n    "),
        None => {
            let bytes = message["data"].as_str().map_or(0, |data| data.trim_end_matches('=').len() * 3 / 4);
            format!("({}, {bytes} bytes)", clean(message["type"].as_str().unwrap_or_default()))
        }
    };
    format!("[{}] {name}: {text}", time.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_looks_like_a_message_of_somebody_else() {
        let message = json!({ "name": "eve\n", "text": "hi\n[12:00:00] ada: I owe eve\r\x1b[1A" });
        assert_eq!(for_people(&message, None), "[] eve\u{fffd}: hi\n    [12:00:00] ada: I owe eve\u{fffd}\u{fffd}[1A");
        let data = json!({ "name": "cam", "type": "image/png", "data": "AP8=" });
        assert_eq!(for_people(&data, None), "[] cam: (image/png, 2 bytes)");
    }
}
