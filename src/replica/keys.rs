//! Places in time order, and what happens to entries that share a key.
//!
//! Two entries with one key are one message said twice: a retry that met a split mesh. Both stay in their streams; only the
//! smaller [`Place`] is shown. [`Namesakes`] is that decision, the same in every log, whatever order entries come in.

use std::fmt;
use std::str::FromStr;

use super::batch::Entry;
use super::clock::Hlc;
use crate::id::{EntryId, Epoch, ParseError};

/// A place in time order. Shown as 16 hex digits of the time, a dot and the entry id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The time.
    pub hlc: Hlc,
    /// The entry.
    pub id: EntryId,
}

impl Place {
    /// Where `entry` stands.
    pub fn of(entry: &Entry) -> Place {
        Place { hlc: entry.hlc, id: entry.id }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.{}", self.hlc.0, self.id)
    }
}

impl FromStr for Place {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Place, ParseError> {
        let (hlc, id) = text.split_once('.').ok_or(ParseError::EntryId)?;
        let hlc = hlc.parse::<Epoch>().map_err(|_| ParseError::EntryId)?;
        Ok(Place { hlc: Hlc(hlc.0), id: id.parse()? })
    }
}

/// Other entries of one key that are remembered beside the smallest.
pub const OTHERS_MAX: usize = 8;

/// All entries of one key that a log holds, in bounded space however many there are. It is dropped with the last of them;
/// until then it remembers the smallest, so that a twin stays a twin when the smaller one has expired, and the first others,
/// so that who was given one of them is not given the smallest, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namesakes {
    /// The smallest entry ever held: the one that is shown, as long as it is there.
    pub smallest: Place,
    /// Whether the smallest is still there.
    pub smallest_lives: bool,
    /// How many are there.
    pub living: u32,
    /// The first [`OTHERS_MAX`] of the others, whether they are still there or not.
    pub others: Vec<Place>,
}

/// What an entry is when it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is shown.
    Shown,
    /// It is shown from now on, and the one shown before is a twin.
    ShownInstead,
    /// It is a twin of a smaller one.
    Twin,
}

impl Namesakes {
    /// The first entry of a key.
    pub fn first(place: Place) -> Namesakes {
        Namesakes { smallest: place, smallest_lives: true, living: 1, others: Vec::new() }
    }

    /// Takes another entry of the key.
    pub fn insert(&mut self, place: Place) -> Standing {
        self.living = self.living.saturating_add(1);
        if place == self.smallest {
            return Standing::Twin;
        }
        let other = place.max(self.smallest);
        if self.others.len() < OTHERS_MAX && !self.others.contains(&other) {
            self.others.push(other);
        }
        if place > self.smallest {
            return Standing::Twin;
        }
        let instead = std::mem::replace(&mut self.smallest_lives, true);
        self.smallest = place;
        if instead { Standing::ShownInstead } else { Standing::Shown }
    }

    /// Lets go of an entry that was taken; answers whether it was the one shown. With nothing left, drop this.
    pub fn expire(&mut self, place: Place) -> bool {
        self.living = self.living.saturating_sub(1);
        let shown = self.shows(place.id);
        self.smallest_lives &= !shown;
        shown
    }

    /// All that are remembered beside `id`.
    pub fn beside(&self, id: EntryId) -> impl Iterator<Item = Place> + '_ {
        [self.smallest].into_iter().chain(self.others.iter().copied()).filter(move |place| place.id != id)
    }

    /// Whether `id` is the one that is shown.
    pub fn shows(&self, id: EntryId) -> bool {
        self.smallest_lives && self.smallest.id == id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{NodeId, Run, Seq};

    fn place(ms: u64) -> Place {
        let run = Run { node: NodeId([1; 32]), epoch: Epoch(1) };
        Place { hlc: Hlc::at(ms), id: EntryId { run, seq: Seq(ms) } }
    }

    #[test]
    fn the_smallest_is_shown_in_whatever_order_they_come() {
        for order in [[1, 2, 3], [3, 2, 1], [2, 3, 1], [2, 1, 3]] {
            let mut key = Namesakes::first(place(order[0]));
            order[1..].iter().for_each(|&ms| _ = key.insert(place(ms)));
            assert!(key.shows(place(1).id) && !key.shows(place(2).id) && !key.shows(place(3).id));
            assert_eq!(key.living, 3);
            let mut beside: Vec<Place> = key.beside(place(2).id).collect();
            beside.sort();
            assert_eq!(beside, [place(1), place(3)]);
        }
    }

    #[test]
    fn a_flood_of_namesakes_takes_bounded_space() {
        let mut key = Namesakes::first(place(1_000));
        (1..1_000).rev().for_each(|ms| _ = key.insert(place(ms)));
        assert!(key.shows(place(1).id) && key.living == 1_000);
        assert_eq!(key.others.len(), OTHERS_MAX);
        assert!(key.beside(place(1).id).any(|other| other == place(1_000)), "the first is not forgotten");
    }

    #[test]
    fn a_twin_stays_a_twin_when_the_smaller_one_has_expired() {
        let mut key = Namesakes::first(place(2));
        assert_eq!(key.insert(place(5)), Standing::Twin);
        assert!(key.expire(place(2)));
        assert!(!key.shows(place(5).id) && key.living == 1);
        assert_eq!(key.insert(place(1)), Standing::Shown);
        assert!(!key.expire(place(5)));
    }

    #[test]
    fn a_place_survives_the_way_through_text() {
        assert_eq!(place(77).to_string().parse::<Place>(), Ok(place(77)));
        assert!("x".parse::<Place>().is_err());
    }
}
