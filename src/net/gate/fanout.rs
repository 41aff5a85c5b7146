//! From our publisher to the queues of all callers that subscribe what it says.
//!
//! One connection to the publisher serves all: what it says is written once by the publisher, read and checked once here,
//! and shared by the queues of those who subscribe it. It is taken at once, whatever callers do.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Buf;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::feed::{Feed, Feeds, MARK_TOPIC};
use super::queue::Intake;
use super::zmtp::{self, Broken, Header, Piece, Role, Walker};
use super::{ShakeError, limits, shake};

/// How a mark begins on its way out of the publisher: the frames [`MARK_TOPIC`] and 8 bytes.
const MARK_HEAD: &[u8] = b"\x01\x04gate\x00\x08";
/// The length of a mark with its frame headers.
const MARK_BYTES: usize = MARK_HEAD.len() + 8;

/// What stands at the front of what came out of the publisher, between two messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Front<'a> {
    /// A mark, with the bytes published before it.
    Mark(u64),
    /// A message, with as much of its first frame as a subscription may ask for.
    Message(&'a [u8]),
    /// The beginning of either.
    Part,
}

impl Front<'_> {
    fn of(bytes: &[u8]) -> Result<Front<'_>, Broken> {
        let Some(header) = Header::parse(bytes)? else { return Ok(Front::Part) };
        let topic = bytes.get(header.bytes..header.bytes + header.len.min(limits::SUBSCRIPTION_BYTES_MAX));
        Ok(match topic {
            _ if header.command => return Err(Broken::Command),
            None => Front::Part,
            Some(topic) if topic == MARK_TOPIC && header.more => match bytes.get(MARK_HEAD.len()..) {
                Some(rest) => rest.first_chunk().map_or(Front::Part, |sent| Front::Mark(u64::from_be_bytes(*sent))),
                None => Front::Part,
            },
            Some(topic) => Front::Message(topic),
        })
    }
}

/// A connection to the publisher that hears all it says.
pub(super) struct Fanout {
    publisher: UnixStream,
    intake: Intake,
    walker: Walker,
    /// Whom the message goes to that is being walked over, or was last.
    audience: Vec<Arc<Feed>>,
    /// What the audience was asked for, and the [`Feeds::version`] of then.
    topic: Vec<u8>,
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
                walker: Walker::default(),
                audience: Vec::new(),
                topic: Vec::new(),
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
            if intake.read(|bytes| publisher.try_read_buf(bytes))? == Some(0) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.pass(feeds).map_err(io::Error::other)?;
            // What is queued is written before there is more.
            tokio::task::yield_now().await;
        }
    }

    /// Gives away what has come.
    fn pass(&mut self, feeds: &Feeds) -> Result<(), Broken> {
        let mut at = 0;
        loop {
            if self.walker.at_border() {
                match Front::of(&self.intake.bytes[at..])? {
                    Front::Part => break,
                    Front::Mark(sent) => {
                        self.give(at, feeds);
                        at = 0;
                        self.intake.bytes.advance(MARK_BYTES);
                        feeds.seen(sent);
                        continue;
                    }
                    Front::Message(topic) if self.version != feeds.version() || self.topic != topic => {
                        let topic = topic.to_vec();
                        self.give(at, feeds);
                        at = 0;
                        (self.audience, self.version) = (feeds.audience(&topic), feeds.version());
                        self.topic = topic;
                    }
                    Front::Message(_) => {}
                }
            }
            match self.walker.step(&self.intake.bytes[at..])? {
                Some(Piece::Message(bytes)) => at += bytes,
                Some(Piece::Command(..)) => return Err(Broken::Command),
                None => break,
            }
        }
        self.give(at, feeds);
        Ok(())
    }

    /// Gives the first `bytes` to the audience.
    fn give(&mut self, bytes: usize, feeds: &Feeds) {
        if bytes > 0 {
            let chunk = self.intake.bytes.split_to(bytes).freeze();
            feeds.give(&self.audience, &chunk, !self.walker.at_border());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_told_from_messages_however_little_is_there() {
        let mark = [MARK_HEAD, &77_u64.to_be_bytes()].concat();
        assert_eq!(mark.len(), MARK_BYTES);
        assert_eq!(Front::of(&mark), Ok(Front::Mark(77)));
        for end in 0..mark.len() {
            assert_eq!(Front::of(&mark[..end]), Ok(Front::Part), "{end}");
        }
        let long = [&b"\x02\0\0\0\0\0\0\x01\x2c"[..], &[b'x'; 300]].concat();
        for (bytes, front) in [
            (&b"\x01\x04chat"[..], Front::Message(b"chat")),
            (b"\x01\x04mesh\0\x01x", Front::Message(b"mesh")),
            (b"\x00\x06gate x", Front::Message(b"gate x")),
            (b"\x00\x00", Front::Message(b"")),
            (b"\x01\x48to.", Front::Part),
            (&long, Front::Message(&[b'x'; 128])),
            (&long[..136], Front::Part),
        ] {
            assert_eq!(Front::of(bytes), Ok(front));
        }
        assert_eq!(Front::of(b"\x04\x05\x04PING"), Err(Broken::Command));
    }
}
