//! Our PUB socket, and the ear that tells whether it still speaks.
//!
//! Through it go tickets ([`super::gate::claims`]); the messages wait in [`Feeds`] until the gate has them. The `zeromq` crate's PUB
//! drops silently and can die silently. So publishing is held back long before anything is dropped, and the publisher
//! listens to itself: when it has said things on `mesh`
//! for five seconds of which nothing was heard, it is made anew at a new path, and the gate ends all connections to the old.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use zeromq::{PubSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqError, ZmqMessage};

use super::Task;
use super::folder::{Folder, endpoint};
use super::gate::feed::Feeds;
use super::gate::limits;
use super::gate::zmtp::Parts;
use crate::metrics::Metrics;
use crate::wire::{TOPIC_CHAT, TOPIC_MESH};

/// The publisher is taken for dead when it said things for so long and at least [`UNHEARD_MIN`] times, all unheard.
const UNHEARD: Duration = Duration::from_secs(5);
/// After so many messages, or so many bytes, the gate gets its turn, however busy the sender is.
const IN_ONE_GO_MAX: (u32, usize) = (16, 128 * 1024);
/// A loop that hung for long says few things before the ear gets its turn.
const UNHEARD_MIN: u32 = 5;

/// Our PUB socket.
pub(crate) struct Publisher {
    folder: Arc<Folder>,
    metrics: Metrics,
    feeds: Arc<Feeds>,
    voice: Voice,
    watchdog: Watchdog,
    /// Publishers made so far; names their sockets.
    made: u64,
    path: watch::Sender<PathBuf>,
    /// Messages and bytes sent since others had their turn.
    in_one_go: (u32, usize),
}

/// A socket and the ear that is subscribed to it.
struct Voice {
    socket: PubSocket,
    heard: Arc<AtomicU64>,
    _ear: Task,
}

/// A PUB socket that is being made, beside what else is done: its queue has 100,000 places, which takes milliseconds.
pub(crate) struct Begun(JoinHandle<PubSocket>);

impl Begun {
    /// Begins to make one, for the runtime that this is called on.
    pub(crate) fn new() -> Begun {
        Begun(tokio::task::spawn_blocking(PubSocket::new))
    }
}

impl Voice {
    async fn make(begun: Begun, path: &std::path::Path) -> Result<Voice, ZmqError> {
        let mut socket = begun.0.await.map_err(|_| ZmqError::Other("a socket could not be made"))?;
        socket.bind(&endpoint(path)).await?;
        let mut ear = SubSocket::new();
        ear.subscribe(TOPIC_MESH).await?;
        ear.connect(&endpoint(path)).await?;
        let heard = Arc::new(AtomicU64::new(0));
        let hears = heard.clone();
        let ear = async move {
            loop {
                match ear.recv().await {
                    Ok(_) => hears.fetch_add(1, Relaxed),
                    Err(_) => return,
                };
            }
        };
        Ok(Voice { socket, heard, _ear: Task::spawn(ear) })
    }
}

impl Publisher {
    /// Binds a PUB socket in `folder`.
    pub(crate) async fn make(
        begun: Begun,
        folder: Arc<Folder>,
        metrics: Metrics,
        feeds: Arc<Feeds>,
    ) -> io::Result<Publisher> {
        let path = folder.socket('p', 0);
        let voice = Voice::make(begun, &path).await.map_err(io::Error::other)?;
        let path = watch::Sender::new(path);
        let watchdog = Watchdog::default();
        Ok(Publisher { folder, metrics, feeds, voice, watchdog, made: 1, path, in_one_go: (0, 0) })
    }

    /// Where it is bound.
    pub(crate) fn path(&self) -> watch::Receiver<PathBuf> {
        self.path.subscribe()
    }

    /// Says `body` on `topic` to all that subscribe it.
    pub(crate) async fn send(&mut self, topic: &str, body: Bytes) {
        if topic.len().max(body.len()) > limits::FRAME_BYTES_MAX {
            // Every peer would cut us.
            tracing::error!(topic, bytes = body.len(), "a message too large was not sent");
            return;
        }
        let topic = match topic {
            TOPIC_CHAT => Bytes::from_static(TOPIC_CHAT.as_bytes()),
            TOPIC_MESH => {
                if self.watchdog.is_dead(Instant::now(), self.voice.heard.load(Relaxed)) {
                    self.restart().await;
                }
                Bytes::from_static(TOPIC_MESH.as_bytes())
            }
            other => Bytes::copy_from_slice(other.as_bytes()),
        };
        self.metrics.sent_bytes.inc_by((topic.len() + body.len()) as u64);
        self.say(Parts { first: topic, second: Some(body) }).await;
    }

    /// Says one frame, to all that subscribe what it begins with.
    pub(crate) async fn send_frame(&mut self, frame: Bytes) {
        self.say(Parts { first: frame, second: None }).await;
    }

    /// Ends the socket and removes its file. What is still in it is lost.
    pub(crate) async fn close(self) {
        let Voice { socket, .. } = self.voice;
        let _ = socket.close().await;
    }

    async fn say(&mut self, message: Parts) {
        let (count, bytes) = self.in_one_go;
        self.in_one_go = (count + 1, bytes + message.len());
        let topic = message.first.slice(..message.first.len().min(limits::SUBSCRIPTION_BYTES_MAX));
        let mut said = ZmqMessage::from(topic);
        said.push_back(self.feeds.say(message));
        if let Err(error) = self.voice.socket.send(said).await {
            tracing::warn!(%error, "the publisher does not take messages");
        }
        if self.in_one_go.0 >= IN_ONE_GO_MAX.0 || self.in_one_go.1 >= IN_ONE_GO_MAX.1 {
            self.in_one_go = (0, 0);
            tokio::task::yield_now().await;
        }
    }

    async fn restart(&mut self) {
        tracing::warn!("the publisher has fallen silent and is made anew");
        self.metrics.publisher_restarts.inc();
        let path = self.folder.socket('p', self.made);
        self.made += 1;
        match Voice::make(Begun::new(), &path).await {
            Ok(voice) => {
                let Voice { socket, .. } = std::mem::replace(&mut self.voice, voice);
                self.feeds.lose();
                self.path.send_replace(path);
                tokio::spawn(socket.close());
            }
            Err(error) => tracing::error!(%error, "the publisher cannot be made anew"),
        }
    }
}

/// Tells from what was said and heard whether the publisher is dead.
#[derive(Debug, Default)]
struct Watchdog {
    heard: u64,
    /// When the first thing after the last one heard was said, and how many were since.
    unheard: Option<(Instant, u32)>,
}

impl Watchdog {
    /// Something is about to be said, `heard` were heard; begins anew when it says yes.
    fn is_dead(&mut self, now: Instant, heard: u64) -> bool {
        if heard != self.heard {
            (self.heard, self.unheard) = (heard, None);
        }
        let (since, count) = self.unheard.unwrap_or((now, 0));
        let dead = count >= UNHEARD_MIN && now.duration_since(since) >= UNHEARD;
        if dead {
            *self = Watchdog::default();
        } else {
            self.unheard = Some((since, count + 1));
        }
        dead
    }
}

#[cfg(test)]
impl Publisher {
    /// Makes it dead for the watchdog: it hears nothing, and said something long ago.
    pub(super) fn deafen(&mut self) {
        self.voice._ear = Task::spawn(async {});
        let now = Instant::now();
        self.watchdog.heard = self.voice.heard.load(Relaxed);
        self.watchdog.unheard = now.checked_sub(2 * UNHEARD).map(|since| (since, UNHEARD_MIN));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publisher_that_is_heard_now_and_then_is_alive() {
        let (mut watchdog, start) = (Watchdog::default(), Instant::now());
        for second in 0..100 {
            assert!(!watchdog.is_dead(start + Duration::from_secs(second), second / 4));
        }
    }

    #[test]
    fn a_silent_publisher_is_dead_after_five_seconds_and_has_a_new_life() {
        let (mut watchdog, start) = (Watchdog::default(), Instant::now());
        let dead: Vec<u64> =
            (0..12).filter(|second| watchdog.is_dead(start + Duration::from_secs(*second), 0)).collect();
        assert_eq!(dead, [5, 11]);
    }

    #[test]
    fn a_loop_that_hung_does_not_look_like_a_dead_publisher() {
        let (mut watchdog, start) = (Watchdog::default(), Instant::now());
        assert!(!watchdog.is_dead(start, 0));
        for _ in 0..4 {
            assert!(!watchdog.is_dead(start + Duration::from_secs(60), 0));
        }
    }
}
