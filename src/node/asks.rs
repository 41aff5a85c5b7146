//! What handles ask of the loop, and what they are told of the history.

use tokio::sync::oneshot;

use super::{CatchUp, Loop, now};
use crate::config::Fsync;
use crate::handle::{Ask, Event, HistoryHealth, Imported, Standing, State, Window};
use crate::history::Health;
use crate::id::EntryId;
use crate::replica::batch::Batch;
use crate::replica::event::{Input, Report};
use crate::replica::version::Cursor;
use crate::subscription::{Feed, Filter, Gap, GapReason, Item, Subscription, queue};

/// Readers at most; a further one is refused.
const READERS_MAX: usize = 20_480;
/// Those who wait for an entry to be held elsewhere; a further one is answered at once.
const HELD_ASKS_MAX: usize = 1024;
/// Entries that are fetched from peers are worth telling of when there are so many.
const CATCH_UP_MIN: u64 = 1_000;

#[derive(Debug)]
pub(super) struct HeldAsk {
    id: EntryId,
    count: usize,
    on_disk: bool,
    reply: oneshot::Sender<usize>,
}

impl Loop {
    /// The history has done something.
    pub(super) fn reported(&mut self, report: Report) {
        let stored = matches!(report, Report::Stored(_));
        let closed = matches!(report, Report::Closed);
        self.feed(Input::Log(report));
        if stored {
            self.publishes.answer(&self.replica);
        }
        // A damaged log is replaced at once and given what waits for it; one that fails is not.
        let works = self.log.as_ref().is_none_or(|log| *log.handle.health.borrow() == Health::Working);
        if closed && !works {
            self.publishes.refuse(self.publish_error());
        }
        if let Some(log) = &self.log {
            log.commits.send_modify(|commits| *commits += 1);
            let health = match *log.handle.health.borrow() {
                Health::Working => HistoryHealth::Working,
                Health::Full => HistoryHealth::Full,
                Health::Failing => HistoryHealth::Failing,
            };
            if log.health.send_if_modified(|told| std::mem::replace(told, health) != health) {
                self.presence.tell(Event::History(health));
            }
        }
    }

    pub(super) fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Subscribe { filter, after, reply } => {
                self.feeds.retain(|feed| !feed.is_closed());
                if self.feeds.len() >= READERS_MAX {
                    return;
                }
                let (feed, subscription) = self.open(filter, after);
                // A reader that has gone closes its feed.
                let _ = reply.send(subscription);
                self.feeds.push(feed);
            }
            Ask::Window { mut after, take } => {
                let expired = after.as_mut().map_or(0, |after| self.replica.give_up(after));
                let batches = match &self.log {
                    Some(_) => self.replica.unstored(),
                    None => self.replica.window().cloned().collect(),
                };
                let cursor = if after.is_none() { self.replica.cursor() } else { Cursor::new() };
                take(Window { batches, cursor, after, expired });
            }
            Ask::HeldBy { id, count, on_disk, reply } => {
                self.held_asks.push(HeldAsk { id, count, on_disk, reply });
                self.answer_held();
            }
            Ask::Standing { ids, reply } => {
                // Whoever asked may have gone.
                let _ = reply.send(ids.into_iter().map(|id| self.standing(id)).collect());
            }
            Ask::Import { batches, reply } => {
                let before = self.replica.counters();
                let entries: u64 = batches.iter().map(|kept| u64::from(kept.batch.count())).sum();
                let wanted = self.replica.import(now(self.started), batches);
                let after = self.replica.counters();
                let refused = (after.refused - before.refused + after.conflicts - before.conflicts).min(entries);
                let new = after.received - before.received;
                let known = entries.saturating_sub(new + refused);
                self.publishes.import(wanted, Imported { new, known, refused }, reply);
                self.publishes.answer(&self.replica);
            }
            // The loop ends on it before it gets here.
            Ask::Shutdown { .. } => {}
        }
    }

    fn open(&mut self, filter: Filter, after: Option<Cursor>) -> (Feed, Subscription) {
        let drained = self.drained.clone();
        let Some(mut after) = after else {
            return queue(filter, false, self.replica.cursor(), Vec::new(), drained, None);
        };
        let missing = self.replica.give_up(&mut after);
        let gap = (missing > 0).then_some(Item::Gap(Gap { missing, reason: GapReason::Expired }));
        let item = |batch: &Batch| Item::Batch { batch: batch.clone(), late: false };
        match &self.log {
            None => {
                let backlog = gap.into_iter().chain(self.replica.window().map(item)).collect();
                queue(filter, true, after, backlog, drained, None)
            }
            // What is on disk the reader fetches from there; what is not waits in its queue.
            Some(log) => {
                let backlog = gap.into_iter().collect();
                let (feed, subscription) = queue(filter, true, after, backlog, drained, Some(log.handle.clone()));
                self.replica.unstored().iter().for_each(|batch| feed.put(item(batch)));
                (feed, subscription)
            }
        }
    }

    /// How safe a message is, as far as is known here.
    fn standing(&self, id: EntryId) -> Standing {
        let stored_by = self.replica.stored_by(id);
        let on_disk = match &self.log {
            Some(log) if log.fsync == Fsync::Os => State::Logged,
            _ => State::Durable,
        };
        let state = match stored_by {
            0 if self.replica.is_stored(id) => on_disk,
            0 => State::Sent,
            _ => State::Replicated,
        };
        Standing { state, stored_by }
    }

    pub(super) fn answer_held(&mut self) {
        let full = self.held_asks.len() > HELD_ASKS_MAX;
        let waiting = std::mem::take(&mut self.held_asks).into_iter().filter(|ask| !ask.reply.is_closed());
        for ask in waiting.collect::<Vec<_>>() {
            let holders = if ask.on_disk { self.replica.stored_by(ask.id) } else { self.replica.held_by(ask.id) };
            if holders >= ask.count || full {
                // Whoever asked may have gone.
                let _ = ask.reply.send(holders);
            } else {
                self.held_asks.push(ask);
            }
        }
    }

    /// Tells how far the node is with what it missed.
    pub(super) fn tell_catch_up(&mut self) {
        let missing = self.replica.missing();
        let received = self.replica.counters().received;
        let began = match self.catching_up {
            None if missing < CATCH_UP_MIN => return,
            None => CatchUp { received },
            Some(began) => began,
        };
        let done = received - began.received;
        self.catching_up = (missing > 0).then_some(began);
        tracing::info!(missing, done, "fetching what was missed");
        self.presence.tell(Event::CatchUp { missing, done });
    }
}
