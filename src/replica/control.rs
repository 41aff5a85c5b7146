//! What nodes tell each other in the log besides messages: how far a bridge has come, which node leads it, the word of a site.
//!
//! Such entries are in a room that no client can name, so they are in no list, page or export, and are
//! kept, repaired and signed like any other. A log folds what they say of progress into one record for each bridge, which
//! outlives them.

use std::sync::Arc;

use super::batch::{CODING, Payload};
use super::keys::Place;
use super::version::Cursor;
use crate::id::{EntryId, Epoch, NodeId, Run, Seq};
use crate::replica::clock::Hlc;

/// The content type of control entries.
const MIME: &str = "application/x-hubless-control";
/// Bridges of which a log remembers the progress.
pub const BRIDGES_MAX: usize = 64;
/// The longest word of a site, in bytes.
pub const SITE_BYTES_MAX: usize = 64;
/// The longest name of a bridge, in bytes.
pub const NAME_BYTES_MAX: usize = 256;
/// A cursor in a control entry takes at most this, in bytes.
pub const COVERED_BYTES_MAX: usize = 64 * 1024;

/// One thing that a node tells the others.
#[derive(Clone, Debug, PartialEq)]
pub enum Control {
    /// The target of this bridge has confirmed these entries, or they are none of its business.
    Confirmed {
        /// Its name.
        bridge: Arc<str>,
        /// Which entries.
        covered: Cursor,
    },
    /// This bridge begins: these entries are before its time.
    Begin {
        /// Its name.
        bridge: Arc<str>,
        /// Which entries.
        covered: Cursor,
    },
    /// What the node that says so does for this bridge.
    Role {
        /// Its name.
        bridge: Arc<str>,
        /// What it does.
        role: Role,
    },
    /// Tells this mesh from others of its name at one broker.
    Site(Arc<str>),
}

/// What a node does for a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub enum Role {
    /// It reaches the target and would lead.
    Standing,
    /// It leads: what goes out and comes in goes through it.
    Leading,
    /// It does neither any more.
    Gone,
}

/// Grows only at the end.
#[derive(bincode::Encode, bincode::BorrowDecode)]
enum Wire<'a> {
    Confirmed { bridge: &'a str, covered: &'a [u8] },
    Begin { bridge: &'a str, covered: &'a [u8] },
    Role { bridge: &'a str, role: Role },
    Site(&'a str),
}

impl Control {
    /// As it is published.
    pub fn payload(&self) -> Payload {
        let bytes = |covered: &Cursor| covered.to_bytes(COVERED_BYTES_MAX);
        let covered;
        let wire = match self {
            Control::Confirmed { bridge, covered: cursor } => {
                covered = bytes(cursor);
                Wire::Confirmed { bridge, covered: &covered }
            }
            Control::Begin { bridge, covered: cursor } => {
                covered = bytes(cursor);
                Wire::Begin { bridge, covered: &covered }
            }
            Control::Role { bridge, role } => Wire::Role { bridge, role: *role },
            Control::Site(word) => Wire::Site(word),
        };
        let data = bincode::encode_to_vec(wire, CODING).unwrap_or_default();
        Payload::Data { mime: MIME.into(), data: data.into() }
    }

    /// What a control entry says; none if this version does not know it.
    pub fn parse(payload: &Payload) -> Option<Control> {
        let Payload::Data { mime, data } = payload else { return None };
        let (wire, used): (Wire<'_>, usize) = bincode::borrow_decode_from_slice(data, CODING).ok()?;
        let name = |name: &str| (!name.is_empty() && name.len() <= NAME_BYTES_MAX).then(|| Arc::from(name));
        let control = match wire {
            _ if **mime != *MIME || used != data.len() => return None,
            Wire::Confirmed { bridge, covered } => {
                Control::Confirmed { bridge: name(bridge)?, covered: Cursor::from_bytes(covered).ok()? }
            }
            Wire::Begin { bridge, covered } => {
                Control::Begin { bridge: name(bridge)?, covered: Cursor::from_bytes(covered).ok()? }
            }
            Wire::Role { bridge, role } => Control::Role { bridge: name(bridge)?, role },
            Wire::Site(word) => Control::Site(is_site(word).then(|| word.into())?),
        };
        Some(control)
    }
}

/// Whether this can be the word of a site: it is part of the names of queues, and of paths that commas separate.
pub fn is_site(word: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=SITE_BYTES_MAX).contains(&word.len()) && word.bytes().all(plain)
}

/// How far a bridge has come: the same in every log that holds the same entries, whatever order they came in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Of several beginnings the smallest counts.
    begin: Option<(Place, Cursor)>,
    confirmed: Cursor,
}

/// On disk. Grows only at the end.
#[derive(bincode::Encode, bincode::Decode)]
struct Record {
    begin: Option<Begin>,
    confirmed: Vec<u8>,
}

/// Where a bridge began, and which entry says so.
#[derive(bincode::Encode, bincode::Decode)]
struct Begin {
    hlc: u64,
    node: [u8; 32],
    epoch: u64,
    seq: u64,
    covered: Vec<u8>,
}

impl Progress {
    /// Takes what an entry at `place` says; answers whether that changed anything.
    pub fn take(&mut self, place: Place, control: Control) -> bool {
        match control {
            Control::Confirmed { covered, .. } => {
                self.confirmed.merge(&covered);
                true
            }
            Control::Begin { covered, .. } if self.begin.as_ref().is_none_or(|(first, _)| place < *first) => {
                self.begin = Some((place, covered));
                true
            }
            _ => false,
        }
    }

    /// What is behind the bridge; none if it has not begun.
    pub fn covered(&self) -> Option<Cursor> {
        let (_, begin) = self.begin.as_ref()?;
        let mut covered = begin.clone();
        covered.merge(&self.confirmed);
        Some(covered)
    }

    /// As a log keeps it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let begin = self.begin.as_ref().map(|(Place { hlc, id: EntryId { run, seq } }, covered)| {
            let covered = covered.to_bytes(COVERED_BYTES_MAX);
            Begin { hlc: hlc.0, node: run.node.0, epoch: run.epoch.0, seq: seq.0, covered }
        });
        let record = Record { begin, confirmed: self.confirmed.to_bytes(COVERED_BYTES_MAX) };
        bincode::encode_to_vec(record, CODING).unwrap_or_default()
    }

    /// From [`Progress::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Option<Progress> {
        let (Record { begin, confirmed }, used): (Record, usize) = bincode::decode_from_slice(bytes, CODING).ok()?;
        let begin = match begin {
            None => None,
            Some(Begin { hlc, node, epoch, seq, covered }) => {
                let run = Run { node: NodeId(node), epoch: Epoch(epoch) };
                let place = Place { hlc: Hlc(hlc), id: EntryId { run, seq: Seq(seq) } };
                Some((place, Cursor::from_bytes(&covered).ok()?))
            }
        };
        let progress = Progress { begin, confirmed: Cursor::from_bytes(&confirmed).ok()? };
        (used == bytes.len()).then_some(progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RunHash;

    fn cursor(run: u64, last: u64) -> Cursor {
        let mut cursor = Cursor::new();
        cursor.add(RunHash(run), Seq(1), Seq(last), Hlc::at(last));
        cursor
    }

    fn place(ms: u64) -> Place {
        let run = Run { node: NodeId([7; 32]), epoch: Epoch(1) };
        Place { hlc: Hlc::at(ms), id: EntryId { run, seq: Seq(ms) } }
    }

    #[test]
    fn what_is_said_is_what_is_read_and_nothing_else_is() {
        for control in [
            Control::Confirmed { bridge: "b".into(), covered: cursor(1, 9) },
            Control::Begin { bridge: "b".into(), covered: Cursor::new() },
            Control::Role { bridge: "b".into(), role: Role::Leading },
            Control::Site("x7".into()),
        ] {
            let payload = control.payload();
            assert_eq!(Control::parse(&payload), Some(control));
            let Payload::Data { data, .. } = &payload else { panic!("{payload:?}") };
            assert_eq!(Control::parse(&Payload::from(data.clone())), None, "of another type");
            let longer = Payload::Data { mime: MIME.into(), data: [&data[..], &[0]].concat().into() };
            assert_eq!(Control::parse(&longer), None);
        }
        for bad in ["", "a,b", "a/b", "ü", &"x".repeat(65)] {
            assert_eq!(Control::parse(&Control::Site(bad.into()).payload()), None, "{bad}");
        }
    }

    #[test]
    fn progress_is_the_same_in_whatever_order_it_is_told() {
        let bridge = || "b".into();
        let said = [
            (place(5), Control::Begin { bridge: bridge(), covered: cursor(1, 50) }),
            (place(3), Control::Begin { bridge: bridge(), covered: cursor(1, 30) }),
            (place(6), Control::Confirmed { bridge: bridge(), covered: cursor(2, 7) }),
        ];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut progress = Progress::default();
            for at in order {
                let (place, control) = said[at].clone();
                progress.take(place, control);
            }
            let covered = progress.covered().unwrap();
            let covers = |run, seq| covered.covers(RunHash(run), Seq(seq), Hlc::at(99));
            assert!(covers(1, 30) && !covers(1, 31) && covers(2, 7), "{order:?}");
            assert_eq!(Progress::from_bytes(&progress.to_bytes()), Some(progress));
        }
        let mut confirmed_only = Progress::default();
        confirmed_only.take(place(6), said[2].1.clone());
        assert_eq!(confirmed_only.covered(), None);
    }
}
