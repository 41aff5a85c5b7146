//! Neighbours kept apart by their mesh or version: who they are, and what a person can do about it.
//!
//! Each is named at most once a minute. What a neighbour says of itself is shown only as far as it keeps the rules for
//! names, for it ends on terminals.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Candidate;
use crate::id::Room;
use crate::net::Apart;

const NOTICE_EVERY: Duration = Duration::from_secs(60);
/// Notices that wait to be taken; further ones are left for the next minute.
const NOTICES_MAX: usize = 16;
/// Neighbours named within the last minute.
const TOLD_MAX: usize = 256;

/// A neighbour that is kept apart, for a person to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Notice {
    /// Where it is.
    pub address: SocketAddr,
    /// Why it is kept apart, and what to do.
    pub reason: String,
}

/// Who belongs together, and which others were named when.
#[derive(Debug)]
pub(super) struct Neighbours {
    mesh: String,
    version: u8,
    told: VecDeque<(SocketAddr, Instant)>,
    notices: VecDeque<Notice>,
}

impl Neighbours {
    pub(super) fn new(mesh: &str, version: u8) -> Neighbours {
        Neighbours { mesh: mesh.into(), version, told: VecDeque::new(), notices: VecDeque::new() }
    }

    /// Why `candidate` must be kept apart, as far as it says.
    pub(super) fn judge(&self, candidate: &Candidate) -> Option<Apart> {
        // The version first: what another version says of its mesh may mean something else.
        let version = candidate.version.filter(|version| *version != self.version).map(Apart::Version);
        let key = candidate.strange_key.then_some(Apart::Key);
        version.or(key).or_else(|| candidate.mesh.clone().filter(|mesh| *mesh != self.mesh).map(Apart::Mesh))
    }

    /// The neighbour at `address` is kept apart; makes a notice of it unless there was one within the minute.
    pub(super) fn tell(&mut self, now: Instant, address: SocketAddr, apart: &Apart) {
        self.told.retain(|(_, at)| now.saturating_duration_since(*at) < NOTICE_EVERY);
        let full = self.told.len() >= TOLD_MAX || self.notices.len() >= NOTICES_MAX;
        if !full && self.told.iter().all(|(told, _)| *told != address) {
            self.told.push_back((address, now));
            self.notices.push_back(Notice { address, reason: self.reason(address, apart) });
        }
    }

    pub(super) fn next(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    fn reason(&self, address: SocketAddr, apart: &Apart) -> String {
        let Neighbours { mesh: own, version, .. } = self;
        match apart {
            Apart::Mesh(mesh) if Room::is_valid(mesh) => format!(
                "{address} is on mesh `{mesh}`, this node is on `{own}`: start this one with --mesh {mesh} or that one \
                 with --mesh {own}"
            ),
            Apart::Mesh(_) => {
                format!("{address} is on another mesh, this node is on `{own}`: start that one with --mesh {own}")
            }
            Apart::Key => {
                format!(
                    "{address} does not have this node's mesh key: give both the same with --key-file, or neither one"
                )
            }
            Apart::Version(theirs) => {
                let older = if theirs > version { "this node" } else { "that one" };
                format!("{address} speaks version {theirs} of the wire, this node speaks {version}: update {older}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handle::FoundBy;

    fn at(n: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 47474))
    }

    #[test]
    fn own_mesh_and_version_belong_together_and_silence_is_no_objection() {
        let neighbours = Neighbours::new("default", 1);
        for (mesh, version, strange_key, apart) in [
            (None, None, false, None),
            (Some("default"), Some(1), false, None),
            (Some("lab"), Some(1), false, Some(Apart::Mesh("lab".into()))),
            (Some("lab"), Some(2), true, Some(Apart::Version(2))),
            (None, Some(1), true, Some(Apart::Key)),
        ] {
            let mesh = mesh.map(str::to_string);
            let candidate =
                Candidate { addresses: vec![], run: None, found_by: FoundBy::Mdns, mesh, version, strange_key };
            assert_eq!(neighbours.judge(&candidate), apart);
        }
    }

    #[test]
    fn a_neighbour_is_named_once_a_minute_with_the_remedy() {
        let (mut neighbours, now) = (Neighbours::new("default", 1), Instant::now());
        for second in 0..59 {
            let now = now + Duration::from_secs(second);
            neighbours.tell(now, at(1), &Apart::Mesh("lab".into()));
            neighbours.tell(now, at(2), &Apart::Version(2));
            neighbours.tell(now, at(3), &Apart::Mesh("\x1b[2J".into()));
        }
        let reasons: Vec<_> = std::iter::from_fn(|| neighbours.next()).map(|notice| notice.reason).collect();
        assert_eq!(
            reasons,
            [
                "10.0.0.1:47474 is on mesh `lab`, this node is on `default`: start this one with --mesh lab or that one \
                 with --mesh default",
                "10.0.0.2:47474 speaks version 2 of the wire, this node speaks 1: update this node",
                "10.0.0.3:47474 is on another mesh, this node is on `default`: start that one with --mesh default",
            ]
        );
        neighbours.tell(now + Duration::from_secs(61), at(1), &Apart::Version(0));
        assert!(neighbours.next().unwrap().reason.ends_with("update that one"));
    }

    #[test]
    fn many_neighbours_do_not_pile_up() {
        let (mut neighbours, now) = (Neighbours::new("default", 1), Instant::now());
        (0..1_000).for_each(|n| neighbours.tell(now, at(n), &Apart::Version(2)));
        assert_eq!(std::iter::from_fn(|| neighbours.next()).count(), NOTICES_MAX);
        for n in 0..1_000 {
            neighbours.tell(now, at(n), &Apart::Version(2));
            neighbours.next();
        }
        assert_eq!(neighbours.told.len(), TOLD_MAX);
    }
}
