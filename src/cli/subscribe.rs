//! `hubless sub`: prints what is said in a room.
//!
//! What was said before is read page by page; the last cursor of that opens the live part, so nothing falls between them
//! and nothing comes twice. A durable reader acknowledges what its own reader has: after stdout was flushed.

use std::time::Duration;

use futures_util::{FutureExt, SinkExt, StreamExt};
use hubless::id::Room;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::api::Api;
use super::join::{Joined, Keeps, Own, with_node};
use super::lines::{Lines, Style, time};
use super::options::Subscribe;
use super::terminal::{Terminal, clean, given};
use super::{Failure, Outcome};

/// Without another node by then, a person is told.
const LONELY_AFTER: Duration = Duration::from_secs(3);
/// Messages in a page.
const PAGE: usize = 500;
/// How long the node may take to keep what was acknowledged last.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// A newer reader took the name of a durable one.
const REPLACED: u16 = 4001;

/// A page of messages, as the API gives it.
#[derive(Deserialize)]
struct Page {
    messages: Vec<Value>,
    after: String,
    before: Option<String>,
}

/// Where to begin.
struct Begin {
    after: Option<String>,
    durable: Option<String>,
}

/// Prints messages and counts them.
struct Printer {
    room: Room,
    since: Option<Timestamp>,
    lines: Lines,
    printed: u64,
    wanted: Option<u64>,
}

/// What is said from now on.
struct Live<'a> {
    socket: WebSocketStream<UnixStream>,
    printer: &'a mut Printer,
    terminal: &'a Terminal,
    durable: Option<String>,
    /// Covers all that was printed and not acknowledged.
    unacked: Option<String>,
    /// What was acknowledged last, until the node has kept it.
    unkept: Option<String>,
}

pub async fn subscribe(options: Subscribe) -> Outcome {
    let Subscribe { room, since, after, durable, count, wait, json, through } = options;
    let deadline = wait.map(|wait| Instant::now() + wait);
    let terminal = Terminal::new(&through.log);
    let lines = Lines::new(json, Style::Time);
    let mut printer = Printer { room, since, lines, printed: 0, wanted: count };
    let keeps = if durable.is_some() { Keeps::Log } else { Keeps::Nothing };
    with_node(&through, keeps, Ok(()), async |joined| {
        let begin = Begin { after, durable };
        let opening = open(joined, &mut printer, begin, &terminal);
        let live = match deadline {
            None => opening.await?,
            Some(deadline) => match tokio::time::timeout_at(deadline, opening).await {
                Ok(live) => live?,
                Err(_) => None,
            },
        };
        if let Some(live) = live {
            live.follow(deadline).await?;
        }
        printer.lines.flush()?;
        match wait.filter(|_| !printer.is_done()) {
            Some(wait) => printer.time_is_over(wait),
            None => Ok(()),
        }
    })
    .await
}

/// Prints what was said before, and opens the line for what comes, if more is wanted.
async fn open<'a>(
    joined: &mut Joined,
    printer: &'a mut Printer,
    Begin { after, durable }: Begin,
    terminal: &'a Terminal,
) -> Outcome<Option<Live<'a>>> {
    let Joined { api, own } = joined;
    if let Some(own) = own {
        // A node of the moment knows nothing of the past before it has met another one.
        let past = after.is_some() || printer.since.is_some();
        look_around(own, past && durable.is_none(), terminal).await;
    }
    let after = match printer.since {
        Some(since) => Some(print_past(api, since, printer).await?),
        None => after,
    };
    if printer.is_done() {
        return Ok(None);
    }
    let mut socket = api.socket().await?;
    let mut hello = json!({ "type": "hello" });
    if let Some(after) = after {
        hello["after"] = after.into();
    }
    if let Some(durable) = &durable {
        hello["durable"] = durable.as_str().into();
        if printer.wanted.is_some() {
            // So that it can end anywhere with everything acknowledged that it printed, and nothing else.
            hello["burst"] = 1.into();
        }
    }
    socket.send(Frame::text(hello.to_string())).await.map_err(|_| stopped())?;
    Ok(Some(Live { socket, printer, terminal, durable, unacked: None, unkept: None }))
}

fn stopped() -> Failure {
    Failure::failed("the node has stopped")
}

impl Live<'_> {
    /// Prints what comes, until it is enough or the time is over.
    async fn follow(mut self, deadline: Option<Instant>) -> Outcome {
        let outcome = loop {
            let next = match self.socket.next().now_or_never() {
                Some(next) => next,
                None => {
                    // Nobody is kept waiting for what is printed.
                    self.settle().await?;
                    tokio::select! {
                        next = self.socket.next() => next,
                        () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => break Ok(()),
                    }
                }
            };
            match next.and_then(Result::ok) {
                Some(Frame::Text(text)) => {
                    self.hear(text.as_str())?;
                    if self.printer.is_done() || deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                        break Ok(());
                    }
                }
                Some(Frame::Close(close)) => break Err(self.closed(close.map(|close| close.code))),
                Some(_) => {}
                None => break Err(stopped()),
            }
        };
        outcome?;
        self.settle().await?;
        let kept = async {
            while self.unkept.is_some() {
                match self.socket.next().await.and_then(Result::ok) {
                    Some(Frame::Text(text)) => self.hear_kept(&text)?,
                    Some(Frame::Close(close)) => return Err(self.closed(close.map(|close| close.code))),
                    Some(_) => {}
                    None => return Err(stopped()),
                }
            }
            Ok(())
        };
        let late = |_| Err(Failure::failed("the node does not say that it has kept what was acknowledged"));
        timeout(ACK_TIMEOUT, kept).await.unwrap_or_else(late)?;
        // The node is not owed a goodbye; it gets one where it listens.
        let _ = self.socket.close(None).await;
        Ok(())
    }

    /// What is printed is with its reader; so it is acknowledged.
    async fn settle(&mut self) -> Outcome {
        self.printer.lines.flush()?;
        if let Some(cursor) = self.unacked.take() {
            let ack = json!({ "type": "ack", "cursor": cursor }).to_string();
            self.socket.send(Frame::text(ack)).await.map_err(|_| stopped())?;
            self.unkept = Some(cursor);
        }
        Ok(())
    }

    fn closed(&self, code: Option<CloseCode>) -> Failure {
        match (code.map(u16::from), &self.durable) {
            (Some(REPLACED), Some(name)) => {
                Failure::failed(format!("another reader has taken over as `{}`", clean(name)))
            }
            (Some(1013), _) => Failure::failed("this reader was too slow for the node, which has closed the line"),
            _ => stopped(),
        }
    }

    /// Does what one frame says.
    fn hear(&mut self, text: &str) -> Outcome {
        let Ok(mut frame) = serde_json::from_str::<Value>(text) else { return Ok(()) };
        let kind = frame["type"].as_str().unwrap_or_default().to_string();
        match kind.as_str() {
            "welcome" => self.terminal.note(format_args!("listening in {}", self.printer.room)),
            "message" => {
                if self.durable.is_some()
                    && let Some(cursor) = frame["cursor"].as_str()
                {
                    self.unacked = Some(cursor.into());
                }
                // In a frame, the word `type` is taken.
                if let Some(object) = frame.as_object_mut() {
                    object.remove("type");
                    if let Some(content_type) = object.remove("content_type") {
                        object.insert("type".into(), content_type);
                    }
                }
                self.printer.print(&frame)?;
            }
            "acked" => self.hear_kept(text)?,
            "gap" => {
                let reason = frame["reason"].as_str().unwrap_or_default();
                let what = match reason {
                    "late" => "messages are missing here, and may still come",
                    "slow" => "messages were skipped, for this reader is too slow",
                    _ => "messages are missing for good",
                };
                self.terminal.note(format_args!("{} {what} ({})", frame["missing"], clean(reason)));
            }
            "error" => {
                let message = frame["message"].as_str().unwrap_or("the node refuses");
                return Err(Failure::usage(clean(message)));
            }
            _ => {}
        }
        Ok(())
    }

    /// Notes what the node has kept; what else is said was not asked for any more.
    fn hear_kept(&mut self, text: &str) -> Outcome {
        let Ok(frame) = serde_json::from_str::<Value>(text) else { return Ok(()) };
        match frame["type"].as_str() {
            Some("acked") if frame["cursor"].as_str() == self.unkept.as_deref() => self.unkept = None,
            Some("error") => {
                return Err(Failure::failed(clean(frame["message"].as_str().unwrap_or("the node refuses"))));
            }
            _ => {}
        }
        Ok(())
    }
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
            printer.print(&message)?;
        }
    }
    Ok(after)
}

impl Printer {
    fn is_done(&self) -> bool {
        self.wanted.is_some_and(|wanted| self.printed >= wanted)
    }

    /// Prints `message` if it is wanted.
    fn print(&mut self, message: &Value) -> Outcome {
        let too_old = self.since.is_some_and(|since| time(message).is_some_and(|time| time < since));
        if message["room"] != self.room.as_str() || too_old {
            return Ok(());
        }
        self.lines.print(message)?;
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
