//! Which entries somebody wants of the log.

use crate::id::Room;
use crate::replica::batch::Entry;
#[cfg(feature = "history")]
use crate::replica::clock::Hlc;

/// Which entries are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// Of this room only.
    pub room: Option<Room>,
    /// Said at this time or later, in milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// Said at this time or earlier, in milliseconds since 1970.
    pub until_ms: Option<u64>,
    /// Texts that contain this, whatever the case of its letters.
    pub grep: Option<String>,
}

impl Want {
    /// Whether `entry` is wanted.
    pub fn takes(&self, entry: &Entry) -> bool {
        let said_ms = entry.hlc.wall_ms();
        self.room.as_ref().map_or(!entry.room.is_control(), |room| *room == entry.room)
            && self.since_ms.is_none_or(|since| since <= said_ms)
            && self.until_ms.is_none_or(|until| said_ms <= until)
            && self.grep.as_ref().is_none_or(|part| {
                entry.payload.text().is_some_and(|text| text.to_lowercase().contains(&part.to_lowercase()))
            })
    }

    #[cfg(feature = "history")]
    pub(super) fn since(&self) -> Hlc {
        self.since_ms.map_or(Hlc::default(), Hlc::at)
    }

    #[cfg(feature = "history")]
    pub(super) fn until(&self) -> Hlc {
        self.until_ms.map_or(Hlc(u64::MAX), |until| Hlc::at(until).plus(u64::from(u16::MAX)))
    }
}
