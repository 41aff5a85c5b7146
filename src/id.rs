//! Names of things: nodes, runs, entries, rooms, keys; and the key that proves a node's name.
//!
//! Newtypes that can be neither mixed up nor hold a value out of rules. Nothing here does I/O or draws random
//! numbers; whoever needs a fresh [`Epoch`] passes one in.

use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use ed25519_dalek::{Signature, Signer, SigningKey, Verifier, VerifyingKey};
use serde::{Deserialize, Serialize};

/// A node's identity: its Ed25519 public key, shown as 52 characters of lower-case base32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 32]);

/// What a node proves its name with: its Ed25519 secret key. Never shown.
#[derive(Clone)]
pub struct NodeKey(SigningKey);

/// One life of a node: a random number, new at every start, shown as 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// One life of one node, and the origin of everything it published in it. Shown as `NODE.EPOCH`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Run {
    /// Whose life it is.
    pub node: NodeId,
    /// Which life it is.
    pub epoch: Epoch,
}

/// The first 8 bytes of BLAKE3 over a [`Run`]: names a run where 40 bytes are too many.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunHash(pub u64);

/// A place in an origin's stream, counted from 1; 0 stands for "before the first".
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

/// The one name of an entry in the whole mesh, for ever. Shown as `NODE.EPOCH.SEQ`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// The stream.
    pub run: Run,
    /// The place in it.
    pub seq: Seq,
}

/// What makes a retried message one message: 16 bytes, shown as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; 16]);

/// What people chat in, and what a mesh is called: 1 to 64 of `a-z 0-9 - _ .`, neither beginning nor ending with
/// `.`, without `..`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Room(Arc<str>);

/// Text that is not an id, a room or a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not 52 characters of base32.
    #[error("a node id is 52 characters of a-z and 2-7")]
    NodeId,
    /// Not 16 hex digits.
    #[error("an epoch is 16 hex digits")]
    Epoch,
    /// Not `NODE.EPOCH`.
    #[error("a run is NODE.EPOCH")]
    Run,
    /// Not `NODE.EPOCH.SEQ` with a SEQ of at least 1.
    #[error("an entry id is NODE.EPOCH.SEQ")]
    EntryId,
    /// Not 32 hex digits.
    #[error("a key is 32 hex digits")]
    Key,
    /// Out of the rules for names.
    #[error("`{0}` is not a room name: 1 to 64 of a-z 0-9 - _ . that neither begins nor ends with a dot, no `..`")]
    Room(String),
}

impl From<std::convert::Infallible> for ParseError {
    fn from(never: std::convert::Infallible) -> ParseError {
        match never {}
    }
}

impl NodeId {
    /// Whether the node of this name signed `message`. Keys and signatures that could stand for several are refused: the
    /// former are those of small order; of the latter, `verify` takes one form only.
    pub fn has_signed(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        let signature = Signature::from_bytes(signature);
        let unpacked = UNPACKED.with_borrow_mut(|keys| {
            let place = &mut keys[usize::from(self.0[0]) % UNPACKED_MAX];
            match place {
                Some((node, key)) if node == self => Some(*key),
                _ => {
                    let key = VerifyingKey::from_bytes(&self.0).ok().filter(|key| !key.is_weak())?;
                    *place = Some((*self, key));
                    Some(key)
                }
            }
        });
        unpacked.is_some_and(|key| key.verify(message, &signature).is_ok())
    }
}

/// Keys that each thread remembers as points of the curve: to unpack one takes a tenth of a check.
const UNPACKED_MAX: usize = 64;

thread_local! {
    static UNPACKED: RefCell<[Option<(NodeId, VerifyingKey)>; UNPACKED_MAX]> = const { RefCell::new([None; UNPACKED_MAX]) };
}

impl NodeKey {
    /// How many bytes a secret key has.
    pub const LEN: usize = 32;

    /// The key of these secret bytes.
    pub fn from_bytes(secret: &[u8; NodeKey::LEN]) -> NodeKey {
        NodeKey(SigningKey::from_bytes(secret))
    }

    /// The name that it proves.
    pub fn node(&self) -> NodeId {
        NodeId(self.0.verifying_key().to_bytes())
    }

    /// A life of the node of that name.
    pub fn run(&self, epoch: Epoch) -> Run {
        Run { node: self.node(), epoch }
    }

    /// Signs `message`, which says by its first bytes what it is.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey(***)")
    }
}

impl Run {
    /// The short name of this run, for places where 40 bytes are too many.
    pub fn hash(&self) -> RunHash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.node.0);
        hasher.update(&self.epoch.0.to_le_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        RunHash(u64::from_le_bytes(first))
    }
}

impl Seq {
    /// The place after this one; saturates, so a hostile `u64::MAX` stays where it is.
    pub fn next(self) -> Seq {
        Seq(self.0.saturating_add(1))
    }
}

impl Key {
    /// The key of a client id: the first 16 bytes of its BLAKE3 hash.
    pub fn of_client_id(client_id: &str) -> Key {
        let mut key = [0; 16];
        key.copy_from_slice(&blake3::hash(client_id.as_bytes()).as_bytes()[..16]);
        Key(key)
    }
}

/// No name of a room has a tilde.
const CONTROL: &str = "~control";

impl Room {
    /// The longest name, in bytes.
    pub const LEN_MAX: usize = 64;

    /// The room everybody is in: `lobby`.
    pub fn lobby() -> Room {
        Room("lobby".into())
    }

    /// The room of control entries, which no client can name.
    pub(crate) fn control() -> Room {
        Room(CONTROL.into())
    }

    /// Whether it is the room of control entries.
    pub(crate) fn is_control(&self) -> bool {
        *self.0 == *CONTROL
    }

    /// The name of a room as an entry or a log has it: [`Room::new`], or that of control entries.
    pub(crate) fn of_entry(name: &str) -> Result<Room, ParseError> {
        if name == CONTROL { Ok(Room::control()) } else { Room::new(name) }
    }

    /// The name of a room.
    ///
    /// # Errors
    /// [`ParseError::Room`] if `name` is out of the rules given at [`Room`].
    pub fn new(name: &str) -> Result<Room, ParseError> {
        if Room::is_valid(name) {
            Ok(Room(name.into()))
        } else {
            Err(ParseError::Room(name.chars().take(80).collect()))
        }
    }

    /// Whether `name` keeps the rules given at [`Room`].
    pub fn is_valid(name: &str) -> bool {
        !name.is_empty()
            && name.len() <= Room::LEN_MAX
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'))
            && !name.starts_with('.')
            && !name.ends_with('.')
            && !name.contains("..")
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for Room {
    type Error = ParseError;
    fn try_from(name: &str) -> Result<Room, ParseError> {
        Room::new(name)
    }
}

impl FromStr for Room {
    type Err = ParseError;
    fn from_str(name: &str) -> Result<Room, ParseError> {
        Room::new(name)
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32_NOPAD.encode(&self.0).to_ascii_lowercase())
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.node, self.epoch)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.run, self.seq)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

/// `Debug` of ids is short: logs and failing assertions are read by people.
macro_rules! debug_as {
    ($type:ty, $self:ident, $f:ident => $body:expr) => {
        impl fmt::Debug for $type {
            fn fmt(&$self, $f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $body
            }
        }
    };
}
debug_as!(NodeId, self, f => f.write_str(&self.to_string()[..6]));
debug_as!(Epoch, self, f => f.write_str(&self.to_string()[..4]));
debug_as!(Run, self, f => write!(f, "{:?}.{:?}", self.node, self.epoch));
debug_as!(RunHash, self, f => write!(f, "{:016x}", self.0));
debug_as!(Seq, self, f => write!(f, "#{}", self.0));
debug_as!(EntryId, self, f => write!(f, "{:?}{:?}", self.run, self.seq));
debug_as!(Key, self, f => write!(f, "{self}"));
debug_as!(Room, self, f => write!(f, "{:?}", &*self.0));

impl FromStr for NodeId {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<NodeId, ParseError> {
        if text.len() != 52 || text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ParseError::NodeId);
        }
        let bytes = BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).map_err(|_| ParseError::NodeId)?;
        Ok(NodeId(bytes.try_into().map_err(|_| ParseError::NodeId)?))
    }
}

impl FromStr for Epoch {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Epoch, ParseError> {
        let hex = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !hex {
            return Err(ParseError::Epoch);
        }
        u64::from_str_radix(text, 16).map(Epoch).map_err(|_| ParseError::Epoch)
    }
}

impl FromStr for Run {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Run, ParseError> {
        let (node, epoch) = text.split_once('.').ok_or(ParseError::Run)?;
        Ok(Run { node: node.parse()?, epoch: epoch.parse()? })
    }
}

impl FromStr for EntryId {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<EntryId, ParseError> {
        let (run, seq) = text.rsplit_once('.').ok_or(ParseError::EntryId)?;
        let number = seq.parse::<u64>().map_err(|_| ParseError::EntryId)?;
        if number == 0 || seq.starts_with('+') || seq.starts_with('0') {
            return Err(ParseError::EntryId);
        }
        Ok(EntryId { run: run.parse()?, seq: Seq(number) })
    }
}

impl FromStr for Key {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Key, ParseError> {
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| ParseError::Key)?;
        Ok(Key(bytes.try_into().map_err(|_| ParseError::Key)?))
    }
}

/// Ids travel as text in JSON and in configuration.
macro_rules! serde_as_text {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(NodeId, Epoch, Run, EntryId, Key, Room);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_the_way_through_text() {
        let run = Run { node: NodeId([7; 32]), epoch: Epoch(0xabc) };
        let id = EntryId { run, seq: Seq(42) };
        assert_eq!(run.node.to_string().len(), 52);
        assert_eq!(id.to_string().parse::<EntryId>(), Ok(id));
        assert_eq!(run.to_string().parse::<Run>(), Ok(run));
        let key = Key::of_client_id("x");
        assert_eq!(key.to_string().parse::<Key>(), Ok(key));
    }

    #[test]
    fn what_could_stand_for_several_is_not_signed() {
        let key = NodeKey::from_bytes(&[7; NodeKey::LEN]);
        let signature = key.sign(b"x");
        assert!(key.node().has_signed(b"x", &signature));
        assert!(!key.node().has_signed(b"y", &signature));
        // The order of the group added to its second half, as RFC 8032 section 5.1.7 forbids.
        const ORDER: [u8; 32] =
            *b"\xed\xd3\xf5\x5c\x1a\x63\x12\x58\xd6\x9c\xf7\xa2\xde\xf9\xde\x14\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10";
        let (mut twin, mut carry) = (signature, 0);
        for (byte, more) in twin[32..].iter_mut().zip(ORDER) {
            let sum = u16::from(*byte) + u16::from(more) + carry;
            (*byte, carry) = (sum as u8, sum >> 8);
        }
        assert!(!key.node().has_signed(b"x", &twin));
        // The neutral point as a key: with it as R, and 0 beside, any message would be signed.
        let mut neutral = [0; 64];
        neutral[0] = 1;
        let weak = NodeId(*neutral.first_chunk().expect("64 bytes"));
        assert!(
            VerifyingKey::from_bytes(&weak.0)
                .is_ok_and(|key| key.verify(b"x", &Signature::from_bytes(&neutral)).is_ok())
        );
        assert!(!weak.has_signed(b"x", &neutral) && !weak.has_signed(b"x", &neutral), "once known, too");
    }

    #[test]
    fn ids_out_of_rules_are_refused() {
        let id = EntryId { run: Run { node: NodeId([7; 32]), epoch: Epoch(1) }, seq: Seq(1) }.to_string();
        for bad in ["", ".", &id[1..], &format!("{id}x"), &id.replace(".1", ".0"), &id.to_uppercase()] {
            assert!(bad.parse::<EntryId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn room_names_keep_their_rules() {
        for good in ["lobby", "a", "a.b", "x-1_y", &"r".repeat(64)] {
            assert!(Room::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".a", "a.", "a..b", "A", "é", "a b", "a/b", &"r".repeat(65)] {
            assert!(Room::new(bad).is_err(), "{bad}");
        }
    }
}
