//! `hubless history`: prints the log of this machine, exports it to a file, and imports such a file.
//!
//! What is asked for in bounded number is read page by page, all of it as a stream; so is what goes into a file or comes
//! from one. An export takes its name only when it is whole.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::api::{Api, ApiError};
use super::join::with_log;
use super::lines::{Lines, Style, time};
use super::options::{Archive, Export, History, Import};
use super::terminal::Terminal;
use super::{Failure, Outcome, plain};

/// How many are printed unless told otherwise.
const LIMIT_DEFAULT: u64 = 100;
/// Messages in a page.
const PAGE: u64 = 500;
/// How long a node may look for what is rare.
const SEARCH_MAX: Duration = Duration::from_secs(120);
/// Bytes read of a file at a time.
const READ_BYTES: usize = 64 * 1024;

/// Which messages are wanted.
struct Wanted {
    /// As the API is asked.
    query: String,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    grep: Option<String>,
}

#[derive(Deserialize)]
struct Page {
    messages: Vec<Value>,
    before: Option<String>,
}

#[derive(Deserialize)]
struct NodeInfo {
    /// `none` where nothing is kept; a node that does not say keeps something.
    history: Option<String>,
}

/// What became of an import.
#[derive(Deserialize, Serialize)]
struct Imported {
    new: u64,
    known: u64,
    refused: u64,
}

pub async fn history(options: History) -> Outcome {
    let History { archive, room, since, until, grep, limit, all, json, place } = options;
    match archive {
        Some(Archive::Export(options)) => return export(options).await,
        Some(Archive::Import(options)) => return import(options).await,
        None => {}
    }
    let terminal = Terminal::new(&place.log);
    let style = if room.is_some() { Style::Date } else { Style::DateAndRoom };
    let mut query = String::new();
    let room = room.as_ref().map(|room| room.to_string());
    let time = |time: Option<Timestamp>| time.map(|time| format!("{time:.3}"));
    for (field, value) in [("room", room), ("since", time(since)), ("until", time(until)), ("grep", grep.clone())] {
        if let Some(value) = value {
            query.push_str(&format!("&{field}={}", escaped(&value)));
        }
    }
    let wanted = Wanted { query, since, until, grep: grep.map(|grep| grep.to_lowercase()) };
    let limit = limit.unwrap_or(LIMIT_DEFAULT);
    with_log(&place, false, interrupted(), async |joined| {
        let NodeInfo { history } = joined.api.get("/api/v1/node", Duration::ZERO).await?;
        if history.as_deref() == Some("none") {
            terminal.note("this node keeps no history; this is what it has in memory");
        }
        let mut lines = Lines::new(json, style);
        if all || limit == 0 {
            print_all(&mut joined.api, &wanted, &mut lines).await?;
        } else {
            print_newest(&mut joined.api, &wanted, limit, &mut lines).await?;
        }
        lines.flush()
    })
    .await
}

fn interrupted() -> Outcome {
    Err(Failure::failed("interrupted"))
}

/// The newest ones, oldest first.
async fn print_newest(api: &mut Api, wanted: &Wanted, limit: u64, lines: &mut Lines) -> Outcome {
    let mut pages = Vec::new();
    let mut left = limit;
    let mut place = String::new();
    loop {
        let path = format!("/api/v1/messages?limit={}{}{place}", left.min(PAGE), wanted.query);
        let Page { messages, before } = api.get(&path, SEARCH_MAX).await?;
        left = left.saturating_sub(messages.len() as u64);
        pages.push(messages);
        match before {
            Some(before) if left > 0 => place = format!("&before={before}"),
            _ => break,
        }
    }
    pages.into_iter().rev().flatten().try_for_each(|message| lines.print(&message))
}

/// All there are, as they come.
async fn print_all(api: &mut Api, wanted: &Wanted, lines: &mut Lines) -> Outcome {
    let mut download =
        api.download(&format!("/api/v1/messages/export?{}", wanted.query.trim_start_matches('&'))).await?;
    let mut rest = BytesMut::new();
    while let Some(bytes) = download.next().await? {
        let searched = rest.len();
        rest.extend_from_slice(&bytes);
        let mut from = searched;
        while let Some(end) = rest[from..].iter().position(|byte| *byte == b'\n') {
            let line = rest.split_to(from + end + 1);
            from = 0;
            let message: Value = serde_json::from_slice(&line).map_err(|error| ApiError::Garbled(error.to_string()))?;
            if wanted.takes(&message) {
                lines.print(&message)?;
            }
        }
    }
    if rest.is_empty() { Ok(()) } else { Err(ApiError::Garbled("it ends in the middle of a message".into()).into()) }
}

impl Wanted {
    /// The stream of all messages is asked for by room only.
    fn takes(&self, message: &Value) -> bool {
        let said = time(message);
        let text = || message["text"].as_str().unwrap_or_default().to_lowercase();
        self.since.is_none_or(|since| said.is_some_and(|said| said >= since))
            && self.until.is_none_or(|until| said.is_some_and(|said| said <= until))
            && self.grep.as_ref().is_none_or(|part| text().contains(part))
    }
}

/// `text` as a value in a query.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(byte.into()),
            byte => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// A file on its way to its name; removed unless it gets there.
struct Part {
    path: PathBuf,
    file: Option<File>,
}

impl Part {
    fn create(file: &Path) -> io::Result<Part> {
        let mut path = file.as_os_str().to_owned();
        path.push(".part");
        let path = PathBuf::from(path);
        Ok(Part { file: Some(File::create(&path)?), path })
    }

    /// Gives it its name, once all of it is on disk.
    fn finish(mut self, name: &Path) -> io::Result<()> {
        if let Some(file) = self.file.take() {
            file.sync_all()?;
        }
        std::fs::rename(&self.path, name)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // After `finish` there is nothing of this name any more.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn export(options: Export) -> Outcome {
    let Export { file, force, place } = options;
    let terminal = Terminal::new(&place.log);
    let to_stdout = file == Path::new("-");
    if to_stdout && io::stdout().is_terminal() {
        return Err(Failure::usage("a log is nothing for a terminal").hint("name a file, or send stdout somewhere"));
    }
    if !to_stdout && !force && std::fs::symlink_metadata(&file).is_ok() {
        return Err(Failure::usage(format!("{} is there already", file.display())).hint("`--force` replaces it"));
    }
    let unwritten = |error: io::Error| Failure::failed(format!("cannot write {}: {}", file.display(), plain(&error)));
    with_log(&place, false, interrupted(), async |joined| {
        let mut download = joined.api.download("/api/v1/history/export").await?;
        let mut part = if to_stdout { None } else { Some(Part::create(&file).map_err(unwritten)?) };
        let mut len = 0;
        while let Some(bytes) = download.next().await? {
            len += bytes.len() as u64;
            match part.as_mut().and_then(|part| part.file.as_mut()) {
                Some(out) => out.write_all(&bytes).map_err(unwritten)?,
                None => io::stdout().lock().write_all(&bytes).map_err(Failure::output)?,
            }
        }
        match part {
            Some(part) => part.finish(&file).map_err(unwritten)?,
            None => io::stdout().lock().flush().map_err(Failure::output)?,
        }
        terminal.note(format_args!("the log was exported: {len} bytes"));
        Ok(())
    })
    .await
}

async fn import(options: Import) -> Outcome {
    let Import { file, json, place } = options;
    let terminal = Terminal::new(&place.log);
    let source: Box<dyn AsyncRead + Send + Unpin> = if file == Path::new("-") {
        Box::new(tokio::io::stdin())
    } else {
        let opened = tokio::fs::File::open(&file).await;
        Box::new(opened.map_err(|error| Failure::usage(format!("cannot read {}: {}", file.display(), plain(&error))))?)
    };
    with_log(&place, true, interrupted(), async |joined| {
        let imported = joined.api.upload::<Imported>("/api/v1/history/import", chunks(source)).await;
        let imported = imported.map_err(|error| {
            let hint = match &error {
                ApiError::Refused { code, .. } if code == "corrupt_import" => "export it anew for the rest",
                ApiError::Refused { code, .. } if code == "newer_import" => "import it with the newer hubless",
                _ => return error.into(),
            };
            let name = if file == Path::new("-") { "stdin".into() } else { file.display().to_string() };
            Failure::failed(format!("{name}: {error}")).hint(hint)
        })?;
        if json {
            writeln!(io::stdout().lock(), "{}", json!(imported)).map_err(Failure::output)?;
        } else {
            let Imported { new, known, refused } = imported;
            let messages = if new == 1 { "message is" } else { "messages are" };
            let refused = if refused == 0 { String::new() } else { format!(", {refused} were refused") };
            terminal.note(format_args!("{new} {messages} new, {known} were known{refused}"));
        }
        Ok(())
    })
    .await
}

/// What is read, piece by piece.
fn chunks(source: Box<dyn AsyncRead + Send + Unpin>) -> impl futures_util::Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold(source, async |mut source| {
        let mut bytes = BytesMut::with_capacity(READ_BYTES);
        let len = source.read_buf(&mut bytes).await?;
        Ok((len > 0).then(|| (bytes.freeze(), source)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_keeps_what_it_asks_for() {
        assert_eq!(escaped("a-b_c.d~1"), "a-b_c.d~1");
        assert_eq!(escaped("50% & grün+x=#"), "50%25%20%26%20gr%C3%BCn%2Bx%3D%23");
    }

    #[test]
    fn a_part_that_is_not_finished_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log");
        drop(Part::create(&file).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let mut part = Part::create(&file).unwrap();
        part.file.as_mut().unwrap().write_all(b"all").unwrap();
        assert!(!file.exists());
        part.finish(&file).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"all");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
