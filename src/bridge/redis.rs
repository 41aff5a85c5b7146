//! Redis, pub/sub: each room is a channel, and the payload is the text.
//!
//! One RESP3 connection publishes and listens, so what it published itself comes back over it: it is known by channel and
//! text, and counted. Nothing is kept in Redis: what others say while no node listens is lost to the mesh, as it is to any
//! subscriber.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::aio::{MultiplexedConnection, SendError};
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, PushInfo, PushKind, RedisError, RedisResult, ServerErrorKind, Value,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};

pub use super::redis_target::Target;
use super::session::{Broker, Line, Place};
use super::{GUEST, Trouble};
use crate::handle::{Draft, Handle, Message, PAYLOAD_BYTES_MAX, Via};
use crate::id::Room;
use crate::metrics::{Metrics, count};

/// How long Redis may take to answer.
pub(super) const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// A connection that is silent is asked so often whether it is there.
const PING_EVERY: Duration = Duration::from_secs(3);
/// What may wait to be kept, in bytes; beyond, the connection is cut, as Redis itself cuts a subscriber that is behind.
const WAITING_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Messages that are kept together.
const TOGETHER_MAX: usize = 256;

/// A server, and the channels that stand for rooms.
#[derive(Clone, Debug)]
pub struct Channels {
    /// The server.
    pub target: Target,
    /// The channel of the lobby.
    pub lobby: String,
    /// What the channels of other rooms begin with.
    pub prefix: String,
}

impl Channels {
    fn of(&self, room: &Room) -> String {
        if *room == Room::lobby() { self.lobby.clone() } else { format!("{}{room}", self.prefix) }
    }

    /// The room of a channel; none if it is no channel of ours.
    fn room(&self, channel: &str) -> Option<Room> {
        if channel == self.lobby {
            return Some(Room::lobby());
        }
        Room::new(channel.strip_prefix(&self.prefix)?).ok()
    }
}

impl From<RedisError> for Trouble {
    fn from(error: RedisError) -> Trouble {
        let hint = match error.kind() {
            ErrorKind::AuthenticationFailed => Some("check the user and the password of the URL"),
            ErrorKind::RESP3NotSupported => Some("Redis 6 or later is needed"),
            ErrorKind::Server(ServerErrorKind::NoPerm) => {
                Some("the user of the URL needs the rights to publish and subscribe")
            }
            _ if error.code() == Some("NOAUTH") => Some("put the password into the URL: redis://:PASSWORD@HOST"),
            _ if error.code() == Some("WRONGPASS") => Some("check the user and the password of the URL"),
            _ => None,
        };
        let trouble = Trouble::new(error.to_string()).hint(hint);
        // The name of this room's stream is taken by something else.
        if error.code() == Some("WRONGTYPE") { trouble.of_message() } else { trouble }
    }
}

impl Broker for Channels {
    type Line = Connection;

    const BARE: bool = true;

    fn name(&self) -> String {
        format!("redis {} {} {}", self.target, self.lobby, self.prefix)
    }

    async fn connect(&self, handle: &Handle) -> Result<Connection, Trouble> {
        Connection::open(self.clone(), handle.metrics().clone()).await
    }
}

impl Channels {
    /// Connects, and answers in words what is there.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn check(&self) -> Result<String, Trouble> {
        let mut connection = Connection::open(self.clone(), Metrics::new()).await?;
        connection.subscribe().await?;
        let version = version(&mut connection.redis).await;
        Ok(format!("Redis {version}, which lets this user listen to {} and {}*", self.lobby, self.prefix))
    }
}

/// A connection that publishes and listens.
pub struct Connection {
    channels: Channels,
    metrics: Metrics,
    redis: MultiplexedConnection,
    came: mpsc::UnboundedReceiver<PushInfo>,
    waiting: Arc<AtomicUsize>,
    commands: Commands,
    /// What was published and has not come back: it comes back once.
    own: HashMap<(String, String), usize>,
    listening: bool,
    alive: JoinHandle<Trouble>,
}

/// Which Redis it is, if it says so.
pub(super) async fn version(redis: &mut MultiplexedConnection) -> String {
    let info: String = redis::cmd("INFO").arg("server").query_async(redis).await.unwrap_or_default();
    info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or("of unknown version").to_string()
}

/// Gives commands to Redis: all that wait at once, in the order in which they came. Those that are sent beside each other
/// may overtake one another.
pub(super) struct Commands {
    waiting: mpsc::UnboundedSender<(Cmd, oneshot::Sender<Result<(), Trouble>>)>,
    task: JoinHandle<()>,
}

impl Commands {
    pub fn new(mut redis: MultiplexedConnection) -> Commands {
        let (waiting, mut queue) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let mut group: Vec<(Cmd, oneshot::Sender<_>)> = Vec::new();
            while queue.recv_many(&mut group, TOGETHER_MAX).await > 0 {
                let mut commands = redis::pipe();
                let (given, done): (Vec<_>, Vec<_>) = group.drain(..).unzip();
                for command in given {
                    commands.add_command(command);
                }
                let answers: RedisResult<Vec<RedisResult<Value>>> =
                    commands.ignore_errors().query_async(&mut redis).await;
                let (answers, broken) = match answers {
                    Ok(answers) => (answers, ended()),
                    Err(error) => (Vec::new(), error.into()),
                };
                let mut answers = answers.into_iter();
                for done in done {
                    let answer = answers.next().map(|answer| answer.map(drop).map_err(Trouble::from));
                    // Whoever has ended does not ask.
                    let _ = done.send(answer.unwrap_or_else(|| Err(broken.clone())));
                }
            }
        });
        Commands { waiting, task }
    }

    /// Gives one; done once Redis has answered.
    pub fn send(&self, command: Cmd) -> BoxFuture<'static, Result<(), Trouble>> {
        let (done, answer) = oneshot::channel();
        let sent = self.waiting.send((command, done));
        Box::pin(async move {
            sent.map_err(|_| ended())?;
            answer.await.unwrap_or_else(|_| Err(ended()))
        })
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) fn ended() -> Trouble {
    Trouble::new("the connection has ended")
}

/// Asks again and again whether Redis is there, and ends with why it is not: a connection may be dead without a word.
pub(super) fn watch(mut redis: MultiplexedConnection) -> JoinHandle<Trouble> {
    tokio::spawn(async move {
        let mut due = interval(PING_EVERY);
        loop {
            due.tick().await;
            let ping = redis::cmd("PING");
            match timeout(ANSWER_WAIT, ping.query_async::<Value>(&mut redis)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return error.into(),
                Err(_) => return Trouble::new("Redis has fallen silent"),
            }
        }
    })
}

impl Connection {
    async fn open(channels: Channels, metrics: Metrics) -> Result<Connection, Trouble> {
        let (push, came) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let counted = waiting.clone();
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_WAIT))
            .set_response_timeout(Some(ANSWER_WAIT))
            .set_push_sender(move |info: PushInfo| {
                // What comes beyond the bound is dropped and stays counted, which ends the connection.
                let bytes = size(&info);
                let room = counted.fetch_add(bytes, Ordering::Relaxed) + bytes <= WAITING_BYTES_MAX;
                if room { push.send(info).map_err(|_| SendError) } else { Err(SendError) }
            });
        let redis = channels.target.open(&config).await?;
        let (commands, alive) = (Commands::new(redis.clone()), watch(redis.clone()));
        let own = HashMap::new();
        Ok(Connection { channels, metrics, redis, came, waiting, commands, own, listening: false, alive })
    }

    async fn subscribe(&mut self) -> Result<(), Trouble> {
        let Channels { lobby, prefix, .. } = &self.channels;
        self.redis.subscribe(lobby).await?;
        self.redis.psubscribe(format!("{}*", escaped(prefix))).await?;
        self.listening = true;
        Ok(())
    }

    /// A message of somebody else.
    fn draft(&mut self, info: &PushInfo) -> Option<Draft> {
        let (pattern, channel, payload) = match (&info.kind, &info.data[..]) {
            (PushKind::Message, [channel, payload]) => (false, channel, payload),
            (PushKind::PMessage, [_, channel, payload]) => (true, channel, payload),
            _ => return None,
        };
        let (Value::BulkString(channel), Value::BulkString(payload)) = (channel, payload) else { return None };
        let channel = std::str::from_utf8(channel).ok()?;
        // The channel of the lobby may fit the pattern of the others: then it comes twice.
        if pattern && channel == self.channels.lobby {
            return None;
        }
        let room = match self.channels.room(channel) {
            Some(room) => room,
            None => {
                count(&self.metrics.malformed, "channel");
                return None;
            }
        };
        let text = match std::str::from_utf8(payload) {
            Ok(text) if text.len() <= PAYLOAD_BYTES_MAX => text,
            Ok(_) => {
                count(&self.metrics.malformed, "length");
                return None;
            }
            Err(_) => {
                count(&self.metrics.malformed, "body");
                return None;
            }
        };
        if let Some(times) = self.own.get_mut(&(channel.to_owned(), text.to_owned())) {
            *times -= 1;
            if *times == 0 {
                self.own.remove(&(channel.to_owned(), text.to_owned()));
            }
            return None;
        }
        Some(Draft { name: Some(GUEST.into()), via: Via::Redis, ..Draft::new(room, text) })
    }
}

/// What a push takes in memory, about.
fn size(info: &PushInfo) -> usize {
    let bytes = |value: &Value| match value {
        Value::BulkString(bytes) => bytes.len(),
        _ => 0,
    };
    64 + info.data.iter().map(bytes).sum::<usize>()
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.alive.abort();
    }
}

impl Line for Connection {
    async fn listen(&mut self, _: Place) -> Result<(), Trouble> {
        self.subscribe().await
    }

    fn send(&mut self, message: &Message) -> BoxFuture<'static, Result<(), Trouble>> {
        let channel = self.channels.of(&message.room);
        let text = message.payload.text().unwrap_or_default();
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(&channel).arg(text);
        if self.listening {
            *self.own.entry((channel, text.to_owned())).or_default() += 1;
        }
        self.commands.send(publish)
    }

    async fn receive(&mut self) -> Result<Vec<Draft>, Trouble> {
        loop {
            if self.waiting.load(Ordering::Relaxed) > WAITING_BYTES_MAX {
                return Err(Trouble::new("more came than could be kept: some of it is lost"));
            }
            let first = tokio::select! {
                came = self.came.recv() => came,
                trouble = &mut self.alive => {
                    return Err(trouble.unwrap_or_else(|_| Trouble::new("the connection has ended")));
                }
            };
            let Some(first) = first else { return Err(Trouble::new("the connection has ended")) };
            let mut drafts = Vec::new();
            let mut next = Some(first);
            while let Some(info) = next {
                self.waiting.fetch_sub(size(&info), Ordering::Relaxed);
                if info.kind == PushKind::Disconnection {
                    return Err(Trouble::new("Redis has closed the connection"));
                }
                drafts.extend(self.draft(&info));
                next = if drafts.len() < TOGETHER_MAX { self.came.try_recv().ok() } else { None };
            }
            if !drafts.is_empty() {
                return Ok(drafts);
            }
        }
    }

    async fn kept(&mut self) -> Result<(), Trouble> {
        Ok(())
    }

    async fn close(self) {}
}

/// A pattern that stands for these very letters.
pub(super) fn escaped(prefix: &str) -> String {
    let mut pattern = String::with_capacity(prefix.len());
    for letter in prefix.chars() {
        if matches!(letter, '*' | '?' | '[' | ']' | '\\' | '^') {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_stand_for_rooms() {
        let target = "redis://localhost".parse().unwrap();
        let channels = Channels { target, lobby: "chat_messages".into(), prefix: "chat.".into() };
        for (channel, room) in [
            ("chat_messages", Some("lobby")),
            ("chat.nodejs", Some("nodejs")),
            ("chat.lobby", Some("lobby")),
            ("chat.", None),
            ("chat.Not A Room", None),
            ("chat.~control", None),
            ("chatter", None),
        ] {
            assert_eq!(channels.room(channel).as_ref().map(Room::as_str), room, "{channel}");
        }
        assert_eq!(channels.of(&Room::lobby()), "chat_messages");
        assert_eq!(channels.of(&Room::new("a.b").unwrap()), "chat.a.b");
        assert_eq!(escaped("a*[x]?"), "a\\*\\[x\\]\\?");
    }
}
