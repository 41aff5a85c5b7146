//! Publishes from the moment they are taken until the disk has them.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::{Loop, now};
use crate::config::Fsync;
use crate::error::PublishError;
use crate::handle::{HistoryHealth, Imported, Published, State, Submission};
use crate::history::Health;
use crate::id::{EntryId, Seq};
use crate::replica::{KnownKey, Replica};

/// Drafts taken from the channel for one round of batches, in bytes.
const ROUND_BYTES_MAX: usize = 1024 * 1024;

type Answer = Result<Vec<Published>, PublishError>;

/// What is answered once it is on disk.
#[derive(Debug, Default)]
pub(super) struct Publishes {
    /// In the order of our own stream.
    waiting: VecDeque<Waiting>,
    imports: Vec<Import>,
    /// Without a log: answered once what was published is on its way.
    sent: Vec<(oneshot::Sender<Answer>, Answer)>,
}

#[derive(Debug)]
struct Waiting {
    /// The last entry of ours that has to be on disk.
    last: EntryId,
    /// What is answered then.
    published: Vec<Published>,
    on_disk: State,
    reply: oneshot::Sender<Answer>,
}

#[derive(Debug)]
struct Import {
    /// The last entries of the batches that were new.
    wanted: Vec<EntryId>,
    imported: Imported,
    reply: oneshot::Sender<Imported>,
}

impl Publishes {
    /// Answers those whose entries are on disk by now.
    pub fn answer(&mut self, replica: &Replica) {
        let done = |waiting: &Waiting| waiting.last.seq == Seq(0) || replica.is_stored(waiting.last);
        while self.waiting.front().is_some_and(done) {
            let Some(waiting) = self.waiting.pop_front() else { break };
            let Waiting { mut published, on_disk, reply, .. } = waiting;
            for published in &mut published {
                published.state = if replica.stored_by(published.id) > 0 { State::Replicated } else { on_disk };
            }
            // Whoever does not wait for the answer does not want it.
            let _ = reply.send(Ok(published));
        }
        for import in &mut self.imports {
            import.wanted.retain(|id| !replica.is_stored(*id));
        }
        for import in self.imports.extract_if(.., |import| import.wanted.is_empty()) {
            // As above.
            let _ = import.reply.send(import.imported);
        }
    }

    /// Answers those whose entries went out just now.
    pub fn answer_sent(&mut self) {
        for (reply, answer) in self.sent.drain(..) {
            // As above.
            let _ = reply.send(answer);
        }
    }

    /// The log takes nothing: what waits for it waits in vain.
    pub fn refuse(&mut self, error: PublishError) {
        for waiting in self.waiting.drain(..) {
            // As above.
            let _ = waiting.reply.send(Err(error.clone()));
        }
        self.imports.clear();
    }

    /// Answers an import once these entries are on disk.
    pub fn import(&mut self, wanted: Vec<EntryId>, imported: Imported, reply: oneshot::Sender<Imported>) {
        self.imports.push(Import { wanted, imported, reply });
    }
}

impl Loop {
    /// Publishes what has come, and whatever waits behind it, in as few batches as hold them.
    pub(super) fn publish(&mut self, submission: Submission) {
        let refused = match self.log.as_ref().map(|log| *log.health.borrow()) {
            None | Some(HistoryHealth::Working | HistoryHealth::None) => None,
            Some(_) => Some(self.publish_error()),
        };
        if let Some(error) = refused {
            // Whoever does not wait for the answer does not want it.
            let _ = submission.reply.send(Err(error));
            return;
        }
        let (mut drafts, mut replies) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        let mut next = Some(submission);
        while let Some(Submission { drafts: said, reply }) = next {
            // Of one alone it is known without looking twice.
            if said.len() > 1 && self.replica.clashes(&drafts, &said) {
                // As above.
                let _ = reply.send(Err(PublishError::KeyReused));
            } else {
                bytes += said.iter().map(|draft| draft.payload.len()).sum::<usize>();
                replies.push((said.len(), reply));
                if drafts.is_empty() {
                    drafts = said;
                } else {
                    drafts.extend(said);
                }
            }
            next = if bytes < ROUND_BYTES_MAX { self.inbox.publish.try_recv().ok() } else { None };
        }
        let total = drafts.len();
        let published = self.replica.publish(now(self.started), drafts);
        let mut known = published.known.into_iter().peekable();
        let (run, mut fresh) = (published.first.run, published.first.seq.0);
        let mut answers = (0..total).map(|index| match known.next_if(|(at, _)| *at == index) {
            Some((_, KnownKey::Same(id))) => Ok(Published { id, state: State::Sent, known: true }),
            Some((_, KnownKey::Other(_))) => Err(PublishError::KeyReused),
            None => {
                let id = EntryId { run, seq: Seq(fresh) };
                fresh += 1;
                Ok(Published { id, state: State::Sent, known: false })
            }
        });
        for (count, reply) in replies {
            let mut answer: Answer = Ok(Vec::with_capacity(count));
            for one in answers.by_ref().take(count) {
                match (&mut answer, one) {
                    (Ok(published), Ok(one)) => published.push(one),
                    (Ok(_), Err(error)) => answer = Err(error),
                    (Err(_), _) => {}
                }
            }
            let Some(log) = &self.log else {
                self.publishes.sent.push((reply, answer));
                continue;
            };
            let on_disk = if log.fsync == Fsync::Os { State::Logged } else { State::Durable };
            let ours = |published: &Vec<Published>| {
                published.iter().filter(|published| published.id.run == run).map(|published| published.id.seq).max()
            };
            match answer {
                Ok(published) => {
                    let last = EntryId { run, seq: ours(&published).unwrap_or_default() };
                    self.publishes.waiting.push_back(Waiting { last, published, on_disk, reply });
                }
                Err(error) => drop(reply.send(Err(error))),
            }
        }
        if self.log.is_some() {
            self.publishes.answer(&self.replica);
        }
    }

    /// Why the log takes nothing.
    pub(super) fn publish_error(&self) -> PublishError {
        match self.log.as_ref().map(|log| *log.handle.health.borrow()) {
            Some(Health::Full) => PublishError::DiskFull,
            _ => PublishError::DiskFailing,
        }
    }
}
