//! Bridges: how fast messages go from a log to a broker and back, beside a client that does nothing but that.
//!
//! Everything in one process, with a Redis and a RabbitMQ of its own, one after the other, so that they share one moment of
//! the machine.

#[path = "../../common/rabbit.rs"]
#[allow(dead_code, clippy::unwrap_used, clippy::expect_used, reason = "made for tests")]
mod rabbit;

use std::error::Error;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use hubless::bridge::amqp::{Exchange, ExchangeType};
use hubless::bridge::redis::Channels;
use hubless::bridge::{Bridge, Options, Target};
use hubless::config::Listen;
use hubless::handle::Draft;
use hubless::{Handle, Node, Room};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use rabbit::Rabbit;
use tempfile::TempDir;

/// Messages of each line, and bytes of one.
const COUNT: usize = 20_000;
const SIZE: usize = 100;
/// What is out and not confirmed, or given and not acknowledged.
const OUT_MAX: usize = 256;

use crate::free_port;

type Answer<T> = Result<T, Box<dyn Error>>;

/// Waits until `condition` holds.
fn eventually(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < deadline, "not within {deadline:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Ends with its value.
struct Redis(Child);

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures, prints a table, and answers whether all messages came.
pub fn run() -> Answer<bool> {
    let port = free_port();
    let folder = TempDir::with_prefix("hlbench")?;
    let mut redis = Command::new("redis-server");
    redis.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]);
    let _redis = Redis(redis.arg(folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
    eventually(Duration::from_secs(10), "Redis serves", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let rabbit = Rabbit::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let lines = runtime.block_on(measure(&format!("redis://127.0.0.1:{port}"), &rabbit.url()))?;
    println!("| bridge, {SIZE} B | hubless | bare client | ratio |\n|---|---|---|---|");
    for (what, ours, bare) in lines {
        println!("| {what} | {ours:.0}/s | {bare:.0}/s | {:.2}× |", ours / bare);
    }
    Ok(true)
}

async fn measure(redis: &str, amqp: &str) -> Answer<Vec<(&'static str, f64, f64)>> {
    let channels =
        Target::Redis(Channels { target: redis.parse()?, lobby: "chat_messages".into(), prefix: "chat.".into() });
    let exchange = |exchange: &str| -> Answer<Target> {
        Ok(Target::Amqp(Exchange {
            target: amqp.parse()?,
            exchange: exchange.into(),
            kind: ExchangeType::Fanout,
            queue: Some(format!("hubless {exchange}")),
            live: false,
            bind: Vec::new(),
        }))
    };
    let to_redis = ("log → Redis channel", outward(channels).await?, bare_redis(redis).await?);
    let to_amqp = ("log → AMQP, confirmed", outward(exchange("out")?).await?, bare_publish(amqp).await?);
    let from_amqp = ("AMQP → durable log", inward(amqp, exchange("in")?).await?, bare_consume(amqp).await?);
    Ok(vec![to_redis, to_amqp, from_amqp])
}

async fn start(folder: &TempDir) -> Answer<Handle> {
    let node = Node::builder().name("bench").mdns(false).listen(Listen::At(([127, 0, 0, 1], 0).into()));
    Ok(node.data_dir(Some(folder.path().into())).start().await?)
}

fn text() -> String {
    "x".repeat(SIZE)
}

/// From a full log into a broker, from the first message that it confirms to the last.
async fn outward(target: Target) -> Answer<f64> {
    let folder = TempDir::with_prefix("hlbench")?;
    let node = start(&folder).await?;
    for _ in 0..COUNT / 500 {
        node.publish_all((0..500).map(|_| Draft::new(Room::lobby(), text())).collect()).await?;
    }
    let options = Options { target, relay: false, site: Some("bench".into()), from_start: true };
    let bridge = Bridge::start(node.clone(), options);
    let rate = timed(|| node.bridges().first().map_or(0, |bridge| bridge.sent) as usize).await;
    bridge.close().await;
    node.shutdown().await;
    Ok(rate)
}

/// From a full queue into the log, each on disk before it is acknowledged.
async fn inward(amqp: &str, target: Target) -> Answer<f64> {
    let channel = channel(amqp).await?;
    fill(&channel, "in", "hubless in", true).await?;
    let folder = TempDir::with_prefix("hlbench")?;
    let node = start(&folder).await?;
    let options = Options { target, relay: false, site: Some("bench".into()), from_start: false };
    let bridge = Bridge::start(node.clone(), options);
    let rate = timed(|| node.bridges().first().map_or(0, |bridge| bridge.received) as usize).await;
    bridge.close().await;
    node.shutdown().await;
    Ok(rate)
}

/// How many a second, from the first on.
async fn timed(count: impl Fn() -> usize) -> f64 {
    while count() == 0 {
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    let (began, first) = (Instant::now(), count());
    while count() < COUNT {
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    (COUNT - first) as f64 / began.elapsed().as_secs_f64()
}

async fn bare_redis(url: &str) -> Answer<f64> {
    let mut redis = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    let began = Instant::now();
    for _ in 0..COUNT / OUT_MAX {
        let mut commands = redis::pipe();
        for _ in 0..OUT_MAX {
            commands.cmd("PUBLISH").arg("bare").arg(text()).ignore();
        }
        commands.query_async::<()>(&mut redis).await?;
    }
    Ok((COUNT / OUT_MAX * OUT_MAX) as f64 / began.elapsed().as_secs_f64())
}

async fn channel(url: &str) -> Answer<Channel> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    // It ends with the process.
    std::mem::forget(connection);
    Ok(channel)
}

/// Publishes to a queue behind an exchange as the bridge does, at most so many out; answers how many a second.
async fn fill(channel: &Channel, exchange: &str, queue: &str, expires: bool) -> Answer<f64> {
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(exchange.into(), ExchangeKind::Fanout, durable, FieldTable::default()).await?;
    let mut arguments = FieldTable::default();
    if expires {
        arguments.insert("x-expires".into(), lapin::types::AMQPValue::LongInt(7 * 24 * 3600 * 1000));
    }
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), durable, arguments).await?;
    let bind = QueueBindOptions::default();
    channel.queue_bind(queue.into(), exchange.into(), "".into(), bind, FieldTable::default()).await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let began = Instant::now();
    let mut out = FuturesOrdered::new();
    for number in 0..COUNT {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let named =
            BasicProperties::default().with_delivery_mode(2).with_message_id(format!("{queue} {number}").into());
        let text = text();
        let sent = channel.basic_publish(exchange.into(), "".into(), options, text.as_bytes(), named).await?;
        out.push_back(sent);
        while out.len() >= OUT_MAX {
            out.next().await.ok_or("nothing is out")??;
        }
    }
    while let Some(sent) = out.next().await {
        sent?;
    }
    Ok(COUNT as f64 / began.elapsed().as_secs_f64())
}

async fn bare_publish(url: &str) -> Answer<f64> {
    fill(&channel(url).await?, "bare", "bare", false).await
}

async fn bare_consume(url: &str) -> Answer<f64> {
    let channel = channel(url).await?;
    fill(&channel, "bare in", "bare in", false).await?;
    channel.basic_qos(OUT_MAX as u16, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume("bare in".into(), "".into(), options, FieldTable::default()).await?;
    let mut consumer = consumer.ready_chunks(OUT_MAX / 2);
    let (began, mut count) = (Instant::now(), 0);
    while count < COUNT {
        let chunk = consumer.next().await.ok_or("the queue has ended")?;
        count += chunk.len();
        if let Some(last) = chunk.into_iter().next_back() {
            last?.acker.ack(BasicAckOptions { multiple: true }).await?;
        }
    }
    Ok(COUNT as f64 / began.elapsed().as_secs_f64())
}
