//! A durable subscriber: a named cursor in the log of this node, moved on by what its holder acknowledges.
//!
//! It walks the log in the order of local numbers, so author order holds except for entries marked late. What was given
//! and not acknowledged is given again to the next holder: at least once. It never covers what was not acknowledged.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::{Cursor, Filter, Message};
use crate::error::{DurableError, HistoryError};
use crate::history::{Durable as Row, LogHandle, Numbered};
use crate::id::{EntryId, Run, Seq};
use crate::replica::batch::Entries;
use crate::replica::clock::Hlc;
use crate::replica::ranges::RangeSet;

/// Messages given and not acknowledged; a holder with so many gets no more until it acknowledges some.
pub const UNACKED_MAX: usize = 1_000;
/// The longest name of a durable cursor, in bytes.
pub const DURABLE_NAME_BYTES_MAX: usize = 64;

/// Which message of a [`Durable`] is meant: those given earlier are meant with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark(u64);

/// A named cursor of this node, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurableSummary {
    /// Its name.
    pub name: String,
    /// When something was last acknowledged, in milliseconds since 1970.
    pub acked_ms: u64,
    /// Batches in the log behind it, at most.
    pub behind: u64,
    /// Whether somebody holds it now.
    pub held: bool,
}

/// Where a new durable subscriber begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Begin {
    /// With what is stored from now on.
    #[default]
    Now,
    /// With the oldest message in the log.
    Start,
    /// With what this cursor does not cover.
    After(Cursor),
}

/// Who holds which name: the newer wins.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    holders: Mutex<HashMap<String, (u64, watch::Sender<bool>)>>,
    /// Holders so far: each has a number of its own, so that one that was put out does not release the next.
    taken: AtomicU64,
}

/// A durable subscriber. Dropping it keeps its place.
#[derive(Debug)]
pub struct Durable {
    log: LogHandle,
    filter: Filter,
    /// Batches read, by local number.
    read: VecDeque<Numbered>,
    next_number: u64,
    current: Option<Current>,
    given: u64,
    acker: Acker,
    replaced: watch::Receiver<bool>,
    holders: Arc<Holders>,
    holder: u64,
}

#[derive(Debug)]
struct Current {
    number: u64,
    entries: Entries,
    namesakes: Vec<(Seq, Vec<EntryId>)>,
    late: bool,
    /// The last entry walked over, and what of it is not in `out` yet.
    last: (Run, Seq),
}

/// Acknowledges what a [`Durable`] gave, from another task than the one that reads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Acker {
    log: LogHandle,
    state: Arc<Mutex<Acked>>,
    /// Told how many are out whenever that changes.
    out: Arc<watch::Sender<usize>>,
    /// One save at a time; what comes meanwhile goes with the next.
    saving: Arc<tokio::sync::Mutex<u64>>,
    replaced: watch::Receiver<bool>,
}

#[derive(Debug)]
struct Acked {
    name: String,
    log: u64,
    /// All local numbers below are covered.
    position: u64,
    covered: BTreeMap<Run, (RangeSet, Hlc)>,
    /// Given and not acknowledged, or passed over behind something that is not.
    out: VecDeque<Out>,
    /// Counts changes, so that a save knows whether it is still needed.
    version: u64,
}

/// One entry walked over.
#[derive(Debug)]
struct Out {
    /// None: passed over, nothing to acknowledge.
    mark: Option<Mark>,
    run: Run,
    seq: Seq,
    hlc: Hlc,
    /// The batch ends here: all numbers below this are done.
    done: Option<u64>,
}

impl Holders {
    fn take(&self, name: &str) -> (u64, watch::Receiver<bool>) {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        let (replaced, told) = watch::channel(false);
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        if let Some((_, older)) = holders.insert(name.into(), (number, replaced)) {
            older.send_replace(true);
        }
        (number, told)
    }

    fn release(&self, name: &str, number: u64) {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        if holders.get(name).is_some_and(|(holder, _)| *holder == number) {
            holders.remove(name);
        }
    }

    /// Takes the name from whoever holds it.
    pub fn evict(&self, name: &str) {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, holder)) = holders.remove(name) {
            holder.send_replace(true);
        }
    }

    pub fn holds(&self, name: &str) -> bool {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }
}

impl Durable {
    /// Takes the name over from whoever holds it. A name that is new begins with what is said from now on, or after
    /// `begin`.
    pub(crate) async fn open(
        log: LogHandle,
        holders: Arc<Holders>,
        name: &str,
        filter: Filter,
        begin: Begin,
    ) -> Result<Durable, DurableError> {
        if name.is_empty() || name.len() > DURABLE_NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return Err(DurableError::Name);
        }
        let (holder, replaced) = holders.take(name);
        let owned = name.to_owned();
        let (row, log_id) = log.read(move |reader| Ok((reader.durable(&owned)?, reader.log()?))).await?;
        let fresh = row.is_none();
        let row = match row {
            Some(row) => row,
            None => {
                let (covered, position) = match begin {
                    Begin::Now => {
                        // Numbers first: what is stored in between is given once more rather than never.
                        let position = *log.admitted.borrow() + 1;
                        (log.read(|reader| reader.vector(None)).await?, position)
                    }
                    Begin::Start => (BTreeMap::new(), 1),
                    Begin::After(cursor) => (log.read(move |reader| reader.vector(Some(&cursor))).await?, 1),
                };
                Row { name: name.into(), covered, position, log: log_id, acked_ms: 0 }
            }
        };
        let position = if row.log == log_id { row.position.max(1) } else { 1 };
        let state = Acked {
            name: name.into(),
            log: log_id,
            position,
            covered: row.covered,
            out: VecDeque::new(),
            version: u64::from(fresh),
        };
        let acker = Acker {
            log: log.clone(),
            state: Arc::new(Mutex::new(state)),
            out: Arc::new(watch::channel(0).0),
            saving: Arc::default(),
            replaced: replaced.clone(),
        };
        let durable = Durable {
            log,
            filter,
            read: VecDeque::new(),
            next_number: position,
            current: None,
            given: 0,
            acker,
            replaced,
            holders,
            holder,
        };
        if fresh {
            durable.acker.save().await?;
        }
        Ok(durable)
    }
}

impl Durable {
    /// The next message, and what to acknowledge it with; none once the node has stopped or another holder took the name.
    /// Cancellation safe.
    ///
    /// # Errors
    /// [`DurableError::History`] if the log cannot be read now; ask again.
    pub async fn next(&mut self) -> Result<Option<(Message, Mark)>, DurableError> {
        loop {
            if *self.replaced.borrow_and_update() {
                return Ok(None);
            }
            if !self.wait_for_room().await {
                return Ok(None);
            }
            if let Some(given) = self.walk() {
                return Ok(Some(given));
            }
            if let Some(numbered) = self.read.pop_front() {
                self.next_number = numbered.number + 1;
                let Numbered { number, batch, late, namesakes } = numbered;
                let last = (batch.origin(), batch.last());
                self.current = Some(Current { number, entries: batch.entries(), namesakes, late, last });
                continue;
            }
            let mut admitted = self.log.admitted.clone();
            if *admitted.borrow_and_update() < self.next_number {
                tokio::select! {
                    changed = admitted.changed() => if changed.is_err() { return Ok(None) },
                    _ = self.replaced.changed() => {}
                }
                continue;
            }
            self.read = self.log.admitted_from(self.next_number).await?.into();
            if self.read.is_empty() {
                // Nothing of what was numbered is left: retention has let it go.
                self.next_number = self.next_number.max(*self.log.admitted.borrow() + 1);
            }
        }
    }

    /// The end that acknowledges.
    pub fn acker(&self) -> Acker {
        self.acker.clone()
    }

    /// Acknowledges everything given up to `mark`; answers once that is on disk.
    ///
    /// # Errors
    /// [`DurableError::History`] and [`DurableError::Replaced`]; it is not kept, and may be given again.
    pub async fn ack(&self, mark: Mark) -> Result<(), DurableError> {
        self.acker.ack(mark).await
    }

    /// What was acknowledged or passed over, and everything given: goes on from here on any node of the mesh.
    pub fn cursor(&self) -> Cursor {
        self.acker.cursor()
    }

    /// Whether another holder took the name.
    pub fn is_replaced(&self) -> bool {
        *self.replaced.borrow()
    }

    async fn wait_for_room(&mut self) -> bool {
        let mut out = self.acker.out.subscribe();
        while *out.borrow_and_update() >= UNACKED_MAX {
            tokio::select! {
                _ = out.changed() => {}
                _ = self.replaced.changed() => return false,
            }
        }
        true
    }

    fn walk(&mut self) -> Option<(Message, Mark)> {
        let current = self.current.as_mut()?;
        let mut acked = self.acker.state.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in current.entries.by_ref() {
            let Ok(entry) = entry else { break };
            let run = entry.id.run;
            // Of entries with one key the first that comes is given: whatever is smaller may have no number yet.
            let beside =
                current.namesakes.iter().filter(|(seq, _)| *seq == entry.id.seq).flat_map(|(_, beside)| beside);
            let covered = acked.covers(entry.id) || beside.copied().any(|other| acked.has(other));
            let ends = (run, entry.id.seq) == current.last;
            let done = ends.then_some(current.number + 1);
            let wanted = !covered && self.filter.wants(&entry.room);
            let mark = wanted.then(|| {
                self.given += 1;
                Mark(self.given)
            });
            acked.walked(Out { mark, run, seq: entry.id.seq, hlc: entry.hlc, done });
            if let Some(mark) = mark {
                self.acker.tell(&acked);
                return Some((Message::new(entry, current.late), mark));
            }
        }
        acked.drain(None);
        drop(acked);
        self.current = None;
        None
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        let acked = self.acker.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.holders.release(&acked.name, self.holder);
    }
}

impl Acker {
    /// Acknowledges everything given up to `mark`; answers once that is on disk.
    ///
    /// # Errors
    /// [`DurableError::History`] and [`DurableError::Replaced`]; it is not kept, and may be given again.
    pub async fn ack(&self, mark: Mark) -> Result<(), DurableError> {
        {
            let mut acked = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            acked.drain(Some(mark));
            self.tell(&acked);
        }
        self.save().await
    }

    /// As [`Durable::cursor`].
    pub fn cursor(&self) -> Cursor {
        let acked = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cursor = Cursor::new();
        for (run, (seqs, newest)) in &acked.covered {
            let hash = run.hash();
            for (first, last) in seqs.iter() {
                cursor.add(hash, first, last, *newest);
            }
        }
        for Out { run, seq, hlc, .. } in &acked.out {
            cursor.add(run.hash(), *seq, *seq, *hlc);
        }
        cursor
    }

    fn tell(&self, acked: &Acked) {
        let out = acked.out.iter().filter(|out| out.mark.is_some()).count();
        self.out.send_if_modified(|told| std::mem::replace(told, out) != out);
    }

    /// Has the log keep the present state, unless somebody else's save did.
    async fn save(&self) -> Result<(), DurableError> {
        let mut saved = self.saving.lock().await;
        let (row, version) = {
            let acked = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if acked.version <= *saved {
                return Ok(());
            }
            (acked.row(), acked.version)
        };
        // The cursor belongs to the next holder now, or to nobody.
        if *self.replaced.borrow() {
            return Err(DurableError::Replaced);
        }
        self.log.keeper.save_durable(row).await.unwrap_or(Err(HistoryError::Closed))?;
        *saved = version;
        Ok(())
    }
}

impl Acked {
    fn row(&self) -> Row {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Row {
            name: self.name.clone(),
            covered: self.covered.clone(),
            position: self.position,
            log: self.log,
            acked_ms: now.as_millis() as u64,
        }
    }

    /// Whether an entry was acknowledged or passed over.
    fn covers(&self, id: EntryId) -> bool {
        self.covered.get(&id.run).is_some_and(|(seqs, _)| seqs.contains(id.seq))
    }

    /// The same, or given.
    fn has(&self, id: EntryId) -> bool {
        self.covers(id) || self.out.iter().any(|out| (out.run, out.seq) == (id.run, id.seq))
    }

    fn walked(&mut self, step: Out) {
        if step.mark.is_none() && self.out.is_empty() {
            self.cover(step);
        } else {
            self.out.push_back(step);
        }
    }

    /// Covers all that is acknowledged up to `mark`, and what was passed over behind it.
    fn drain(&mut self, mark: Option<Mark>) {
        while self.out.front().is_some_and(|front| front.mark.is_none_or(|given| Some(given) <= mark)) {
            if let Some(step) = self.out.pop_front() {
                self.cover(step);
            }
        }
    }

    fn cover(&mut self, step: Out) {
        let Out { run, seq, hlc, done, .. } = step;
        let (seqs, newest) = self.covered.entry(run).or_default();
        seqs.insert(seq, seq);
        *newest = hlc.max(*newest);
        self.position = done.unwrap_or(self.position).max(self.position);
        self.version += 1;
    }
}
