//! Redis, streams: each room is a stream, and each entry of it a message with its id and where it has been.
//!
//! The nodes of one mesh share a consumer group, in which they are one consumer: whoever leads first takes what another one
//! was given and did not acknowledge. What comes is acknowledged once the log has it on disk. An entry without an id of its
//! own is known by its id in the stream, so it is one message however often it is given.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, pending};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisError, RedisResult, Value};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::redis::{ANSWER_WAIT, Commands, Target, ended, escaped, version, watch};
use super::session::{Broker, Line, Place};
use super::{GUEST, Trouble};
use crate::handle::{Draft, Handle, Message, NAME_BYTES_MAX, PAYLOAD_BYTES_MAX, Via};
use crate::id::{Key, Room};
use crate::metrics::count;

/// What all nodes of a mesh are called in their group.
const CONSUMER: &str = "hubless";
/// Entries of a stream taken at a time: first few, then more as long as an answer is small and comes in time.
const TOGETHER_FIRST: usize = 8;
const TOGETHER_MAX: usize = 128;
/// A larger answer is not small, in bytes.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long an answer with entries may take.
const ENTRIES_WAIT: Duration = Duration::from_secs(20);
/// How often what was given and not acknowledged is taken again: another node may have been given it as it ended.
const AGAIN_EVERY: Duration = Duration::from_secs(30);
/// How long Redis may wait for an entry before it says that there is none, in milliseconds.
const BLOCK_MS: usize = 1_000;
/// How often it is looked for streams of rooms that are new.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Entries that a stream keeps, about.
const STREAM_LEN_MAX: usize = 100_000;
/// From where a group reads a stream that is new to it.
const FROM_THE_FIRST: &str = "0";
const FROM_NOW: &str = "$";

/// A server, and the streams that stand for rooms.
#[derive(Clone, Debug)]
pub struct Streams {
    /// The server.
    pub target: Target,
    /// The stream of the lobby; those of other rooms have a dot and the room behind that.
    pub stream: String,
    /// How many entries are taken at a time, over one connection after the other.
    together: Arc<AtomicUsize>,
}

impl Streams {
    /// The streams of that name at that server.
    pub fn new(target: Target, stream: impl Into<String>) -> Streams {
        Streams { target, stream: stream.into(), together: Arc::new(AtomicUsize::new(TOGETHER_FIRST)) }
    }

    fn of(&self, room: &Room) -> String {
        if *room == Room::lobby() { self.stream.clone() } else { format!("{}.{room}", self.stream) }
    }

    /// The room of a stream; none if it is no stream of ours.
    fn room(&self, stream: &str) -> Option<Room> {
        match stream.strip_prefix(&self.stream)? {
            "" => Some(Room::lobby()),
            rest => Room::new(rest.strip_prefix('.')?).ok(),
        }
    }

    /// Connects to the server that has the streams.
    async fn open(&self, answer_wait: Duration) -> Result<MultiplexedConnection, Trouble> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_WAIT))
            .set_response_timeout(Some(answer_wait));
        let mut redis = self.target.open(&config).await?;
        let mut info = redis::cmd("INFO");
        // Whoever may not ask this has no Cluster.
        let cluster: String = info.arg("cluster").query_async(&mut redis).await.unwrap_or_default();
        if !cluster.contains("cluster_enabled:1") {
            return Ok(redis);
        }
        if !has_hash_tag(&self.stream) {
            return Err(Trouble::new("in a Redis Cluster, the streams of all rooms have to be on one server")
                .hint(Some("give the stream a hash tag: --redis-stream '{chat_stream}'")));
        }
        let known: RedisResult<usize> = redis::cmd("XLEN").arg(&self.stream).query_async(&mut redis).await;
        match known.as_ref().err().and_then(RedisError::redirect_node) {
            Some((address, _)) => self.target.open_at(address, &config).await,
            None => Ok(redis),
        }
    }

    /// Connects, and answers in words what is there.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn check(&self) -> Result<String, Trouble> {
        let mut redis = self.open(ANSWER_WAIT).await?;
        let length: usize = redis::cmd("XLEN").arg(&self.stream).query_async(&mut redis).await?;
        Ok(format!("Redis {}, whose stream {} has {length} entries", version(&mut redis).await, self.stream))
    }
}

/// Whether all streams whose names begin so are on one server of a Cluster.
fn has_hash_tag(stream: &str) -> bool {
    let tag = stream.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
    tag.is_some_and(|(tag, _)| !tag.is_empty())
}

impl Broker for Streams {
    type Line = Connection;

    const BARE: bool = false;

    fn name(&self) -> String {
        format!("redis-streams {} {}", self.target, self.stream)
    }

    async fn connect(&self, handle: &Handle) -> Result<Connection, Trouble> {
        let redis = self.open(ANSWER_WAIT).await?;
        let (commands, alive) = (Commands::new(redis.clone()), watch(redis));
        let (streams, handle) = (self.clone(), handle.clone());
        Ok(Connection { streams, handle, commands, alive, source: None, given: BTreeMap::new() })
    }
}

/// A connection that adds, and one that takes once this node leads.
pub struct Connection {
    streams: Streams,
    handle: Handle,
    commands: Commands,
    alive: JoinHandle<Trouble>,
    source: Option<Source>,
    /// What was received and not acknowledged, by stream.
    given: BTreeMap<Arc<str>, Vec<String>>,
}

/// Where entries come from.
struct Source {
    place: Place,
    group: String,
    came: mpsc::Receiver<Result<Vec<Given>, Trouble>>,
    task: JoinHandle<()>,
}

/// An entry that Redis gave.
#[derive(Debug)]
struct Given {
    stream: Arc<str>,
    id: String,
    /// Without those of no sensible name.
    fields: HashMap<String, Vec<u8>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.alive.abort();
        if let Some(source) = &self.source {
            source.task.abort();
        }
    }
}

impl Connection {
    /// A message of somebody else; none if it has been here before, or is no message.
    fn draft(&self, place: &Place, given: &Given) -> Option<Draft> {
        let Given { stream, id, fields } = given;
        let field = |name: &str| fields.get(name).and_then(|value| std::str::from_utf8(value).ok());
        if field("path").is_some_and(|path| place.is_in(path)) {
            return None;
        }
        let refused = |reason| {
            tracing::warn!(%stream, id, "an entry is not kept: {reason}");
            count(&self.handle.metrics().malformed, reason);
            None
        };
        let Some(room) = self.streams.room(stream) else { return refused("room") };
        let Some(text) = field("message") else { return refused("body") };
        if text.len() > PAYLOAD_BYTES_MAX {
            return refused("length");
        }
        let named = field("id").filter(|id| !id.is_empty()).map(String::from);
        let key = named.unwrap_or_else(|| format!("redis {} {stream} {id}", self.streams.target));
        let name = field("name").filter(|name| !name.is_empty() && name.len() <= NAME_BYTES_MAX).unwrap_or(GUEST);
        let key = Some(Key::of_client_id(&key));
        Some(Draft { name: Some(name.into()), key, via: Via::Stream, ..Draft::new(room, text) })
    }
}

impl Line for Connection {
    async fn listen(&mut self, place: Place) -> Result<(), Trouble> {
        let group = format!("hubless.{}.{}", place.mesh, place.site);
        let mut reader = Reader {
            redis: self.streams.open(ENTRIES_WAIT).await?,
            streams: self.streams.clone(),
            group: group.clone(),
            known: BTreeSet::new(),
            again: Vec::new(),
            again_at: Instant::now() + AGAIN_EVERY,
            look_at: Instant::now(),
        };
        reader.begin().await?;
        let (give, came) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            loop {
                let taken = reader.take().await;
                let ended = taken.is_err();
                let any = taken.as_ref().map_or(true, |taken| !taken.is_empty());
                // Whoever does not listen any more has ended.
                if any && give.send(taken).await.is_err() || ended {
                    break;
                }
            }
        });
        self.source = Some(Source { place, group, came, task });
        Ok(())
    }

    fn send(&mut self, message: &Message) -> BoxFuture<'static, Result<(), Trouble>> {
        let path = self.source.as_ref().map(|source| source.place.to_string()).unwrap_or_default();
        let mut add = redis::cmd("XADD");
        add.arg(self.streams.of(&message.room)).arg("MAXLEN").arg("~").arg(STREAM_LEN_MAX).arg("*");
        add.arg("message").arg(message.payload.text().unwrap_or_default());
        add.arg("id").arg(message.id.to_string()).arg("node").arg(message.id.run.node.to_string());
        add.arg("name").arg(&*message.name).arg("time").arg(message.hlc.wall_ms());
        add.arg("hops").arg(1).arg("path").arg(path);
        self.commands.send(add)
    }

    async fn receive(&mut self) -> Result<Vec<Draft>, Trouble> {
        let next = async {
            match &mut self.source {
                Some(source) => source.came.recv().await.unwrap_or_else(|| Err(ended())),
                None => pending().await,
            }
        };
        let given = tokio::select! {
            given = next => given?,
            trouble = &mut self.alive => return Err(trouble.unwrap_or_else(|_| ended())),
        };
        let Some(Source { place, .. }) = &self.source else { return Err(ended()) };
        let drafts = given.iter().filter_map(|given| self.draft(place, given)).collect();
        for Given { stream, id, .. } in given {
            self.given.entry(stream).or_default().push(id);
        }
        Ok(drafts)
    }

    async fn kept(&mut self) -> Result<(), Trouble> {
        let Some(Source { group, .. }) = &self.source else { return Ok(()) };
        let mut acknowledged = Vec::new();
        for (stream, ids) in std::mem::take(&mut self.given) {
            let mut ack = redis::cmd("XACK");
            ack.arg(&*stream).arg(group).arg(ids);
            acknowledged.push(self.commands.send(ack));
        }
        for acknowledged in acknowledged {
            acknowledged.await?;
        }
        Ok(())
    }

    async fn close(self) {}
}

/// Takes from streams, on a connection of its own: it waits there most of the time.
struct Reader {
    streams: Streams,
    group: String,
    redis: MultiplexedConnection,
    known: BTreeSet<Arc<str>>,
    /// Streams of which there may be entries that were given and not acknowledged, behind this id.
    again: Vec<(Arc<str>, String)>,
    again_at: Instant,
    /// When streams of new rooms are looked for.
    look_at: Instant,
}

/// What Redis answers: entries by stream, of which those that were trimmed have no fields any more.
type Answer = Option<HashMap<String, Vec<(String, Option<HashMap<Vec<u8>, Vec<u8>>>)>>>;

impl Reader {
    /// Makes the group where it is missing.
    async fn begin(&mut self) -> Result<(), Trouble> {
        let lobby = self.streams.stream.clone();
        // A group that is new to the lobby is new to all: what was said before is not meant for it.
        let new = self.join(&lobby, FROM_NOW).await?;
        let from = if new { FROM_NOW } else { FROM_THE_FIRST };
        for stream in self.unknown().await? {
            self.join(&stream, from).await?;
        }
        Ok(())
    }

    /// Streams of rooms that are not read yet.
    async fn unknown(&mut self) -> Result<Vec<String>, Trouble> {
        let began = Instant::now();
        let (mut found, mut cursor) = (Vec::new(), 0_u64);
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(format!("{}.*", escaped(&self.streams.stream)));
            scan.arg("COUNT").arg(1_000).arg("TYPE").arg("stream");
            let (next, keys): (u64, Vec<Vec<u8>>) = scan.query_async(&mut self.redis).await?;
            let names = keys.into_iter().filter_map(|key| String::from_utf8(key).ok());
            found.extend(names.filter(|name| self.streams.room(name).is_some() && !self.known.contains(&**name)));
            if next == 0 {
                // Among millions of keys that takes long; it shall not be all that is done.
                self.look_at = Instant::now() + LOOK_EVERY.max(began.elapsed() * 20);
                return Ok(found);
            }
            cursor = next;
        }
    }

    /// Has the group read a stream; answers whether that is new to it.
    async fn join(&mut self, stream: &str, from: &str) -> Result<bool, Trouble> {
        let mut create = redis::cmd("XGROUP");
        create.arg("CREATE").arg(stream).arg(&self.group).arg(from).arg("MKSTREAM");
        let made: RedisResult<Value> = create.query_async(&mut self.redis).await;
        let stream = Arc::from(stream);
        self.known.insert(Arc::clone(&stream));
        match made {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some("BUSYGROUP") => {
                self.again.push((stream, "0".into()));
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The next entries: first those that were given before and not acknowledged. May answer none.
    async fn take(&mut self) -> Result<Vec<Given>, Trouble> {
        let now = Instant::now();
        if now >= self.again_at {
            self.again_at = now + AGAIN_EVERY;
            self.again = self.known.iter().map(|stream| (stream.clone(), "0".into())).collect();
        }
        if now >= self.look_at {
            for stream in self.unknown().await? {
                self.join(&stream, FROM_THE_FIRST).await?;
            }
        }
        let together = self.streams.together.load(Ordering::Relaxed);
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(&self.group).arg(CONSUMER).arg("COUNT").arg(together);
        let again = self.again.pop();
        match &again {
            Some((stream, from)) => _ = read.arg("STREAMS").arg(&**stream).arg(from),
            None => {
                read.arg("BLOCK").arg(BLOCK_MS).arg("STREAMS");
                self.known.iter().for_each(|stream| _ = read.arg(&**stream));
                self.known.iter().for_each(|_| _ = read.arg(">"));
            }
        }
        let answer: RedisResult<Answer> = read.query_async(&mut self.redis).await;
        let given = answer.map(given);
        let bytes = |given: &[Given]| given.iter().flat_map(|given| given.fields.values()).map(Vec::len).sum::<usize>();
        let large = given.as_ref().map_or(true, |given| bytes(given) > ANSWER_BYTES_MAX);
        let next = if large { together / 2 } else { together * 2 };
        self.streams.together.store(next.clamp(1, TOGETHER_MAX), Ordering::Relaxed);
        let given = given?;
        if let Some(((stream, _), last)) = again.zip(given.last()) {
            self.again.push((stream, last.id.clone()));
        }
        Ok(given)
    }
}

fn given(answer: Answer) -> Vec<Given> {
    let mut all = Vec::new();
    for (stream, entries) in answer.unwrap_or_default() {
        let stream: Arc<str> = stream.into();
        for (id, fields) in entries {
            let named = |(name, value)| Some((String::from_utf8(name).ok()?, value));
            let fields = fields.unwrap_or_default().into_iter().filter_map(named).collect();
            all.push(Given { stream: stream.clone(), id, fields });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_stand_for_rooms() {
        let streams = Streams::new("redis://localhost".parse().unwrap(), "chat_stream");
        for (stream, room) in [
            ("chat_stream", Some("lobby")),
            ("chat_stream.nodejs", Some("nodejs")),
            ("chat_stream.lobby", Some("lobby")),
            ("chat_stream.", None),
            ("chat_streams", None),
            ("chat_stream.~control", None),
            ("other", None),
        ] {
            assert_eq!(streams.room(stream).as_ref().map(Room::as_str), room, "{stream}");
        }
        assert_eq!(streams.of(&Room::new("a.b").unwrap()), "chat_stream.a.b");
        for (stream, tagged) in [("{chat}", true), ("a{b}c", true), ("chat", false), ("{}", false), ("}{", false)] {
            assert_eq!(has_hash_tag(stream), tagged, "{stream}");
        }
    }
}
