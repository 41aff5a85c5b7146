//! The half that writes: messages in bursts, answers, and word of what changes around them.
//!
//! A socket that has missed something, or that hears in a way of its own, is given it from a source of its own; as soon as
//! nothing is missing it takes a seat among all others ([`Stage`](super::stage::Stage)).

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval_at, sleep_until};

use super::super::api;
use super::super::objects::MessageObject;
use super::frames::Outgoing;
use super::hear::Answer;
use super::line::Mouth;
use super::news::{Followed, News};
use super::source::{Opened, Source};
use super::stage::{Seat, Turn};
use super::{End, Protocol};
use crate::handle::{Delivery, Filter, Gap, GapReason, Message, Peer, Published, Standing};
use crate::id::EntryId;
use crate::web::Site;

/// A burst ends after this many messages, this many bytes, or this long, at the latest; it ends with a cursor.
pub(super) const BURST_MESSAGES_MAX: usize = 256;
pub(super) const BURST_BYTES_MAX: usize = 64 * 1024;
pub(super) const BURST_TIME_MAX: Duration = Duration::from_secs(1);
/// A log that could not be read is asked again after this.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// Bursts that wait together are written together, up to so many bytes and one burst more.
const WRITE_BYTES_MAX: usize = 64 * 1024;

pub(super) struct Out<'a> {
    site: &'a Site,
    mouth: &'a mut Mouth,
    protocol: Protocol,
    /// What the client has been told of the peers.
    shown: Arc<[Peer]>,
    followed: Followed,
    /// A burst ends after so many messages, if the client said how many.
    burst_max: Option<usize>,
}

impl<'a> Out<'a> {
    pub fn new(site: &'a Site, mouth: &'a mut Mouth, protocol: Protocol, shown: Arc<[Peer]>) -> Out<'a> {
        Out { site, mouth, protocol, shown, followed: Followed::default(), burst_max: None }
    }

    /// Writes what is to be heard, and answers, until the socket ends.
    pub async fn run(
        &mut self,
        mut opened: Opened,
        peers: watch::Receiver<Arc<[Peer]>>,
        mut answers: mpsc::Receiver<Answer>,
    ) -> End {
        loop {
            // Most sockets are in their seats nearly always: what the other state needs is made when it is needed.
            let next = match opened {
                Opened::Own(source) => {
                    Box::pin(self.catch_up(source, peers.clone(), &mut answers)).await.map(Opened::Shared)
                }
                Opened::Shared(seat) => self.sit(seat, &mut answers).await.map(Opened::Own),
            };
            opened = match next {
                Ok(opened) => opened,
                Err(end) => return end,
            };
        }
    }

    /// Writes what all are told, until this socket is too far behind and has to read for itself.
    async fn sit(&mut self, mut seat: Seat, answers: &mut mpsc::Receiver<Answer>) -> Result<Source, End> {
        let times = self.site.times;
        self.followed = seat.followed().clone();
        let mut pings = interval_at(Instant::now() + times.ping, times.ping);
        loop {
            tokio::select! {
                Some(answer) = answers.recv() => self.answers(answer, answers),
                turn = seat.next(self.protocol) => {
                    let mut turn = Some(turn);
                    while let Some(next) = turn {
                        match next {
                            Turn::Frames { frames, slow } => {
                                frames.into_iter().for_each(|frames| self.mouth.frames(frames));
                                if slow {
                                    return Err(End::Slow);
                                }
                            }
                            Turn::Behind { .. } if seat.is_resumed() => {
                                let subscription = self.site.handle.resume(Filter::all(), seat.covered().clone()).await;
                                return Ok(Source::Live(Box::new(subscription.map_err(|_| End::Away)?)));
                            }
                            Turn::Behind { missing } => self.gap(Gap { missing, reason: GapReason::Slow })?,
                            Turn::Ended => return Err(End::Away),
                        }
                        let full = self.mouth.waiting() >= WRITE_BYTES_MAX;
                        turn = if full { None } else { seat.take(self.protocol) };
                    }
                }
                () = self.mouth.replies() => {}
                _ = pings.tick() => self.mouth.ping(),
            }
            self.mouth.flush(times.stuck).await?;
        }
    }

    /// Writes what one source gives, until nothing of what was missed is left.
    async fn catch_up(
        &mut self,
        mut source: Source,
        peers: watch::Receiver<Arc<[Peer]>>,
        answers: &mut mpsc::Receiver<Answer>,
    ) -> Result<Seat, End> {
        let Site { handle, standings, times, .. } = self.site;
        self.followed = Followed::default();
        let mut news = News::new(handle, standings, self.followed.clone(), peers, self.shown.clone());
        let mut pings = interval_at(Instant::now() + times.ping, times.ping);
        let mut read_due: Option<Instant> = None;
        let alone = self.burst_max.is_some();
        let next =
            async |source: &mut Source| if alone { source.next().await.map(Some) } else { source.next_missed().await };
        loop {
            tokio::select! {
                Some(answer) = answers.recv() => self.answers(answer, answers),
                delivery = next(&mut source), if read_due.is_none() => match delivery {
                    Ok(Some(delivery)) => {
                        self.burst(delivery?, &mut source).await?;
                        news.gave().await;
                    }
                    Ok(None) => if let Some(seat) = self.take_seat(&mut source).await? {
                        seat.followed().take_over(&self.followed, &self.shown);
                        return Ok(seat);
                    },
                    Err(error) => {
                        read_due = Some(Instant::now() + READ_AGAIN);
                        self.text(&Outgoing::error(&error.into(), None));
                    }
                },
                () = sleep_until(read_due.unwrap_or_else(Instant::now)), if read_due.is_some() => read_due = None,
                texts = news.next() => texts.map_err(|_| End::Away)?.iter().for_each(|text| self.text(text)),
                () = self.mouth.replies() => {}
                _ = pings.tick() => self.mouth.ping(),
            }
            self.mouth.flush(times.stuck).await?;
        }
    }

    /// A seat for a socket that goes on where its source is; none if there is more to read.
    async fn take_seat(&mut self, source: &mut Source) -> Result<Option<Seat>, End> {
        let mut seat = self.site.resumed.seat().await.map_err(|_| End::Away)?;
        // Once the node has answered whatever it was asked, all that was put before this seat is in the source, too.
        self.site.handle.standing(Vec::new()).await.map_err(|_| End::Away)?;
        while let Some(Ok(delivery)) = source.next().now_or_never() {
            self.burst(delivery?, source).await?;
        }
        let Source::Live(subscription) = source else { return Ok(None) };
        seat.covers(subscription.cursor());
        Ok(subscription.is_live().then_some(seat))
    }

    fn answers(&mut self, first: Answer, more: &mut mpsc::Receiver<Answer>) {
        self.answer(first);
        while let Ok(answer) = more.try_recv() {
            self.answer(answer);
        }
    }

    fn answer(&mut self, answer: Answer) {
        match answer {
            Answer::Text(text) => self.text(&text),
            Answer::Accepted { client_id, published: Published { id, state, .. } } => {
                self.followed.follow(id, Standing { state, stored_by: 0 });
                self.text(&Outgoing::Accepted { client_id: client_id.as_deref(), id, state }.text());
            }
        }
    }

    /// Has bursts end after `messages` at the latest: so that a client that stops anywhere can acknowledge what it has.
    pub fn end_bursts_after(&mut self, messages: usize) {
        self.burst_max = Some(messages.clamp(1, BURST_MESSAGES_MAX));
    }

    /// Writes a delivery and what else waits behind it.
    async fn burst(&mut self, first: Delivery, source: &mut Source) -> Result<(), End> {
        let began = Instant::now();
        let burst_max = self.burst_max.unwrap_or(BURST_MESSAGES_MAX);
        let mut next = Some(Ok(first));
        let mut messages = Vec::new();
        let (mut count, mut bytes) = (0, 0);
        let mut ended = Ok(());
        while let Some(delivery) = next {
            match delivery {
                Ok(Delivery::Message(message)) => {
                    count += 1;
                    bytes += message.payload.len();
                    messages.push(message);
                }
                Ok(Delivery::Gap(gap)) => {
                    // The cursor that the messages end with covers the gap: what is missing is told first.
                    self.messages(std::mem::take(&mut messages), None).await?;
                    self.gap(gap)?;
                }
                Err(end) => {
                    ended = Err(end);
                    break;
                }
            }
            let full = count >= burst_max || bytes >= BURST_BYTES_MAX || began.elapsed() >= BURST_TIME_MAX;
            // The cursor covers what was taken, so it is read before more is taken. A log that cannot be read is asked
            // again by whoever waits for the next delivery.
            next = if full { None } else { source.next().now_or_never().and_then(Result::ok) };
        }
        let cursor = (!messages.is_empty()).then(|| source.cursor());
        self.messages(messages, cursor).await?;
        ended
    }

    /// Writes messages, the last of them with a cursor.
    async fn messages(&mut self, messages: Vec<Message>, cursor: Option<String>) -> Result<(), End> {
        if messages.is_empty() {
            return Ok(());
        }
        let ids: Vec<EntryId> = messages.iter().map(|message| message.id).collect();
        let standings = self.site.standings.of(&ids).await.map_err(|_| End::Away)?;
        let last = messages.len() - 1;
        let mut cursor = cursor;
        for (at, (message, standing)) in messages.iter().zip(standings).enumerate() {
            let cursor = if at == last { cursor.take() } else { None };
            self.followed.told(message.id, standing);
            self.text(&api::to_text(&MessageObject::frame(message, standing, cursor)));
        }
        self.mouth.flush(self.site.times.stuck).await
    }

    fn gap(&mut self, gap: Gap) -> Result<(), End> {
        if self.protocol == Protocol::Json {
            self.text(&Outgoing::gap(gap));
        }
        if gap.reason == GapReason::Slow { Err(End::Slow) } else { Ok(()) }
    }

    fn text(&mut self, text: &str) {
        self.mouth.text(text);
    }
}
