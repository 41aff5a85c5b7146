//! What a socket hears: everything from now on or after a cursor, or what a durable cursor gives; and how the latter is
//! acknowledged.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use futures_util::StreamExt;
use tokio::sync::{mpsc, watch};

use super::super::api::Failure;
use super::End;
use super::frames::Outgoing;
use super::hear::Answer;
use super::stage::Seat;
use crate::error::DurableError;
use crate::handle::{Acker, Delivery, Durable, Mark, Message, Subscription};

/// Where messages come from that no other socket is given at the same time.
pub(super) enum Source {
    Live(Box<Subscription>),
    Durable(DurableSource),
}

/// How a socket begins.
pub(super) enum Opened {
    /// With what it missed, or for itself.
    Own(Source),
    /// With what all are told.
    Shared(Seat),
}

/// A durable cursor; what it reads goes on while nobody waits for it.
pub(super) struct DurableSource {
    reading: Reading,
    acker: Acker,
    given: Given,
    /// The last message given since a cursor was.
    last: Option<Mark>,
}

type Read = Result<Option<(Message, Mark)>, DurableError>;
type Reading = Pin<Box<dyn Future<Output = (Durable, Read)> + Send>>;

/// The cursors given to a client and not acknowledged, by their hash: 1,000 of them may be 4 MiB.
#[derive(Clone, Debug, Default)]
pub(super) struct Given(Arc<Mutex<VecDeque<(blake3::Hash, Mark)>>>);

impl Source {
    pub fn durable(durable: Durable, given: Given) -> Source {
        let acker = durable.acker();
        Source::Durable(DurableSource { reading: read(durable), acker, given, last: None })
    }

    /// The next delivery. Cancellation safe.
    ///
    /// # Errors
    /// [`DurableError::History`]: ask again later.
    pub async fn next(&mut self) -> Result<Result<Delivery, End>, DurableError> {
        match self {
            Source::Live(subscription) => Ok(subscription.next().await.ok_or(End::Away)),
            Source::Durable(source) => source.next().await,
        }
    }

    /// As [`Source::next`]; none once nothing is left of what was missed. Cancellation safe.
    ///
    /// # Errors
    /// [`DurableError::History`]: ask again later.
    pub async fn next_missed(&mut self) -> Result<Option<Result<Delivery, End>>, DurableError> {
        let Source::Live(subscription) = self else { return self.next().await.map(Some) };
        let next = std::future::poll_fn(|cx| match subscription.poll_next_unpin(cx) {
            Poll::Ready(next) => Poll::Ready(Some(next.ok_or(End::Away))),
            Poll::Pending if subscription.is_live() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        Ok(next.await)
    }

    /// The cursor that covers all that was given.
    pub fn cursor(&mut self) -> String {
        match self {
            Source::Live(subscription) => subscription.cursor().to_string(),
            Source::Durable(source) => {
                let cursor = source.acker.cursor().to_string();
                if let Some(last) = source.last.take() {
                    source.given.add(&cursor, last);
                }
                cursor
            }
        }
    }
}

impl Opened {
    /// The cursor that covers all that was given.
    pub fn cursor(&mut self) -> String {
        match self {
            Opened::Own(source) => source.cursor(),
            Opened::Shared(seat) => seat.covered().to_string(),
        }
    }
}

impl DurableSource {
    async fn next(&mut self) -> Result<Result<Delivery, End>, DurableError> {
        let (durable, read) = self.reading.as_mut().await;
        let replaced = durable.is_replaced();
        self.reading = self::read(durable);
        Ok(match read? {
            Some((message, mark)) => {
                self.last = Some(mark);
                Ok(Delivery::Message(message))
            }
            None if replaced => Err(End::Replaced),
            None => Err(End::Away),
        })
    }
}

fn read(mut durable: Durable) -> Reading {
    Box::pin(async move {
        let read = durable.next().await;
        (durable, read)
    })
}

impl Given {
    fn add(&self, cursor: &str, mark: Mark) {
        self.lock().push_back((blake3::hash(cursor.as_bytes()), mark));
    }

    /// What a cursor stands for; it and those before it are forgotten.
    fn take(&self, cursor: &str) -> Option<Mark> {
        let hash = blake3::hash(cursor.as_bytes());
        let mut given = self.lock();
        let at = given.iter().rposition(|(given, _)| *given == hash)?;
        given.drain(..=at).next_back().map(|(_, mark)| mark)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<(blake3::Hash, Mark)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Acknowledges what the client says it has.
pub(super) struct Acks {
    acker: Option<Acker>,
    given: Given,
    /// The newest cursor that the client acknowledged: older ones go with it.
    wanted: watch::Sender<Option<(String, Mark)>>,
}

impl Acks {
    pub fn new(acker: Option<Acker>, given: Given) -> Acks {
        Acks { acker, given, wanted: watch::channel(None).0 }
    }

    /// The end that takes what the client says.
    pub fn ear(&self) -> AckEar {
        let wanted = self.acker.is_some().then(|| self.wanted.clone());
        AckEar { given: self.given.clone(), wanted }
    }

    /// Has the log keep what was acknowledged, and says so.
    pub async fn keep(self, answers: mpsc::Sender<Answer>) -> End {
        let mut wanted = self.wanted.subscribe();
        let Some(acker) = self.acker else { return std::future::pending().await };
        while wanted.changed().await.is_ok() {
            let Some((cursor, mark)) = wanted.borrow_and_update().clone() else { continue };
            let answer = match acker.ack(mark).await {
                Ok(()) => Outgoing::Acked { cursor: &cursor }.text(),
                Err(DurableError::Replaced) => return End::Replaced,
                Err(error) => Outgoing::error(&error.into(), None),
            };
            if answers.send(Answer::Text(answer)).await.is_err() {
                return End::Gone;
            }
        }
        End::Gone
    }
}

/// Takes acknowledgements.
pub(super) struct AckEar {
    given: Given,
    wanted: Option<watch::Sender<Option<(String, Mark)>>>,
}

impl AckEar {
    pub fn ack(&self, cursor: Option<String>) -> Result<(), Failure> {
        let refused = |code, message| Failure { code, ..Failure::malformed(message) };
        let Some(wanted) = &self.wanted else {
            return Err(refused("no_durable", "only a durable subscriber acknowledges; say its name in hello"));
        };
        let cursor = cursor.ok_or_else(|| Failure::malformed("an ack has a cursor"))?;
        let unknown =
            || refused("unknown_cursor", "this socket was not given this cursor, or it is acknowledged already");
        let mark = self.given.take(&cursor).ok_or_else(unknown)?;
        wanted.send_replace(Some((cursor, mark)));
        Ok(())
    }
}
