//! Messages as lines on stdout: for people, or one JSON object each.
//!
//! Names and texts come from the LAN, so no control character of theirs reaches a terminal. What is printed is with its
//! reader after [`Lines::flush`], not before.

use std::io::{BufWriter, Stdout, Write};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::terminal::clean;
use super::{Failure, Outcome};

/// What a line for people says beside name and text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// The time of day.
    Time,
    /// Day and time.
    Date,
    /// Day and time, and the room.
    DateAndRoom,
}

/// Where messages are printed.
#[derive(Debug)]
pub struct Lines {
    out: BufWriter<Stdout>,
    /// None: JSON.
    style: Option<Style>,
}

impl Lines {
    pub fn new(json: bool, style: Style) -> Lines {
        Lines { out: BufWriter::new(std::io::stdout()), style: (!json).then_some(style) }
    }

    pub fn print(&mut self, message: &Value) -> Outcome {
        let line = match self.style {
            Some(style) => for_people(message, style),
            None => message.to_string(),
        };
        writeln!(self.out, "{line}").map_err(Failure::output)
    }

    /// Everything printed is with whoever reads it.
    pub fn flush(&mut self) -> Outcome {
        self.out.flush().map_err(Failure::output)
    }
}

/// When a message was said.
pub fn time(message: &Value) -> Option<Timestamp> {
    message["time"].as_str().and_then(|time| time.parse().ok())
}

/// `[12:00:00] ada: hi`; further lines of one text are set in, so that none of them looks like another message.
fn for_people(message: &Value, style: Style) -> String {
    let format = if style == Style::Time { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" };
    let time = time(message).map(|time| time.to_zoned(TimeZone::system()).strftime(format).to_string());
    let word = |field: &str| clean(message[field].as_str().unwrap_or_default());
    let text = match message["text"].as_str() {
        Some(text) => text.lines().map(clean).collect::<Vec<_>>().join("\n    "),
        None => {
            let bytes = message["data"].as_str().map_or(0, |data| data.trim_end_matches('=').len() * 3 / 4);
            format!("({}, {bytes} bytes)", word("type"))
        }
    };
    let room = if style == Style::DateAndRoom { format!(" {}", word("room")) } else { String::new() };
    format!("[{}]{room} {}: {text}", time.unwrap_or_default(), word("name"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_text_looks_like_a_message_of_somebody_else() {
        let message = json!({ "name": "eve\n", "text": "hi\n[12:00:00] ada: I owe eve\r\x1b[1A" });
        assert_eq!(
            for_people(&message, Style::Time),
            "[] eve\u{fffd}: hi\n    [12:00:00] ada: I owe eve\u{fffd}\u{fffd}[1A"
        );
        let data = json!({ "name": "cam", "room": "door", "type": "image/png", "data": "AP8=" });
        assert_eq!(for_people(&data, Style::DateAndRoom), "[] door cam: (image/png, 2 bytes)");
    }
}
