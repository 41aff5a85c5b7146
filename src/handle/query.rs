//! Pages of messages: the newest, what a cursor does not cover, and rooms; from the log and from what is only in memory.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Cursor, Handle, HistoryError, Message, Page, Place, Query, RoomSummary, Want, Window};
use crate::history::Reader;
use crate::id::{EntryId, Key, Room};
use crate::replica::batch::{Batch, Entry};
use crate::replica::version::{Coverage, RunHashes};

/// Bytes of batches read for one page that follows a cursor.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

impl Handle {
    /// Messages that the node holds, by time.
    ///
    /// # Errors
    /// [`HistoryError`]; [`HistoryError::Closed`] also when the node has stopped.
    pub async fn messages(&self, query: Query) -> Result<Page, HistoryError> {
        let after = query.after.clone();
        let reader = self.inner.log.as_ref().map(|log| log.reader.clone());
        let page = move |window| match reader {
            None => Ok(page(window, query)),
            Some(reader) => log_page(&reader, window, query),
        };
        self.with_window(after, page).await.unwrap_or(Err(HistoryError::Closed))
    }

    /// The rooms that the node holds messages of, by name.
    ///
    /// # Errors
    /// [`HistoryError`]; [`HistoryError::Closed`] also when the node has stopped.
    pub async fn rooms(&self) -> Result<Vec<RoomSummary>, HistoryError> {
        let reader = self.inner.log.as_ref().map(|log| log.reader.clone());
        let listed = move |window| {
            let logged = reader.map_or(Ok(Vec::new()), |reader| reader.rooms())?;
            let summary = |(room, messages, last): (Room, u64, _)| (room.clone(), RoomSummary { room, messages, last });
            Ok(rooms(&window, logged.into_iter().map(summary).collect()))
        };
        self.with_window(None, listed).await.unwrap_or(Err(HistoryError::Closed))
    }

    /// The next messages in time order after a place, at most `limit`, and where to go on; none after the last. For walks
    /// over the whole log in bounded memory. A node without a history answers from memory in one go.
    ///
    /// # Errors
    /// [`HistoryError`]; [`HistoryError::Closed`] also when the node has stopped.
    pub async fn scan(&self, query: Query, from: Option<Place>) -> Result<(Vec<Message>, Option<Place>), HistoryError> {
        let Some(log) = &self.inner.log else {
            let page = self.messages(Query { limit: usize::MAX - 1, before: None, after: None, ..query }).await?;
            return Ok((page.messages, None));
        };
        let limit = query.limit;
        let (entries, next) = log.scan(want(&query), from, limit).await?;
        Ok((entries.into_iter().map(|entry| Message::new(entry, false)).collect(), next))
    }
}

impl Message {
    /// Where it stands among all messages, by time.
    pub fn place(&self) -> Place {
        Place { hlc: self.hlc, id: self.id }
    }
}

fn want(query: &Query) -> Want {
    Want { room: query.room.clone(), since_ms: query.since_ms, until_ms: query.until_ms, grep: query.grep.clone() }
}

/// A page from the log, with what is in memory only.
fn log_page(reader: &Reader, window: Window, query: Query) -> Result<Page, HistoryError> {
    let want = want(&query);
    let Some(after) = window.after.clone() else {
        let Query { before, limit, .. } = query;
        // Oldest first; one more than asked for tells whether there are older ones.
        let mut found = reader.newest(&want, before, limit.saturating_add(1))?;
        for entry in window.batches.iter().flat_map(Batch::entries).flatten() {
            let place = Place::of(&entry);
            let fits = want.takes(&entry) && before.is_none_or(|before| place < before);
            let at = found.partition_point(|older| Place::of(older) < place);
            let known = found.get(at).is_some_and(|other| other.id == entry.id);
            if fits && !known && !is_twin(reader, &entry, &found)? {
                found.insert(at, entry);
            }
        }
        let older = found.len() > limit;
        let messages: Vec<Message> =
            found.drain(found.len().saturating_sub(limit)..).map(|entry| Message::new(entry, false)).collect();
        let before = messages.first().map(Message::place).filter(|_| older);
        return Ok(Page { messages, after: window.cursor, before, expired: window.expired });
    };
    let (mut batches, more) = reader.uncovered(&after, &want, query.limit, PAGE_BYTES_MAX)?;
    if !more {
        batches.extend(window.batches);
        batches.sort_by_key(|batch| (batch.hlc(), batch.origin(), batch.first()));
        batches.dedup_by_key(|batch| (batch.origin(), batch.first()));
    }
    let mut hidden = twins(&batches);
    for batch in &batches {
        for (id, key) in batch.keys().unwrap_or_default() {
            if reader.hides(key, id, &after)? {
                hidden.insert(id);
            }
        }
    }
    Ok(page_after(batches, hidden, after, &want, query.limit, window.expired))
}

/// Whether an entry that is in memory only says again what is shown already.
fn is_twin(reader: &Reader, entry: &Entry, found: &[Entry]) -> Result<bool, HistoryError> {
    let Some(key) = entry.key else { return Ok(false) };
    let in_log = reader.find(key)?.is_some_and(|shown| shown.id != entry.id);
    Ok(in_log || found.iter().any(|other| other.key == Some(key) && other.id != entry.id))
}

/// A page out of a window, where there is no log.
fn page(window: Window, query: Query) -> Page {
    let want = want(&query);
    let Query { before, limit, .. } = query;
    let Window { batches, cursor: all, after, expired } = window;
    let twins = twins(&batches);
    if let Some(after) = after {
        return page_after(batches, twins, after, &want, limit, expired);
    }
    let mut found: BTreeMap<Place, Entry> = BTreeMap::new();
    // The newest, and one more that tells whether there are older ones.
    for batch in batches.iter().rev() {
        let full = found.len() > limit;
        if full && found.first_key_value().is_some_and(|(oldest, _)| batch.hlc_last() < oldest.hlc) {
            continue;
        }
        let wanted = |entry: &Entry| {
            want.takes(entry) && before.is_none_or(|before| Place::of(entry) < before) && !twins.contains(&entry.id)
        };
        found.extend(batch.entries().flatten().filter(wanted).map(|entry| (Place::of(&entry), entry)));
        while found.len() > limit.saturating_add(1) {
            found.pop_first();
        }
    }
    let older = found.len() > limit && found.pop_first().is_some();
    let before = found.first_key_value().map(|(place, _)| *place).filter(|_| older);
    Page { messages: messages(found), after: all, before, expired }
}

/// What `cursor` does not cover of `batches`, which are all there are up to the last one.
fn page_after(
    batches: Vec<Batch>,
    hidden: HashSet<EntryId>,
    mut cursor: Cursor,
    want: &Want,
    limit: usize,
    expired: u64,
) -> Page {
    let mut hashes = RunHashes::default();
    let mut found: BTreeMap<Place, Entry> = BTreeMap::new();
    let mut cut = false;
    for batch in &batches {
        let full = found.len() >= limit;
        if full && found.last_key_value().is_some_and(|(newest, _)| batch.hlc() > newest.hlc) {
            cut = true;
            continue;
        }
        let origin = hashes.of(batch.origin());
        let coverage = cursor.coverage(origin, batch);
        if coverage == Coverage::All {
            continue;
        }
        let fresh = |entry: &Entry| coverage == Coverage::None || !cursor.covers(origin, entry.id.seq, entry.hlc);
        let wanted = |entry: &Entry| fresh(entry) && want.takes(entry) && !hidden.contains(&entry.id);
        let entries = batch.entries().flatten().filter(wanted);
        found.extend(entries.map(|entry| (Place::of(&entry), entry)));
        while found.len() > limit {
            cut = found.pop_last().is_some();
        }
    }
    // Everything up to the last one given is given, or passed over for ever.
    let last = found.last_key_value().map(|(place, _)| *place).filter(|_| cut);
    for batch in &batches {
        let origin = hashes.of(batch.origin());
        match last {
            Some(last) if batch.hlc() > last.hlc => {}
            Some(last) if batch.hlc_last() >= last.hlc => {
                for entry in batch.entries().flatten().filter(|entry| Place::of(entry) <= last) {
                    cursor.add(origin, entry.id.seq, entry.id.seq, entry.hlc);
                }
            }
            _ => cursor.add(origin, batch.first(), batch.last(), batch.hlc_last()),
        }
    }
    Page { messages: messages(found), after: cursor, before: None, expired }
}

fn messages(found: BTreeMap<Place, Entry>) -> Vec<Message> {
    found.into_values().map(|entry| Message::new(entry, false)).collect()
}

/// Adds what is in memory to what the log says of rooms.
fn rooms(window: &Window, mut rooms: BTreeMap<Room, RoomSummary>) -> Vec<RoomSummary> {
    let twins = twins(&window.batches);
    for entry in window.batches.iter().flat_map(Batch::entries).flatten() {
        if twins.contains(&entry.id) || entry.room.is_control() {
            continue;
        }
        let Entry { room, hlc, .. } = entry;
        let empty = RoomSummary { room: room.clone(), messages: 0, last: hlc };
        let summary = rooms.entry(room).or_insert(empty);
        summary.messages += 1;
        summary.last = summary.last.max(hlc);
    }
    rooms.into_values().collect()
}

/// Of entries with one key all but the smallest.
fn twins(batches: &[Batch]) -> HashSet<EntryId> {
    let mut smallest: HashMap<Key, Place> = HashMap::new();
    let mut twins = HashSet::new();
    for batch in batches {
        for (id, key) in batch.keys().unwrap_or_default() {
            let place = Place { hlc: batch.hlc().plus(id.seq.0 - batch.first().0), id };
            let first = smallest.entry(key).or_insert(place);
            if *first != place {
                twins.insert(place.max(*first).id);
                *first = place.min(*first);
            }
        }
    }
    twins
}
