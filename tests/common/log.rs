//! The log of a node as anybody may read it, and what must hold of the logs of a mesh.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Hubless, elapse};

/// Between two looks at logs that are not yet equal.
const PAUSE: Duration = Duration::from_millis(50);

/// Texts by the ids of their messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log(pub BTreeMap<String, String>);

impl Log {
    /// How often each text is there.
    pub fn texts(&self) -> HashMap<&str, usize> {
        let mut texts = HashMap::new();
        self.0.values().for_each(|text| *texts.entry(text.as_str()).or_default() += 1);
        texts
    }
}

/// Which text each id stands for, over all that was ever answered, heard or exported.
#[derive(Debug, Default)]
pub struct Ids(HashMap<String, String>);

impl Ids {
    /// Fails if the id stood for another text before.
    #[track_caller]
    pub fn note(&mut self, id: &str, text: &str) {
        let known = self.0.entry(id.into()).or_insert_with(|| text.into());
        assert_eq!(known, text, "the id {id} stands for two texts");
    }

    /// All of a log.
    #[track_caller]
    pub fn note_log(&mut self, log: &Log) {
        log.0.iter().for_each(|(id, text)| self.note(id, text));
    }
}

impl Hubless {
    /// Its whole log; fails if an id is listed twice.
    #[track_caller]
    pub fn log(&self) -> Log {
        let mut log = Log::default();
        self.export(|message| {
            let word = |key: &str| message[key].as_str().unwrap_or_else(|| panic!("no {key} in {message}")).to_string();
            let id = word("id");
            assert!(log.0.insert(id.clone(), word("text")).is_none(), "{id} is exported twice");
        });
        log
    }

    /// Each message of its log, as it is exported.
    pub fn export(&self, mut take: impl FnMut(Value)) {
        let mut stream = self.connect();
        let asked = "GET /api/v1/messages/export HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(asked.as_bytes()).unwrap();
        let mut answer = Answer::read(BufReader::new(stream)).unwrap();
        if answer.status != 200 {
            let why = answer.text().unwrap();
            panic!("export: {} {why}", answer.status);
        }
        for line in BufReader::new(answer).lines() {
            let line = line.expect("the export comes to its end");
            take(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line}")));
        }
    }

    /// How many messages it counts in each room.
    pub fn rooms(&self) -> BTreeMap<String, u64> {
        let rooms = self.get("/api/v1/rooms");
        let room = |room: &Value| {
            (room["room"].as_str().expect("a room").to_string(), room["messages"].as_u64().expect("a number"))
        };
        rooms.as_array().expect("an array").iter().map(room).collect()
    }

    /// How many messages it counts.
    pub fn messages(&self) -> u64 {
        self.rooms().values().sum()
    }

    /// A counter or gauge of its `/metrics`, by its name without `hubless_` and `_total`.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics");
        let text = text.as_str().expect("text");
        let value = |line: &str| {
            let (key, value) = line.split_once(' ')?;
            let key = key.strip_prefix("hubless_")?;
            (key.strip_suffix("_total").unwrap_or(key) == name).then(|| value.parse().expect("a number"))
        };
        text.lines().find_map(value).unwrap_or_else(|| panic!("no {name} in /metrics"))
    }
}

/// Waits until the logs of these nodes are equal and have each of `promised`; each text of theirs must be there once.
/// Answers the log, and how long it took.
#[track_caller]
pub fn same_logs(nodes: &[&Hubless], deadline: Duration, promised: &BTreeSet<String>) -> (Log, Duration) {
    let started = Instant::now();
    loop {
        let late = started.elapsed() >= deadline;
        // Counts are cheaper than logs.
        let counts: BTreeSet<u64> = nodes.iter().map(|node| node.messages()).collect();
        if late || counts.len() == 1 && counts.first() >= Some(&(promised.len() as u64)) {
            let took = started.elapsed();
            let logs: Vec<Log> = nodes.iter().map(|node| node.log()).collect();
            let wrong = difference(nodes, &logs, promised);
            match wrong {
                None => return (logs.into_iter().next().expect("a node"), took),
                Some(wrong) => assert!(!late, "not within {deadline:?}: the logs are equal; {wrong}"),
            }
        }
        elapse(PAUSE);
    }
}

/// What is not as it must be.
fn difference(nodes: &[&Hubless], logs: &[Log], promised: &BTreeSet<String>) -> Option<String> {
    let mut union = Log::default();
    logs.iter().for_each(|log| union.0.extend(log.0.clone()));
    let mut wrong = String::new();
    for (node, log) in nodes.iter().zip(logs) {
        let texts = log.texts();
        let some = |list: Vec<&str>| format!("{} such as {:?}", list.len(), &list[..list.len().min(5)]);
        let broken: Vec<&str> = promised.iter().map(String::as_str).filter(|text| !texts.contains_key(text)).collect();
        let doubled: Vec<&str> = texts.iter().filter(|(_, times)| **times > 1).map(|(text, _)| *text).collect();
        let missing: Vec<&str> =
            union.0.iter().filter(|(id, _)| !log.0.contains_key(*id)).map(|(_, text)| text.as_str()).collect();
        let other = union.0.iter().any(|(id, text)| log.0.get(id).is_some_and(|ours| ours != text));
        for (what, list) in [("promised and gone", broken), ("doubled", doubled), ("elsewhere only", missing)] {
            if !list.is_empty() {
                wrong += &format!("\n{} of {} messages: {what}: {}", node.listen(), log.0.len(), some(list));
            }
        }
        if other {
            wrong += &format!("\n{}: an id stands for another text than elsewhere", node.listen());
        }
    }
    (!wrong.is_empty()).then_some(wrong)
}

/// An HTTP answer whose body is read as it comes.
#[derive(Debug)]
pub struct Answer {
    /// 200 and so on.
    pub status: u16,
    stream: BufReader<UnixStream>,
    /// Of this chunk, or of the body.
    left: usize,
    chunked: bool,
}

impl Answer {
    /// Reads the head.
    pub fn read(mut stream: BufReader<UnixStream>) -> io::Result<Answer> {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let bad = || io::Error::from(io::ErrorKind::InvalidData);
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(bad)?;
        let (mut left, mut chunked) = (0, false);
        loop {
            line.clear();
            stream.read_line(&mut line)?;
            let header = line.trim().to_ascii_lowercase();
            if header.is_empty() {
                return Ok(Answer { status, stream, left, chunked });
            }
            if let Some(len) = header.strip_prefix("content-length:") {
                left = len.trim().parse().map_err(|_| bad())?;
            }
            chunked |= header.starts_with("transfer-encoding:") && header.ends_with("chunked");
        }
    }

    /// The rest of the body.
    pub fn text(&mut self) -> io::Result<String> {
        let mut text = String::new();
        self.read_to_string(&mut text)?;
        Ok(text)
    }

    /// The connection, for the next answer; the body must have been read.
    pub fn into_stream(self) -> BufReader<UnixStream> {
        self.stream
    }

    /// The size line of the next chunk; the last one is of size 0 and ends the body.
    fn next_chunk(&mut self) -> io::Result<()> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let size = line.trim().split(';').next().unwrap_or_default();
        self.left = usize::from_str_radix(size, 16).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        if self.left == 0 {
            self.stream.read_line(&mut line)?;
            self.chunked = false;
        }
        Ok(())
    }
}

impl Read for Answer {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && self.chunked {
            self.next_chunk()?;
        }
        let room = into.len().min(self.left);
        if room == 0 {
            return Ok(0); // To ask for nothing would wait for the next answer.
        }
        let got = self.stream.read(&mut into[..room])?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= got;
        if self.left == 0 && self.chunked {
            self.stream.read_line(&mut String::new())?;
        }
        Ok(got)
    }
}
