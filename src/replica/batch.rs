//! Consecutive entries of one origin, published together and encoded once.
//!
//! The bytes made here are what the wire carries, every window and log keeps and every repair sends; their borders never
//! change. A reader decodes entries only to deliver them. This module owns the layout:
//!
//! ```text
//! batch  = version(1) node(32) epoch(8) first(8) count(4) hlc(8) body-hash(32) previous-hash(32) signature(64) body
//! body   = preamble entry*                 integers little-endian; preamble and entries in bincode's standard form
//! ```
//!
//! `body-hash` is BLAKE3 of the body; `previous-hash` is the body hash of the origin's batch before this one (zero before
//! the first); the signature is its author's, by Ed25519 over [`SIGNED_PREFIX`] and the header before it, so it covers the
//! body by its hash. Golden bytes in `tests/wire.rs` guard it.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bytes::{BufMut, Bytes};
use std::sync::Arc;

use super::clock::Hlc;
use super::entry;
pub use super::entry::Entries;
pub(crate) use super::entry::Glance;
pub use super::payload::{NotText, Payload, PayloadRef, Text};
use crate::id::{EntryId, Epoch, Key, NodeId, NodeKey, Room, Run, Seq};

/// The version byte of a batch.
pub const BATCH_VERSION: u8 = 1;
/// Bytes before the body.
pub const HEADER_BYTES: usize = 1 + 32 + 8 + 8 + 4 + 8 + 32 + 32 + 64;
/// Where the signature begins.
const SIGNATURE_OFFSET: usize = HEADER_BYTES - 64;
/// Stands before what is signed, so that no signature of a batch is one of something else.
pub const SIGNED_PREFIX: &[u8] = b"hubless batch\n";
/// Where `first` stands in the header; the gate reads it and `count` to know how far a peer was served.
pub const FIRST_OFFSET: usize = 1 + 32 + 8;
/// The largest payload of one entry, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 256 * 1024;
/// A batch is closed before its body passes this.
pub const BODY_BYTES_MAX: usize = 512 * 1024;
/// The largest encoded batch: with room for its header, its preamble, and the fields of one entry of the largest payload.
pub const BATCH_BYTES_MAX: usize = BODY_BYTES_MAX + 16 * 1024;
/// The most entries in one batch.
pub const BATCH_ENTRIES_MAX: usize = 16 * 1024;
/// The longest display name and the longest content type, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// How everything in this crate is written in bincode: little-endian varints, never more than a batch's worth.
pub type Coding = Configuration<LittleEndian, Varint, Limit<BATCH_BYTES_MAX>>;
/// The one value of [`Coding`].
pub const CODING: Coding = bincode::config::standard().with_limit::<BATCH_BYTES_MAX>();

/// Which way an entry came into its mesh. Grows only at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// Published by a node.
    Mesh,
    /// From Redis.
    Redis,
    /// From an AMQP broker.
    Amqp,
    /// From a stock ZeroMQ client.
    Plain,
    /// From an imported history.
    Import,
    /// From a stream of Redis.
    #[serde(rename = "redis")]
    Stream,
}

/// A message before it has an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// Where it belongs.
    pub room: Room,
    /// What it carries, at most [`PAYLOAD_BYTES_MAX`].
    pub payload: Payload,
    /// Who said it, at most [`NAME_BYTES_MAX`] bytes; none stands for the node's own name.
    pub name: Option<Arc<str>>,
    /// What makes a retry of it the same message.
    pub key: Option<Key>,
    /// Which way it came in.
    pub via: Via,
}

impl Draft {
    /// A message of this node.
    pub fn new(room: Room, payload: impl Into<Payload>) -> Draft {
        Draft { room, payload: payload.into(), name: None, key: None, via: Via::Mesh }
    }
}

/// One message as a reader gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name for ever.
    pub id: EntryId,
    /// Where it belongs.
    pub room: Room,
    /// What it carries.
    pub payload: Payload,
    /// Who said it.
    pub name: Arc<str>,
    /// When, by its origin's hybrid clock.
    pub hlc: Hlc,
    /// Which way it came into the mesh.
    pub via: Via,
    /// What makes a retry of it the same message.
    pub key: Option<Key>,
}

/// The bytes are no batch, or not one that this version reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Shorter than its header, or longer than [`BATCH_BYTES_MAX`].
    #[error("a batch of impossible length")]
    Length,
    /// Another version byte.
    #[error("a batch of another version")]
    Version,
    /// A first seq of 0, no entries, too many, or beyond the last seq.
    #[error("a batch with an impossible range")]
    Range,
    /// The body does not have the hash that the header gives.
    #[error("a batch whose body does not match its hash")]
    Hash,
    /// The signature is not that of the node whose stream it claims to be a part of.
    #[error("a batch that its author did not sign")]
    Signature,
    /// The preamble or an entry does not decode, or bytes are left over.
    #[error("a batch whose body does not decode")]
    Body,
}

#[derive(bincode::Encode, bincode::BorrowDecode)]
struct WirePreamble<'a> {
    /// The display name of the node that published it.
    name: &'a str,
    /// The keys of those entries that have one, by index.
    keys: Vec<(u32, [u8; 16])>,
}

/// An encoded batch, whose header has been read and whose body and author have been checked. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Batch {
    bytes: Bytes,
    origin: Run,
    first: Seq,
    count: u32,
    hlc: Hlc,
}

impl Batch {
    /// Reads the header of `bytes`, checks the body against its hash and that its author signed it; entries are decoded by
    /// [`Batch::entries`].
    ///
    /// # Errors
    /// Whatever of [`BatchError`] fits, but never [`BatchError::Body`].
    pub fn parse(bytes: Bytes) -> Result<Batch, BatchError> {
        let batch = Batch::checked_before(bytes)?;
        batch.check()?;
        Ok(batch)
    }

    /// Reads the header of bytes that were parsed before and kept by what notices when they change.
    ///
    /// # Errors
    /// [`BatchError::Length`], [`BatchError::Version`] or [`BatchError::Range`].
    pub fn checked_before(bytes: Bytes) -> Result<Batch, BatchError> {
        if bytes.len() <= HEADER_BYTES || bytes.len() > BATCH_BYTES_MAX {
            return Err(BatchError::Length);
        }
        if bytes[0] != BATCH_VERSION {
            return Err(BatchError::Version);
        }
        let mut node = [0; 32];
        node.copy_from_slice(&bytes[1..33]);
        let origin = Run { node: NodeId(node), epoch: Epoch(u64_at(&bytes, 33)) };
        let first = u64_at(&bytes, FIRST_OFFSET);
        let count = u32_at(&bytes, FIRST_OFFSET + 8);
        let hlc = Hlc(u64_at(&bytes, FIRST_OFFSET + 12));
        let fits = first > 0
            && count > 0
            && count as usize <= BATCH_ENTRIES_MAX
            && first.checked_add(u64::from(count)).is_some();
        if !fits {
            return Err(BatchError::Range);
        }
        Ok(Batch { bytes, origin, first: Seq(first), count, hlc })
    }

    /// Checks the body against its hash, and that its author signed it.
    ///
    /// # Errors
    /// [`BatchError::Hash`] or [`BatchError::Signature`].
    pub fn check(&self) -> Result<(), BatchError> {
        self.check_body()?;
        let mut signature = [0; 64];
        signature.copy_from_slice(&self.bytes[SIGNATURE_OFFSET..HEADER_BYTES]);
        let signed = self.origin.node.has_signed(&signed(&self.bytes), &signature);
        signed.then_some(()).ok_or(BatchError::Signature)
    }

    /// Checks the body against its hash.
    ///
    /// # Errors
    /// [`BatchError::Hash`].
    pub fn check_body(&self) -> Result<(), BatchError> {
        let same = *blake3::hash(&self.bytes[HEADER_BYTES..]).as_bytes() == self.body_hash();
        same.then_some(()).ok_or(BatchError::Hash)
    }

    /// The bytes: the same from its origin to every log.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Whose stream it is a part of.
    pub fn origin(&self) -> Run {
        self.origin
    }

    /// The seq of its first entry.
    pub fn first(&self) -> Seq {
        self.first
    }

    /// The seq of its last entry.
    pub fn last(&self) -> Seq {
        Seq(self.first.0 + u64::from(self.count) - 1)
    }

    /// How many entries it holds, at least 1.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The time of its first entry.
    pub fn hlc(&self) -> Hlc {
        self.hlc
    }

    /// The time of its last entry.
    pub fn hlc_last(&self) -> Hlc {
        self.hlc.plus(u64::from(self.count) - 1)
    }

    /// BLAKE3 of the body: what the next batch of this origin names as its previous.
    pub fn body_hash(&self) -> [u8; 32] {
        let mut hash = [0; 32];
        hash.copy_from_slice(&self.bytes[BODY_HASH_OFFSET..BODY_HASH_OFFSET + 32]);
        hash
    }

    /// The keys of those entries that have one.
    ///
    /// # Errors
    /// [`BatchError::Body`] if the preamble does not decode or names an entry that is not there.
    pub fn keys(&self) -> Result<Vec<(EntryId, Key)>, BatchError> {
        let (preamble, _) = self.preamble()?;
        preamble
            .keys
            .iter()
            .map(|&(index, key)| {
                let there = index < self.count;
                let seq = Seq(self.first.0 + u64::from(index));
                there.then_some((EntryId { run: self.origin, seq }, Key(key))).ok_or(BatchError::Body)
            })
            .collect()
    }

    /// The entries, decoded one by one; ends after the first that does not decode.
    pub fn entries(&self) -> Entries {
        let (name, keys, at) = match self.preamble() {
            Ok((preamble, used)) => {
                let mut keys = preamble.keys;
                keys.sort_unstable_by_key(|(index, _)| *index);
                (preamble.name.into(), keys, HEADER_BYTES + used)
            }
            Err(_) => ("".into(), Vec::new(), usize::MAX),
        };
        Entries::new(self.clone(), name, keys, at)
    }

    fn preamble(&self) -> Result<(WirePreamble<'_>, usize), BatchError> {
        bincode::borrow_decode_from_slice(&self.bytes[HEADER_BYTES..], CODING).map_err(|_| BatchError::Body)
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}{:?}..={:?}", self.origin, self.first, self.last())
    }
}

/// What a batch is made from: as many of `drafts` as fit.
pub(crate) struct Author<'a> {
    pub key: &'a NodeKey,
    pub origin: Run,
    pub name: &'a str,
    pub first: Seq,
    pub hlc: Hlc,
    pub previous: [u8; 32],
}

impl Author<'_> {
    /// Encodes the first drafts into one batch, as many as fit, at least one.
    ///
    /// Drafts hold their limits when they get here: the handle refuses those that do not.
    pub(crate) fn encode(&self, drafts: &[Draft]) -> Batch {
        let mut count = 0;
        let mut body_bytes = 0;
        for draft in drafts {
            let more = entry::bytes(draft);
            if count > 0 && (body_bytes + more > BODY_BYTES_MAX || count == BATCH_ENTRIES_MAX) {
                break;
            }
            (count, body_bytes) = (count + 1, body_bytes + more);
        }
        let drafts = &drafts[..count];
        let keys: Vec<(u32, [u8; 16])> =
            drafts.iter().zip(0u32..).filter_map(|(draft, index)| Some((index, draft.key?.0))).collect();
        let preamble = WirePreamble { name: self.name, keys };
        let preamble = bincode::encode_to_vec(preamble, CODING).unwrap_or_default();
        let mut bytes = Vec::with_capacity(HEADER_BYTES + preamble.len() + body_bytes);
        bytes.put_u8(BATCH_VERSION);
        bytes.put_slice(&self.origin.node.0);
        bytes.put_u64_le(self.origin.epoch.0);
        bytes.put_u64_le(self.first.0);
        bytes.put_u32_le(count as u32);
        bytes.put_u64_le(self.hlc.0);
        bytes.put_slice(&[0; 32]);
        bytes.put_slice(&self.previous);
        bytes.put_slice(&[0; 64]);
        bytes.put_slice(&preamble);
        entry::put(&mut bytes, drafts);
        let hash = blake3::hash(&bytes[HEADER_BYTES..]);
        bytes[BODY_HASH_OFFSET..BODY_HASH_OFFSET + 32].copy_from_slice(hash.as_bytes());
        let signature = self.key.sign(&signed(&bytes));
        bytes[SIGNATURE_OFFSET..HEADER_BYTES].copy_from_slice(&signature);
        Batch { bytes: bytes.into(), origin: self.origin, first: self.first, count: count as u32, hlc: self.hlc }
    }
}

const BODY_HASH_OFFSET: usize = FIRST_OFFSET + 8 + 4 + 8;

/// What the author of a batch signs.
fn signed(batch: &[u8]) -> [u8; SIGNED_PREFIX.len() + SIGNATURE_OFFSET] {
    let mut signed = [0; SIGNED_PREFIX.len() + SIGNATURE_OFFSET];
    signed[..SIGNED_PREFIX.len()].copy_from_slice(SIGNED_PREFIX);
    signed[SIGNED_PREFIX.len()..].copy_from_slice(&batch[..SIGNATURE_OFFSET]);
    signed
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(drafts: &[Draft]) -> Batch {
        let key = NodeKey::from_bytes(&[1; 32]);
        let origin = key.run(Epoch(2));
        Author { key: &key, origin, name: "ada", first: Seq(5), hlc: Hlc::at(1_000), previous: [0; 32] }.encode(drafts)
    }

    fn draft(text: &str) -> Draft {
        Draft::new(Room::lobby(), text)
    }

    #[test]
    fn what_goes_in_comes_out() {
        let mut drafts = vec![draft("hi"), Draft::new(Room::new("x.y").unwrap(), vec![0, 255])];
        drafts[1].name = Some("grace".into());
        drafts[1].key = Some(Key([9; 16]));
        let batch = Batch::parse(encode(&drafts).bytes().clone()).unwrap();
        assert_eq!((batch.first(), batch.last(), batch.count()), (Seq(5), Seq(6), 2));
        let entries: Vec<Entry> = batch.entries().map(Result::unwrap).collect();
        assert_eq!(entries[0].payload.text(), Some("hi"));
        assert_eq!((&*entries[0].name, &*entries[1].name), ("ada", "grace"));
        assert_eq!(entries[1].payload.bytes().as_ref(), &[0, 255]);
        assert_eq!((entries[0].key, entries[1].key), (None, Some(Key([9; 16]))));
        assert_eq!(batch.keys().unwrap(), vec![(entries[1].id, Key([9; 16]))]);
        assert!(entries[1].hlc > entries[0].hlc);
    }

    #[test]
    fn a_batch_is_closed_at_its_limit() {
        let small: Vec<Draft> = (0..10_000).map(|_| draft(&"x".repeat(64))).collect();
        let batch = encode(&small);
        assert!(batch.bytes().len() <= BODY_BYTES_MAX + HEADER_BYTES + 160 && batch.count() > 500, "{batch:?}");
        let largest = draft(&"y".repeat(PAYLOAD_BYTES_MAX));
        let batch = encode(&[largest.clone(), largest]);
        assert_eq!(batch.count(), 1);
        assert!(Batch::parse(batch.bytes().clone()).is_ok());
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_noticed() {
        let bytes = encode(&[draft("hello"), draft("world")]).bytes().to_vec();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            let error = Batch::parse(bad.into()).unwrap_err();
            assert!(at < HEADER_BYTES || error == BatchError::Hash, "byte {at}: {error}");
            assert!(
                !(SIGNATURE_OFFSET..HEADER_BYTES).contains(&at) || error == BatchError::Signature,
                "byte {at}: {error}"
            );
        }
        for len in 0..bytes.len() {
            assert!(Batch::parse(Bytes::copy_from_slice(&bytes[..len])).is_err());
        }
    }

    #[test]
    fn nobody_speaks_in_the_name_of_another() {
        let (key, other) = (NodeKey::from_bytes(&[1; 32]), NodeKey::from_bytes(&[2; 32]));
        let by = |key: &NodeKey, origin| {
            let author = Author { key, origin, name: "ada", first: Seq(1), hlc: Hlc::at(1), previous: [0; 32] };
            Batch::parse(author.encode(&[draft("hi")]).bytes().clone()).map(drop)
        };
        assert_eq!(by(&key, key.run(Epoch(1))), Ok(()));
        assert_eq!(by(&other, key.run(Epoch(1))), Err(BatchError::Signature));
        // A name that is no key, and the neutral element, for which anything is a signature to lax eyes.
        for node in
            [[9; 32], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]]
        {
            assert_eq!(by(&key, Run { node: NodeId(node), epoch: Epoch(1) }), Err(BatchError::Signature));
        }
        let mut unsigned = encode(&[draft("hi")]).bytes().to_vec();
        unsigned[SIGNATURE_OFFSET..HEADER_BYTES].fill(0);
        assert_eq!(Batch::parse(unsigned.into()), Err(BatchError::Signature));
    }

    #[test]
    fn from_the_back_come_the_same_entries_whatever_was_taken_from_the_front() {
        // Lengths that take one byte, three and five.
        let mut drafts: Vec<Draft> = (0..40).map(|number| draft(&"x".repeat(8 * number))).collect();
        drafts[3] = draft(&"y".repeat(70_000));
        drafts[4].payload = vec![0; 66_000].into();
        drafts[5].name = Some("grace".into());
        drafts[7].room = Room::new("other").unwrap();
        drafts[9].key = Some(Key([9; 16]));
        let batch = encode(&drafts);
        let all: Vec<Entry> = batch.entries().map(Result::unwrap).collect();
        for front in 0..=all.len() {
            let mut entries = batch.entries();
            assert!(entries.by_ref().take(front).flatten().eq(all[..front].iter().cloned()));
            assert_eq!(entries.next_back(), all[front..].last().cloned().map(Ok));
            assert_eq!(entries.next(), all[front..].first().filter(|_| front + 1 < all.len()).cloned().map(Ok));
            let rest: Vec<Entry> = entries.rev().map(Result::unwrap).collect();
            let left = all.get(front + 1..all.len() - 1).unwrap_or_default();
            assert!(rest.into_iter().rev().eq(left.iter().cloned()), "{front} from the front");
        }
    }

    #[test]
    fn a_body_that_lies_about_its_entries_ends_with_an_error() {
        let mut bytes = encode(&[draft("hello")]).bytes().to_vec();
        bytes[FIRST_OFFSET + 8] = 2;
        let batch = Batch::checked_before(bytes.into()).unwrap();
        let entries: Vec<_> = batch.entries().collect();
        assert_eq!(entries.last(), Some(&Err(BatchError::Body)));
        let backwards: Vec<_> = batch.entries().rev().collect();
        assert!(backwards.into_iter().rev().eq(entries));
    }
}
