//! One entry as it stands in the body of a batch.
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

use bytes::BufMut;

use super::batch::{Draft, Payload, Via};

/// By their number on the wire.
const VIAS: [Via; 6] = [Via::Mesh, Via::Redis, Via::Amqp, Via::Plain, Via::Import, Via::Stream];

/// An entry that was walked over. What should be text is not checked.
pub(super) struct Raw<'a> {
    pub room: &'a [u8],
    pub name: Option<&'a [u8]>,
    pub via: Via,
    /// Of data, not of text.
    pub mime: Option<&'a [u8]>,
    pub content: &'a [u8],
}

/// Walks over entries.
pub(super) struct Walk<'a>(pub &'a [u8]);

impl<'a> Walk<'a> {
    /// Steps over an entry; none: there is none.
    #[inline]
    pub fn entry(&mut self) -> Option<Raw<'a>> {
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
        Some(Raw { room, name, via, mime, content: self.field()? })
    }

    /// Bytes with their length before them.
    #[inline]
    fn field(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (field, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(field)
    }

    /// A number as bincode writes it: in a byte up to 250, else in 2, 4 or 8 bytes behind one that says so.
    #[inline]
    fn number(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first()?;
        let width = match first {
            0..=250 => {
                self.0 = rest;
                return Some(u64::from(*first));
            }
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

/// Appends the entry that `draft` becomes.
#[inline]
pub(super) fn put(bytes: &mut Vec<u8>, draft: &Draft) {
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
    put_field(bytes, draft.payload.bytes());
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
                put(&mut written, &draft);
                assert_eq!(written.len(), bytes(&draft));
                assert_eq!(via as usize, number);
                let mut walk = Walk(&written);
                let entry = walk.entry().unwrap();
                assert_eq!((entry.room, entry.via, entry.content), (&b"lobby"[..], via, text.as_bytes()));
                assert_eq!(entry.name, draft.name.as_deref().map(str::as_bytes));
                assert_eq!(entry.mime, (number % 2 == 1).then_some(&b"image/png"[..]));
                assert!(walk.0.is_empty());
                for cut in [0, 1, written.len() - 1] {
                    assert!(Walk(&written[..cut]).entry().is_none(), "cut to {cut}");
                }
            }
        }
    }
}
