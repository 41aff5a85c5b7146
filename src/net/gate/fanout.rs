//! From our publisher to the queues of all callers that subscribe what it says.
//!
//! One connection to the publisher serves all. Over it come tickets; the messages are claimed at once, whatever callers do,
//! and shared by the queues of those who subscribe them.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::feed::{Feed, Feeds};
use super::queue::{Intake, read_now};
use super::zmtp::{self, Broken, Cut, Cutter, Parts, Role};
use super::{ShakeError, limits, shake};

/// A connection to the publisher that hears all it says.
pub(super) struct Fanout {
    publisher: UnixStream,
    intake: Intake,
    cutter: Cutter,
    /// Whom the last message went to.
    audience: Vec<Arc<Feed>>,
    /// What the audience was asked for, and the [`Feeds::version`] of then.
    topic: Bytes,
    version: u64,
}

impl Fanout {
    /// Connects to the publisher at `path`.
    ///
    /// # Errors
    /// What the system says, or that it does not answer.
    pub(super) async fn reach(path: &Path) -> io::Result<Fanout> {
        let hands = async {
            let mut publisher = UnixStream::connect(path).await?;
            shake(&mut publisher, &zmtp::ready(Role::Sub, &[])).await?;
            // Everything.
            publisher.write_all(&zmtp::subscription(true, b"")).await?;
            Ok(publisher)
        };
        match timeout(limits::HANDSHAKE, hands).await {
            Ok(Ok(publisher)) => Ok(Fanout {
                publisher,
                intake: Intake::new(),
                cutter: Cutter::default(),
                audience: Vec::new(),
                topic: Bytes::new(),
                version: 0,
            }),
            Ok(Err::<_, ShakeError>(_)) | Err(_) => Err(io::Error::other("our publisher does not answer")),
        }
    }

    /// Serves the callers, from one publisher after the other, as `path` says; ends with the last.
    pub(super) async fn run(self, mut path: watch::Receiver<PathBuf>, feeds: Arc<Feeds>) {
        let mut fanout = Some(self);
        loop {
            let relay = async {
                if let Some(fanout) = &mut fanout {
                    let Err(error) = fanout.relay(&feeds).await;
                    tracing::warn!(%error, "the publisher has hung up");
                }
                std::future::pending::<Infallible>().await
            };
            let changed = tokio::select! {
                never = relay => match never {},
                changed = path.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            let from = path.borrow_and_update().clone();
            fanout =
                Fanout::reach(&from).await.inspect_err(|error| tracing::warn!(%error, "callers hear nothing")).ok();
        }
    }

    async fn relay(&mut self, feeds: &Feeds) -> io::Result<Infallible> {
        loop {
            self.publisher.readable().await?;
            let Fanout { publisher, intake, .. } = self;
            if intake.read(|bytes| read_now(publisher, bytes))? == Some(0) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.pass(feeds).map_err(io::Error::other)?;
            // What is queued is written before there is more.
            tokio::task::yield_now().await;
        }
    }

    /// Gives away what has come.
    fn pass(&mut self, feeds: &Feeds) -> Result<(), Broken> {
        loop {
            match self.cutter.cut(&mut self.intake.bytes)? {
                Cut::Message(Parts { second: Some(ticket), .. }) => {
                    if let Some(message) = feeds.claim(&ticket) {
                        self.give(&message, feeds);
                    }
                }
                Cut::Message(_) | Cut::Command(_) => return Err(Broken::Command),
                Cut::Part(_) => return Ok(()),
            }
        }
    }

    /// Gives a message to its audience.
    fn give(&mut self, message: &Parts, feeds: &Feeds) {
        let topic = &message.first[..message.first.len().min(limits::SUBSCRIPTION_BYTES_MAX)];
        if self.version != feeds.version() || self.topic != topic {
            (self.audience, self.version) = (feeds.audience(topic), feeds.version());
            self.topic = Bytes::copy_from_slice(topic);
        }
        if !self.audience.is_empty() {
            feeds.give(&self.audience, &message.chunks());
        }
    }
}
