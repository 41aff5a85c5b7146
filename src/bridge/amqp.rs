//! An AMQP 0-9-1 broker: where it is, how it is reached, what its refusals mean, and the bridge to an exchange of it.
//!
//! The bridge publishes persistent messages and waits for confirms. It reads the durable queue that the nodes of one mesh
//! share, and acknowledges once the log has what came on disk: a `message-id` is the key of its entry, so it is one message
//! however often it is delivered, and whichever node takes it. Headers say which meshes a message has passed, so none goes
//! round.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, pending};
use futures_util::stream::ReadyChunks;
use lapin::PublisherConfirm;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer, ErrorKind, ExchangeKind,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::session::{Broker, Line, Place};
use super::{GUEST, TOPIC, Trouble, amqp_sieve};
use crate::handle::{Draft, Handle, Message, NAME_BYTES_MAX, PAYLOAD_BYTES_MAX, Via};
use crate::id::{Key, Room};
use crate::metrics::count;

/// How long a broker may take to answer.
const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// Seconds without a sign of life after which a connection is given up, unless the URL says otherwise.
const HEARTBEAT_SECS: u16 = 10;
/// How often it is looked whether a connection that gives nothing is there.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long the broker may take for an acknowledgement.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// When a message is given again that a queue could not take; after that it is passed over.
const NACKED_AGAIN_MS: [u64; 5] = [500, 1_000, 2_000, 4_000, 8_000];
/// The longest name that AMQP knows, in bytes.
const NAME_LEN_MAX: usize = 255;
/// Messages that the broker gives before the first of them is acknowledged.
pub const PREFETCH: u16 = 256;
/// Messages that are kept and acknowledged together; the broker fills up meanwhile.
pub(super) const TOGETHER_MAX: usize = PREFETCH as usize / 2;
/// How long the last words may take at the end.
pub(super) const CLOSE_WAIT: Duration = Duration::from_secs(1);
/// A queue that no node of its mesh reads is deleted after so long, in milliseconds: 7 days.
const QUEUE_EXPIRES_MS: i32 = 7 * 24 * 3600 * 1000;

/// Headers of a message.
mod header {
    pub const NODE: &str = "x-hubless-node";
    pub const NAME: &str = "x-hubless-name";
    /// Names the room where the routing key does not.
    pub const ROOM: &str = "x-hubless-room";
    pub const MESH: &str = "x-hubless-mesh";
    pub const SITE: &str = "x-hubless-site";
    /// How many meshes it has passed.
    pub const HOPS: &str = "x-hubless-hops";
    /// Which: `MESH/SITE`, separated by commas.
    pub const PATH: &str = "x-hubless-path";
}

/// A broker by its URL. What it shows of itself holds neither user nor password.
#[derive(Clone)]
pub struct Target(AMQPUri);

impl FromStr for Target {
    type Err = String;

    fn from_str(url: &str) -> Result<Target, String> {
        // The text itself may hold a password.
        let bad =
            || "this is no AMQP URL: amqp://[USER:PASSWORD@]HOST[:PORT][/VHOST], or amqps:// with TLS".to_string();
        let uri: AMQPUri = url.parse().map_err(|_| bad())?;
        // The parser is content with less.
        if !url.contains("://") {
            return Err(bad());
        }
        match uri.scheme {
            AMQPScheme::AMQP => Ok(Target(uri)),
            AMQPScheme::AMQPS => super::begin_tls().map(|()| Target(uri)),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri { authority, vhost, .. } = &self.0;
        write!(f, "{}:{}", authority.host.to_ascii_lowercase(), authority.port)?;
        if vhost == "/" { Ok(()) } else { write!(f, "/{vhost}") }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({self})")
    }
}

impl From<lapin::Error> for Trouble {
    fn from(error: lapin::Error) -> Trouble {
        match error.kind() {
            ErrorKind::ProtocolError(refusal) => {
                let hint = match refusal.get_id() {
                    403 => Some("the user of the URL may not do this: check its name, password and permissions"),
                    404 => Some("it is not there: check the names given"),
                    406 => Some(
                        "it is there already and differs in the property that is named: declare it alike in the other \
                         program, delete it, or give another name",
                    ),
                    530 => Some("the vhost is not there, or the user of the URL may not use it"),
                    _ => None,
                };
                Trouble::new(refusal.get_message().to_string()).hint(hint)
            }
            ErrorKind::IOError(error) => Trouble::new(error.to_string()),
            ErrorKind::MissingHeartbeatError => Trouble::new("the broker has fallen silent"),
            _ => Trouble::new(error.to_string()),
        }
    }
}

impl Target {
    /// Connects as `name`, which the broker shows to its operator.
    ///
    /// # Errors
    /// [`Trouble`], also if the broker takes longer than 10 s.
    pub(super) async fn connect(&self, name: String) -> Result<Connection, Trouble> {
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let mut uri = self.0.clone();
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECS);
        let connected = timeout(CONNECT_WAIT, amqp_sieve::connect(uri, properties)).await;
        Ok(connected.map_err(|_| Trouble::new("the broker does not answer"))??)
    }
}

/// How an exchange gives messages to queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExchangeType {
    /// To all of them.
    #[default]
    Fanout,
    /// To those bound with a pattern that the routing key fits.
    Topic,
    /// To those bound with the very routing key.
    Direct,
}

impl FromStr for ExchangeType {
    type Err = String;

    fn from_str(word: &str) -> Result<ExchangeType, String> {
        match word {
            "fanout" => Ok(ExchangeType::Fanout),
            "topic" => Ok(ExchangeType::Topic),
            "direct" => Ok(ExchangeType::Direct),
            _ => Err("fanout, topic or direct".into()),
        }
    }
}

impl From<ExchangeType> for ExchangeKind {
    fn from(kind: ExchangeType) -> ExchangeKind {
        match kind {
            ExchangeType::Fanout => ExchangeKind::Fanout,
            ExchangeType::Topic => ExchangeKind::Topic,
            ExchangeType::Direct => ExchangeKind::Direct,
        }
    }
}

/// An exchange, and how it is read.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The broker.
    pub target: Target,
    /// The exchange, made where it is missing; durable.
    pub exchange: String,
    /// How it gives messages to queues.
    pub kind: ExchangeType,
    /// The durable queue that nodes of this mesh share; none: `hubless.MESH.SITE`.
    pub queue: Option<String>,
    /// No such queue: what is said while no node listens is lost to the mesh.
    pub live: bool,
    /// Routing keys to bind the queue with, besides those of the rooms.
    pub bind: Vec<String>,
}

impl Exchange {
    /// Connects and declares the exchange, and answers in words what is there.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn check(&self) -> Result<String, Trouble> {
        let connection = self.target.connect("hubless check".into()).await?;
        let channel = connection.create_channel().await?;
        self.declare(&channel).await?;
        let _ = timeout(CLOSE_WAIT, connection.close(200, "".into())).await;
        let kind = match self.kind {
            ExchangeType::Fanout => "fanout",
            ExchangeType::Topic => "topic",
            ExchangeType::Direct => "direct",
        };
        Ok(format!("an AMQP 0-9-1 broker with the durable {kind} exchange {}", self.exchange))
    }

    /// What is wrong with the names, if anything.
    pub(super) fn check_names(&self) -> Result<(), String> {
        for name in [Some(&self.exchange), self.queue.as_ref()].into_iter().flatten().chain(&self.bind) {
            if name.len() > NAME_LEN_MAX {
                let begin: String = name.chars().take(20).collect();
                return Err(format!("the name {begin}… has {} bytes, where AMQP knows {NAME_LEN_MAX}", name.len()));
            }
        }
        Ok(())
    }

    async fn declare(&self, channel: &Channel) -> Result<(), Trouble> {
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let (exchange, none) = (self.exchange.as_str().into(), FieldTable::default());
        Ok(channel.exchange_declare(exchange, self.kind.into(), durable, none).await?)
    }
}

impl Broker for Exchange {
    type Line = Connected;

    const BARE: bool = false;

    fn name(&self) -> String {
        format!("amqp {} {}", self.target, self.exchange)
    }

    async fn connect(&self, handle: &Handle) -> Result<Connected, Trouble> {
        let info = handle.info();
        let connection = self.target.connect(format!("hubless {} of {}", info.name, info.mesh)).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        self.declare(&channel).await?;
        let (out, waiting) = mpsc::unbounded_channel();
        let publishing = tokio::spawn(publish(channel.clone(), self.exchange.clone(), waiting));
        let (exchange, handle, bound) = (self.clone(), handle.clone(), HashSet::new());
        Ok(Connected { exchange, handle, connection, channel, out, publishing, source: None, place: None, bound })
    }
}

/// A connection that publishes, and reads the queue once this node leads.
pub struct Connected {
    exchange: Exchange,
    handle: Handle,
    connection: Connection,
    channel: Channel,
    /// What is to be published, in order. At most what may be out.
    out: mpsc::UnboundedSender<Publish>,
    publishing: JoinHandle<()>,
    source: Option<Source>,
    place: Option<Place>,
    /// Rooms whose routing keys the queue is bound with, where only the very key will do.
    bound: HashSet<Room>,
}

/// A text on its way.
struct Publish {
    key: String,
    text: Bytes,
    properties: BasicProperties,
    /// A queue to be bound with the key first, and the channel that has it.
    bind: Option<(Channel, String)>,
    done: oneshot::Sender<lapin::Result<PublisherConfirm>>,
}

/// Hands over one text after the other: what is published at one time may overtake one another.
async fn publish(channel: Channel, exchange: String, mut waiting: mpsc::UnboundedReceiver<Publish>) {
    while let Some(Publish { key, text, properties, bind, done }) = waiting.recv().await {
        let (exchange, key) = (ShortString::from(exchange.as_str()), ShortString::from(key));
        let sent = async {
            if let Some((reading, queue)) = bind {
                let (options, none) = (QueueBindOptions::default(), FieldTable::default());
                reading.queue_bind(queue.into(), exchange.clone(), key.clone(), options, none).await?;
            }
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            channel.basic_publish(exchange, key, options, &text, properties).await
        };
        // Whoever has ended does not ask.
        let _ = done.send(sent.await);
    }
}

/// A queue that is read, over a connection of its own: a broker that is short of memory or disk stops those that publish,
/// and is helped by those that read.
struct Source {
    connection: Connection,
    channel: Channel,
    queue: String,
    deliveries: ReadyChunks<Consumer>,
    /// The last one taken and not acknowledged.
    last: Option<Delivery>,
}

impl Connected {
    /// A message of somebody else; none if it has been here before, or is no message.
    fn draft(&self, delivery: &Delivery) -> Option<Draft> {
        let path = header(delivery, header::PATH).unwrap_or_default();
        if self.place.as_ref().is_some_and(|place| place.is_in(path)) {
            return None;
        }
        match draft(delivery) {
            Ok(draft) => Some(draft),
            Err(reason) => {
                tracing::warn!("a message of {} bytes is not kept: {reason}", delivery.data.len());
                count(&self.handle.metrics().malformed, reason);
                None
            }
        }
    }

    fn properties(&self, message: &Message) -> BasicProperties {
        let text = |text: &str| AMQPValue::LongString(LongString::from(text));
        let mut headers = FieldTable::default();
        let place = self.place.as_ref().map(Place::to_string).unwrap_or_default();
        for (name, value) in [
            (header::NODE, text(&message.id.run.node.to_string())),
            (header::NAME, text(&message.name)),
            (header::ROOM, text(message.room.as_str())),
            (header::MESH, text(&self.handle.info().mesh)),
            (header::SITE, text(self.place.as_ref().map_or("", |place| &place.site))),
            (header::HOPS, AMQPValue::LongInt(1)),
            (header::PATH, text(&place)),
        ] {
            headers.insert(name.into(), value);
        }
        BasicProperties::default()
            .with_message_id(message.id.to_string().into())
            .with_content_type("text/plain; charset=utf-8".into())
            .with_timestamp(message.hlc.wall_ms() / 1000)
            .with_app_id("hubless".into())
            .with_delivery_mode(2)
            .with_headers(headers)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.publishing.abort();
    }
}

impl Line for Connected {
    async fn listen(&mut self, place: Place) -> Result<(), Trouble> {
        let info = self.handle.info();
        let connection =
            self.exchange.target.connect(format!("hubless {} of {}, reading", info.name, info.mesh)).await?;
        let channel = connection.create_channel().await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let Exchange { queue, live, kind, bind, .. } = self.exchange.clone();
        let mut arguments = FieldTable::default();
        let options = if live {
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() }
        } else {
            arguments.insert("x-expires".into(), AMQPValue::LongInt(QUEUE_EXPIRES_MS));
            QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() }
        };
        let name = match queue {
            _ if live => String::new(),
            Some(queue) => queue,
            None => format!("hubless.{}.{}", place.mesh, place.site),
        };
        self.place = Some(place);
        let queue = channel.queue_declare(name.as_str().into(), options, arguments).await?.name().to_string();
        let mut keys = bind;
        match kind {
            ExchangeType::Fanout => keys.push(String::new()),
            ExchangeType::Topic => keys.push(format!("{TOPIC}.#")),
            ExchangeType::Direct => {
                let rooms = self.handle.rooms().await.unwrap_or_default().into_iter().map(|known| known.room);
                self.bound = rooms.chain([Room::lobby()]).collect();
                keys.extend(self.bound.iter().map(routing_key));
            }
        }
        let none = FieldTable::default();
        for key in keys {
            let (queue, exchange) = (queue.as_str().into(), self.exchange.exchange.as_str().into());
            channel.queue_bind(queue, exchange, key.into(), QueueBindOptions::default(), none.clone()).await?;
        }
        // Acknowledged in any case: it is what bounds how much comes at a time.
        let options = BasicConsumeOptions::default();
        let consumer = channel.basic_consume(queue.as_str().into(), "".into(), options, none).await?;
        let deliveries = consumer.ready_chunks(TOGETHER_MAX);
        self.source = Some(Source { connection, channel, queue, deliveries, last: None });
        Ok(())
    }

    fn send(&mut self, message: &Message) -> BoxFuture<'static, Result<(), Trouble>> {
        // A room that is new here is to be heard, too.
        let new = self.exchange.kind == ExchangeType::Direct && self.bound.insert(message.room.clone());
        let mut bind =
            self.source.as_ref().filter(|_| new).map(|source| (source.channel.clone(), source.queue.clone()));
        let (key, text, properties) =
            (routing_key(&message.room), message.payload.bytes().clone(), self.properties(message));
        let out = self.out.clone();
        let mut give = move || {
            let (done, answer) = oneshot::channel();
            let (key, text, properties) = (key.clone(), text.clone(), properties.clone());
            // A connection that has ended drops the question, which says so.
            let _ = out.send(Publish { key, text, properties, bind: bind.take(), done });
            answer
        };
        let mut given = give();
        let ended = || Trouble::new("the connection has ended");
        Box::pin(async move {
            // It is said again by itself when a queue could not take it: others have it.
            let mut pauses = NACKED_AGAIN_MS.map(Duration::from_millis).into_iter();
            loop {
                match given.await.map_err(|_| ended())??.await? {
                    // One that fits no queue has come as far as it can.
                    Confirmation::Ack(_) | Confirmation::NotRequested => return Ok(()),
                    Confirmation::Nack(_) => {
                        let full = || Trouble::new("a queue of the broker does not take it").of_message();
                        tokio::time::sleep(pauses.next().ok_or_else(full)?).await;
                    }
                }
                given = give();
            }
        })
    }

    async fn receive(&mut self) -> Result<Vec<Draft>, Trouble> {
        let ended = || Trouble::new("the connection has ended");
        let reading =
            self.source.as_ref().map(|source| (source.channel.status().clone(), source.connection.status().clone()));
        let up = || {
            let writes = self.connection.status().connected() && self.channel.status().connected();
            writes && reading.as_ref().is_none_or(|(channel, connection)| channel.connected() && connection.connected())
        };
        let look = async {
            while up() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let next = async {
            match &mut self.source {
                Some(source) => source.deliveries.next().await,
                None => pending().await,
            }
        };
        let chunk = tokio::select! {
            chunk = next => chunk.ok_or_else(|| Trouble::new("the queue was deleted, or the connection has ended"))?,
            () = look => return Err(ended()),
        };
        let mut drafts = Vec::with_capacity(chunk.len());
        let mut last = None;
        for delivery in chunk {
            let delivery = delivery?;
            drafts.extend(self.draft(&delivery));
            last = Some(delivery);
        }
        if let Some(source) = &mut self.source {
            source.last = last;
        }
        Ok(drafts)
    }

    async fn kept(&mut self) -> Result<(), Trouble> {
        if let Some(last) = self.source.as_mut().and_then(|source| source.last.take()) {
            let taken = timeout(ANSWER_WAIT, last.acker.ack(BasicAckOptions { multiple: true })).await;
            taken.map_err(|_| Trouble::new("the broker takes no acknowledgements"))??;
        }
        Ok(())
    }

    async fn close(mut self) {
        // Also sends the acknowledgements that are still here; a broker that is gone takes nothing.
        if let Some(source) = self.source.take() {
            let _ = timeout(CLOSE_WAIT, source.connection.close(200, "".into())).await;
        }
        let _ = timeout(CLOSE_WAIT, self.connection.close(200, "".into())).await;
    }
}

fn routing_key(room: &Room) -> String {
    if *room == Room::lobby() { TOPIC.into() } else { format!("{TOPIC}.{room}") }
}

fn header<'a>(delivery: &'a Delivery, name: &str) -> Option<&'a str> {
    let value = delivery.properties.headers().as_ref()?.inner().get(name)?;
    std::str::from_utf8(value.as_long_string()?.as_bytes()).ok()
}

/// A message as it is kept, or why it is not.
pub(super) fn draft(delivery: &Delivery) -> Result<Draft, &'static str> {
    let text = std::str::from_utf8(&delivery.data).map_err(|_| "body")?;
    if text.len() > PAYLOAD_BYTES_MAX {
        return Err("length");
    }
    let id = delivery.properties.message_id().as_ref().map(|id| id.as_str()).filter(|id| !id.is_empty());
    let name = header(delivery, header::NAME).filter(|name| name.len() <= NAME_BYTES_MAX);
    Ok(Draft {
        name: Some(Arc::from(name.unwrap_or(GUEST))),
        key: id.map(Key::of_client_id),
        via: Via::Amqp,
        ..Draft::new(room(header(delivery, header::ROOM), delivery.routing_key.as_str()), text)
    })
}

/// The room of a message: by its header, else by its routing key; else the lobby.
fn room(header: Option<&str>, routing_key: &str) -> Room {
    let named = header.and_then(|room| Room::new(room).ok());
    named.or_else(|| super::room(routing_key)).unwrap_or_else(Room::lobby)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_shows_where_it_is_and_no_secret() {
        for (url, shown) in [
            ("amqp://localhost", "localhost:5672"),
            ("amqp://u:secret@Broker.lan:5673", "broker.lan:5673"),
            ("amqp://u:secret@10.0.0.1/%2f", "10.0.0.1:5672"),
            ("amqp://10.0.0.1/chat", "10.0.0.1:5672/chat"),
        ] {
            let target: Target = url.parse().unwrap();
            assert_eq!(target.to_string(), shown, "{url}");
            assert!(!format!("{target:?}").contains("secret"));
        }
        for bad in ["localhost", "http://localhost", "amqp://u:secret@[::", "amqp:/u:secret@", ""] {
            let error = bad.parse::<Target>().unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn rooms_come_from_headers_and_routing_keys() {
        for (header, key, expected) in [
            (None, "", "lobby"),
            (None, "chat", "lobby"),
            (None, "chat.nodejs", "nodejs"),
            (None, "chat.lobby", "lobby"),
            (None, "chatter.x", "lobby"),
            (None, "chat.Not/A/Room", "lobby"),
            (Some("ops"), "chat.nodejs", "ops"),
            (Some("../x"), "chat.nodejs", "nodejs"),
        ] {
            assert_eq!(room(header, key).as_str(), expected, "{header:?} {key}");
        }
    }
}
