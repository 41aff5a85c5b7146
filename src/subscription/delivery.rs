//! What a reader wants, and what it is given.

use std::sync::Arc;

use crate::id::{EntryId, Key, Room};
use crate::replica::batch::{Entry, Glance, Payload, PayloadRef, Via};
use crate::replica::clock::Hlc;

/// Which rooms a reader wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// One room.
    Room(Room),
    /// All rooms whose names begin with this.
    Prefix(String),
    /// All rooms, and what nodes tell each other in the log: for bridges, which account for every entry.
    #[doc(hidden)]
    Everything,
}

impl Filter {
    /// Every room.
    pub fn all() -> Filter {
        Filter::Prefix(String::new())
    }

    /// Whether `room` is wanted.
    pub fn wants(&self, room: &Room) -> bool {
        match self {
            Filter::Room(wanted) => wanted == room,
            Filter::Prefix(prefix) => !room.is_control() && room.as_str().starts_with(prefix),
            Filter::Everything => true,
        }
    }
}

/// A message as a reader gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its name for ever.
    pub id: EntryId,
    /// Where it was said.
    pub room: Room,
    /// What was said.
    pub payload: Payload,
    /// Who said it.
    pub name: Arc<str>,
    /// When, by the hybrid clock of the node that published it.
    pub hlc: Hlc,
    /// Which way it came into the mesh.
    pub via: Via,
    /// What makes a retry of it the same message.
    pub key: Option<Key>,
    /// It comes after a [`Gap`] that it once was a part of, or from before the reader's time.
    pub late: bool,
}

impl Message {
    #[inline]
    pub(crate) fn new(entry: Entry, late: bool) -> Message {
        let Entry { id, room, payload, name, hlc, via, key } = entry;
        Message { id, room, payload, name, hlc, via, key, late }
    }
}

/// A [`Message`] where it lies in its batch: to look at it costs no copy and no allocation.
#[derive(Clone, Copy, Debug)]
pub struct MessageRef<'a> {
    pub(super) glance: Glance<'a>,
    pub(super) late: bool,
}

impl<'a> MessageRef<'a> {
    /// Its name for ever.
    pub fn id(&self) -> EntryId {
        self.glance.id()
    }

    /// Where it was said.
    pub fn room(&self) -> &'a Room {
        self.glance.room
    }

    /// What was said.
    pub fn payload(&self) -> PayloadRef<'a> {
        self.glance.payload
    }

    /// Who said it.
    pub fn name(&self) -> &'a str {
        self.glance.name()
    }

    /// When, by the hybrid clock of the node that published it.
    pub fn hlc(&self) -> Hlc {
        self.glance.hlc()
    }

    /// Which way it came into the mesh.
    pub fn via(&self) -> Via {
        self.glance.via
    }

    /// What makes a retry of it the same message.
    pub fn key(&self) -> Option<Key> {
        self.glance.key
    }

    /// It comes after a [`Gap`] that it once was a part of, or from before the reader's time.
    pub fn is_late(&self) -> bool {
        self.late
    }

    /// The message for itself; its payload shares the bytes of the batch.
    #[inline]
    pub fn to_message(&self) -> Message {
        Message {
            id: self.id(),
            room: self.room().clone(),
            payload: self.glance.take_payload(),
            name: self.glance.take_name(),
            hlc: self.hlc(),
            via: self.via(),
            key: self.key(),
            late: self.late,
        }
    }
}

/// Messages that a reader does not have, or does not have yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// How many, at most: a gap counts entries of all rooms where nobody can tell.
    pub missing: u64,
    /// Why.
    pub reason: GapReason,
}

/// Why messages are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GapReason {
    /// They were not there in time and may still come, marked late.
    Late,
    /// Every peer has let them go, as its retention says.
    Expired,
    /// Nobody has them any more.
    Lost,
    /// This reader was too slow for them; they are in the window, or in the log.
    Slow,
}

/// What a [`Subscription`](super::Subscription) yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// A message.
    Message(Message),
    /// Word of messages that are missing at this place.
    Gap(Gap),
}

/// A [`Delivery`] that is only looked at.
#[derive(Clone, Copy, Debug)]
pub enum DeliveryRef<'a> {
    /// A message.
    Message(MessageRef<'a>),
    /// Word of messages that are missing at this place.
    Gap(Gap),
}

impl DeliveryRef<'_> {
    /// The delivery for itself.
    #[inline]
    pub fn to_delivery(&self) -> Delivery {
        match self {
            DeliveryRef::Message(message) => Delivery::Message(message.to_message()),
            DeliveryRef::Gap(gap) => Delivery::Gap(*gap),
        }
    }
}
