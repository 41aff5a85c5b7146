//! Entries as they stand in the body of a batch.
//!
//! ```text
//! entry  = room name via content
//! room   = field                      name = 0 | 1 field
//! via    = number                     content = 0 field | 1 mime(field) field
//! field  = length(number) bytes       number = byte up to 250 | 251 u16 | 252 u32 | 253 u64, little-endian
//! ```
//!
//! That is what bincode's standard form makes of such a struct. Every message is written and read here at least once, so it
//! is done by hand, which takes a fraction of the time. Golden bytes in `tests/wire.rs` guard it.

use std::ops::Range;
use std::sync::Arc;

use bytes::BufMut;

use super::batch::{Batch, BatchError, Draft, Entry, NAME_BYTES_MAX, Payload, PayloadRef, Text, Via};
use super::clock::Hlc;
use crate::id::{EntryId, Key, Room, Seq};

/// By their number on the wire.
const VIAS: [Via; 6] = [Via::Mesh, Via::Redis, Via::Amqp, Via::Plain, Via::Import, Via::Stream];

/// The fields of an entry before its content. What should be text is not checked.
struct Front<'a> {
    room: &'a [u8],
    name: Option<&'a [u8]>,
    via: Via,
    /// Of data, not of text.
    mime: Option<&'a [u8]>,
}

/// Walks over entries.
struct Walk<'a>(&'a [u8]);

impl<'a> Walk<'a> {
    /// Steps to the content of an entry; none: there is none.
    #[inline(always)]
    fn front(&mut self) -> Option<Front<'a>> {
        let room = self.field()?;
        let name = match self.number()? {
            0 => None,
            1 => Some(self.field()?),
            _ => return None,
        };
        let via = *VIAS.get(usize::try_from(self.number()?).ok()?)?;
        let mime = match self.number()? {
            0 => None,
            1 => Some(self.field()?),
            _ => return None,
        };
        Some(Front { room, name, via, mime })
    }

    /// Bytes with their length before them.
    #[inline(always)]
    fn field(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (field, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(field)
    }

    /// A number as bincode writes it: in a byte up to 250, else in 2, 4 or 8 bytes behind one that says so.
    #[inline(always)]
    fn number(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first()?;
        if *first <= 250 {
            self.0 = rest;
            return Some(u64::from(*first));
        }
        self.long_number()
    }

    fn long_number(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first()?;
        let width = match first {
            251 => 2,
            252 => 4,
            253 => 8,
            _ => return None,
        };
        let (number, rest) = rest.split_at_checked(width)?;
        self.0 = rest;
        Some(number.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}

/// Iterates over the entries of a [`Batch`], from either end; payloads share its bytes.
///
/// The first step from the back looks where each entry begins; what is not asked for is never made. Of a batch that does
/// not decode the front gives what is before the first fault, the back what is behind the last one, too.
#[derive(Clone, Debug)]
pub struct Entries {
    batch: Batch,
    /// The next from the front.
    index: u32,
    /// All from this one on were given, or do not decode.
    end: u32,
    /// Where the next from the front begins.
    at: usize,
    name: Arc<str>,
    keys: Vec<(u32, [u8; 16])>,
    before: Option<Before>,
    /// Where those begin that are left, once it was looked for.
    starts: Vec<u32>,
}

/// What the entry before was like, as most often the next one is, too.
#[derive(Clone, Debug)]
struct Before {
    room: Room,
    via: Via,
    /// Where its fields before the content are; nowhere if they name a person or a content type.
    front: Range<usize>,
}

/// An entry where it lies in its batch: checked, and not copied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Glance<'a> {
    batch: &'a Batch,
    /// Which of its batch.
    index: u32,
    pub room: &'a Room,
    /// The room of the entry before it, by the same [`Entries`].
    pub same_room: bool,
    pub payload: PayloadRef<'a>,
    /// The name of the node, and that of who said it if it is another.
    author: &'a Arc<str>,
    name: Option<&'a str>,
    pub via: Via,
    pub key: Option<Key>,
}

impl<'a> Glance<'a> {
    #[inline]
    pub fn id(&self) -> EntryId {
        EntryId { run: self.batch.origin(), seq: Seq(self.batch.first().0 + u64::from(self.index)) }
    }

    #[inline]
    pub fn hlc(&self) -> Hlc {
        self.batch.hlc().plus(u64::from(self.index))
    }

    pub fn name(&self) -> &'a str {
        self.name.unwrap_or(self.author)
    }

    /// The payload for itself; it shares the bytes of the batch.
    #[inline]
    pub fn take_payload(&self) -> Payload {
        let bytes = self.batch.bytes();
        match self.payload {
            PayloadRef::Text(text) => Payload::Text(Text::of(bytes, text)),
            PayloadRef::Data { mime, data } => Payload::Data { mime: mime.into(), data: bytes.slice_ref(data) },
        }
    }

    /// The name for itself.
    #[inline]
    pub fn take_name(&self) -> Arc<str> {
        self.name.map_or_else(|| self.author.clone(), Arc::from)
    }

    /// The entry for itself.
    #[inline]
    pub fn take(&self) -> Entry {
        Entry {
            id: self.id(),
            room: self.room.clone(),
            payload: self.take_payload(),
            name: self.take_name(),
            hlc: self.hlc(),
            via: self.via,
            key: self.key,
        }
    }
}

impl Entries {
    /// Those of `batch`, of which the first begins `at` this byte.
    pub(super) fn new(batch: Batch, name: Arc<str>, keys: Vec<(u32, [u8; 16])>, at: usize) -> Entries {
        let end = batch.count();
        Entries { batch, index: 0, end, at, name, keys, before: None, starts: Vec::new() }
    }

    /// A look at the next from the front; what [`Entries::next`] gives is made from it.
    #[inline]
    pub(crate) fn glance(&mut self) -> Option<Result<Glance<'_>, BatchError>> {
        if self.index >= self.end {
            return None;
        }
        let (index, mut at) = (self.index, self.at);
        self.index += 1;
        match look(&self.batch, &self.name, &self.keys, &mut self.before, index, &mut at) {
            Ok(glance) => {
                self.at = at;
                Some(Ok(glance))
            }
            Err(error) => {
                self.end = index;
                Some(Err(error))
            }
        }
    }

    /// Finds where the entries that are left begin, up to the first that has no length.
    fn look_ahead(&mut self) -> Result<(), BatchError> {
        let bytes = self.batch.bytes();
        let mut walk = Walk(bytes.get(self.at..).unwrap_or_default());
        self.starts.reserve((self.end - self.index) as usize);
        for index in self.index..self.end {
            // A batch is far smaller than 4 GiB.
            self.starts.push((bytes.len() - walk.0.len()) as u32);
            if walk.front().is_none() || walk.field().is_none() {
                self.starts.pop();
                self.end = index;
                return Err(BatchError::Body);
            }
        }
        Ok(())
    }
}

impl Iterator for Entries {
    type Item = Result<Entry, BatchError>;

    #[inline]
    fn next(&mut self) -> Option<Result<Entry, BatchError>> {
        Some(self.glance()?.map(|glance| glance.take()))
    }
}

impl DoubleEndedIterator for Entries {
    fn next_back(&mut self) -> Option<Result<Entry, BatchError>> {
        if self.index >= self.end {
            return None;
        }
        if self.starts.is_empty()
            && let Err(error) = self.look_ahead()
        {
            return Some(Err(error));
        }
        self.end -= 1;
        let mut at = self.starts.pop()? as usize;
        let glance = look(&self.batch, &self.name, &self.keys, &mut self.before, self.end, &mut at);
        Some(glance.map(|glance| glance.take()))
    }
}

/// The entry of this index, which begins `at` this byte; `at` the next one then.
#[inline(always)]
fn look<'a>(
    batch: &'a Batch,
    author: &'a Arc<str>,
    keys: &[(u32, [u8; 16])],
    before: &'a mut Option<Before>,
    index: u32,
    at: &mut usize,
) -> Result<Glance<'a>, BatchError> {
    let bytes: &'a [u8] = batch.bytes();
    let mut walk = Walk(bytes.get(*at..).unwrap_or_default());
    let (mut name, mut mime, mut same_room) = (None, None, true);
    match before {
        Some(before) if !before.front.is_empty() && walk.0.starts_with(&bytes[before.front.clone()]) => {
            walk.0 = &walk.0[before.front.len()..];
        }
        _ => {
            let front = walk.front().ok_or(BatchError::Body)?;
            if front.name.is_some_and(|name| name.len() > NAME_BYTES_MAX) {
                return Err(BatchError::Body);
            }
            (name, mime) = (front.name.map(text).transpose()?, front.mime.map(text).transpose()?);
            let plain = name.is_none() && mime.is_none();
            let ends = if plain { bytes.len() - walk.0.len() } else { *at };
            let same = before.take().filter(|before| before.room.as_str().as_bytes() == front.room);
            same_room = same.is_some();
            let room = match same {
                Some(before) => before.room,
                None => Room::of_entry(text(front.room)?).map_err(|_| BatchError::Body)?,
            };
            *before = Some(Before { room, via: front.via, front: *at..ends });
        }
    }
    let content = walk.field().ok_or(BatchError::Body)?;
    *at = bytes.len() - walk.0.len();
    if index + 1 == batch.count() && *at != bytes.len() {
        return Err(BatchError::Body);
    }
    let payload = match mime {
        None => PayloadRef::Text(text(content)?),
        Some(mime) => PayloadRef::Data { mime, data: content },
    };
    let key = match keys {
        [] => None,
        keys => keys.binary_search_by_key(&index, |(at, _)| *at).ok().map(|at| Key(keys[at].1)),
    };
    let Before { room, via, .. } = before.as_ref().ok_or(BatchError::Body)?;
    Ok(Glance { batch, index, room, same_room, payload, author, name, via: *via, key })
}

#[inline]
fn text(bytes: &[u8]) -> Result<&str, BatchError> {
    simdutf8::basic::from_utf8(bytes).map_err(|_| BatchError::Body)
}

/// Appends the entries that `drafts` become.
pub(super) fn put(bytes: &mut Vec<u8>, drafts: &[Draft]) {
    let mut front = Vec::new();
    let mut before: Option<&Draft> = None;
    for draft in drafts {
        // Most often entries differ in their content only.
        if before.is_none_or(|before| !has_same_front(before, draft)) {
            front.clear();
            put_front(&mut front, draft);
        }
        before = Some(draft);
        bytes.extend_from_slice(&front);
        put_field(bytes, draft.payload.bytes());
    }
}

fn has_same_front(one: &Draft, other: &Draft) -> bool {
    let same_kind = match (&one.payload, &other.payload) {
        (Payload::Text(_), Payload::Text(_)) => true,
        (Payload::Data { mime: one, .. }, Payload::Data { mime: other, .. }) => one == other,
        _ => false,
    };
    same_kind && one.via == other.via && one.name == other.name && one.room == other.room
}

/// All of an entry before the field of its content.
fn put_front(bytes: &mut Vec<u8>, draft: &Draft) {
    put_field(bytes, draft.room.as_str().as_bytes());
    match &draft.name {
        None => bytes.put_u8(0),
        Some(name) => {
            bytes.put_u8(1);
            put_field(bytes, name.as_bytes());
        }
    }
    put_number(bytes, draft.via as u64);
    match &draft.payload {
        Payload::Text(_) => bytes.put_u8(0),
        Payload::Data { mime, .. } => {
            bytes.put_u8(1);
            put_field(bytes, mime.as_bytes());
        }
    }
}

/// The bytes that the entry of a draft takes, and those at most that its key takes in the preamble.
pub(super) fn bytes(draft: &Draft) -> usize {
    let field = |length: usize| number_bytes(length) + length;
    let name = draft.name.as_ref().map_or(0, |name| field(name.len()));
    let mime = match &draft.payload {
        Payload::Text(_) => 0,
        Payload::Data { mime, .. } => field(mime.len()),
    };
    let key = draft.key.map_or(0, |_| 21);
    field(draft.room.as_str().len()) + 1 + name + 1 + 1 + mime + field(draft.payload.len()) + key
}

fn number_bytes(number: usize) -> usize {
    match number {
        0..=250 => 1,
        251..=0xffff => 3,
        0x1_0000..=0xffff_ffff => 5,
        _ => 9,
    }
}

/// Appends a number as [`Walk::number`] reads it.
#[inline]
fn put_number(bytes: &mut Vec<u8>, number: u64) {
    match number {
        0..=250 => bytes.push(number as u8),
        251..=0xffff => {
            bytes.push(251);
            bytes.extend_from_slice(&(number as u16).to_le_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            bytes.push(252);
            bytes.extend_from_slice(&(number as u32).to_le_bytes());
        }
        _ => {
            bytes.push(253);
            bytes.extend_from_slice(&number.to_le_bytes());
        }
    }
}

/// Appends bytes with their length before them.
#[inline]
fn put_field(bytes: &mut Vec<u8>, field: &[u8]) {
    put_number(bytes, field.len() as u64);
    bytes.extend_from_slice(field);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Room;

    #[test]
    fn what_is_written_is_walked_over_and_takes_what_was_said_of_any_length_and_kind() {
        for length in [0, 1, 250, 251, 0xffff, 0x1_0000, 256 * 1024] {
            for (number, via) in VIAS.into_iter().enumerate() {
                let text = "x".repeat(length);
                let mut draft = Draft::new(Room::lobby(), text.as_str());
                draft.via = via;
                if number % 2 == 1 {
                    draft.name = Some("n".repeat(128).into());
                    draft.payload = Payload::Data { mime: "image/png".into(), data: text.clone().into() };
                }
                let mut written = Vec::new();
                put(&mut written, std::slice::from_ref(&draft));
                assert_eq!(written.len(), bytes(&draft));
                assert_eq!(via as usize, number);
                let mut walk = Walk(&written);
                let (front, content) = (walk.front().unwrap(), walk.field().unwrap());
                assert_eq!((front.room, front.via, content), (&b"lobby"[..], via, text.as_bytes()));
                assert_eq!(front.name, draft.name.as_deref().map(str::as_bytes));
                assert_eq!(front.mime, (number % 2 == 1).then_some(&b"image/png"[..]));
                assert!(walk.0.is_empty());
                let others = [Draft::new(Room::lobby(), "hi"), draft.clone(), draft];
                let mut all = Vec::new();
                put(&mut all, &others);
                assert_eq!(all[all.len() - 2 * written.len()..], [&written[..], &written].concat());
                for cut in [0, 1, written.len() - 1] {
                    let mut walk = Walk(&written[..cut]);
                    assert!(walk.front().is_none() || walk.field().is_none(), "cut to {cut}");
                }
            }
        }
    }
}
