//! The history service: what is published to an AMQP exchange goes through a durable queue into a log.
//!
//! A message is acknowledged once the log has it on disk, so none is lost, whoever dies. One with a `message-id` is kept
//! once however often it is delivered; one without is never taken for another, so a delivery that is repeated is kept again.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{Consumer, ExchangeKind};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::Trouble;
use super::amqp::{CLOSE_WAIT, PREFETCH, TOGETHER_MAX, Target, draft};
use super::supervise::{jittered, keep};
use crate::handle::Handle;
use crate::metrics::count;

/// Pauses between tries to reach the broker, doubling.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// What to listen to.
#[derive(Clone, Debug)]
pub struct Options {
    /// The broker.
    pub target: Target,
    /// The durable queue, made where it is missing.
    pub queue: String,
    /// The durable fanout exchange that it is bound to, made where it is missing.
    pub exchange: String,
}

/// The service, which keeps the log's node running as any handle does.
///
/// Dropping this ends it; [`HistoryService::close`] waits for that.
#[derive(Debug)]
pub struct HistoryService {
    stop: oneshot::Sender<()>,
    connected: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl HistoryService {
    /// Begins to listen, on the runtime this is called from, and does not end because of what the broker does: a broker
    /// that is down is tried again for ever.
    pub fn start(handle: Handle, options: Options) -> HistoryService {
        let (stop, mut stopped) = oneshot::channel();
        let (tell, connected) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut told = None;
            let mut pause = BACK_OFF.0;
            loop {
                let ended = listen(&handle, &options, &tell, &mut stopped).await;
                let Err(trouble) = ended else { break };
                // The node holds the other end of this for as long as it lives; without it nothing is ever kept.
                if handle.peers_changed().has_changed().is_err() {
                    break;
                }
                if tell.send_replace(false) {
                    (told, pause) = (None, BACK_OFF.0);
                }
                // What is said once does not become truer.
                if told.as_ref() != Some(&trouble) {
                    tracing::warn!("the broker at {}: {trouble}; it is tried again and again", options.target);
                    told = Some(trouble);
                }
                tokio::select! {
                    () = sleep(jittered(pause)) => {}
                    _ = &mut stopped => break,
                }
                pause = (pause * 2).min(BACK_OFF.1);
            }
        });
        HistoryService { stop, connected, task }
    }

    /// Whether the broker gives messages now, and every change of that.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.connected.clone()
    }

    /// Ends it; what is not acknowledged by then the broker gives to the next one.
    pub async fn close(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

/// Takes what the queue has until the broker fails, the disk does, or it is `stopped`.
async fn listen(
    handle: &Handle,
    options: &Options,
    tell: &watch::Sender<bool>,
    stopped: &mut oneshot::Receiver<()>,
) -> Result<(), Trouble> {
    let opened = tokio::select! {
        opened = open(options) => opened?,
        _ = &mut *stopped => return Ok(()),
    };
    let (connection, consumer) = opened;
    tracing::info!("the broker at {} gives the queue {}", options.target, options.queue);
    tell.send_replace(true);
    let mut deliveries = consumer.ready_chunks(TOGETHER_MAX);
    let ended = loop {
        let chunk = tokio::select! {
            chunk = deliveries.next() => chunk,
            _ = &mut *stopped => break Ok(()),
        };
        let Some(chunk) = chunk else { break Err(Trouble::new("the queue was deleted, or the connection ended")) };
        if let Err(trouble) = take(handle, chunk).await {
            break Err(trouble);
        }
    };
    // Also sends the acknowledgements that are still here; a broker that is gone takes nothing.
    let _ = tokio::time::timeout(CLOSE_WAIT, connection.close(200, "".into())).await;
    ended
}

async fn open(options: &Options) -> Result<(lapin::Connection, Consumer), Trouble> {
    let Options { target, queue, exchange } = options;
    let connection = target.connect(format!("hubless history-service {queue}")).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let none = FieldTable::default;
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(exchange.as_str().into(), ExchangeKind::Fanout, durable, none()).await?;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.as_str().into(), durable, none()).await?;
    channel
        .queue_bind(queue.as_str().into(), exchange.as_str().into(), "".into(), QueueBindOptions::default(), none())
        .await?;
    let consumer =
        channel.basic_consume(queue.as_str().into(), "".into(), BasicConsumeOptions::default(), none()).await?;
    Ok((connection, consumer))
}

/// Keeps what was delivered, then acknowledges it.
async fn take(handle: &Handle, chunk: Vec<lapin::Result<Delivery>>) -> Result<(), Trouble> {
    let mut drafts = Vec::with_capacity(chunk.len());
    let (mut last, mut failed) = (None, None);
    for delivery in chunk {
        match delivery {
            Ok(delivery) => {
                match draft(&delivery) {
                    Ok(draft) => drafts.push(draft),
                    Err(reason) => {
                        tracing::warn!("a message of {} bytes is not kept: {reason}", delivery.data.len());
                        count(&handle.metrics().malformed, reason);
                    }
                }
                last = Some(delivery);
            }
            Err(error) => failed = Some(error),
        }
    }
    keep(handle, drafts).await.map_err(|error| Trouble::new(format!("nothing is kept: {error}")))?;
    if let Some(last) = last {
        // A connection that has ended meanwhile has them delivered again.
        last.acker.ack(BasicAckOptions { multiple: true }).await?;
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}
