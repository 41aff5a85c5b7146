//! How safe messages are, asked of the node once for all sockets.
//!
//! A page that shows what a thousand others show, too, must not cost the node's loop a thousand questions. What is known
//! stays known until the disk or a peer's word has moved, and for [`LOOK_PAUSE`] at least.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use crate::error::Stopped;
use crate::handle::{Handle, Standing};
use crate::id::EntryId;

/// The least time between two looks at the same message.
pub(super) const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// The same where nothing tells that something moved, because there is no history.
const BLIND_PAUSE: Duration = Duration::from_secs(1);
/// Messages of which something is known at one time.
const KNOWN_MAX: usize = 16 * 1024;

#[derive(Debug)]
pub(super) struct Standings {
    handle: Handle,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    standings: HashMap<EntryId, Standing>,
    asked: Instant,
    /// What had moved by then.
    commits: u64,
}

impl Standings {
    pub fn new(handle: Handle) -> Standings {
        let known = Known { standings: HashMap::new(), asked: Instant::now(), commits: 0 };
        Standings { handle, known: Mutex::new(known) }
    }

    /// How safe each of these is, as known a moment ago at the earliest.
    pub async fn of(&self, ids: &[EntryId]) -> Result<Vec<Standing>, Stopped> {
        let mut known = self.known.lock().await;
        let now = Instant::now();
        // Looked at once: a second look while the first holds the lock waits for ever behind a loop that waits to write.
        let commits = self.handle.commits().map(|commits| *commits.borrow());
        let moved = match commits {
            Some(commits) => (commits != known.commits).then_some((commits, LOOK_PAUSE)),
            None => Some((0, BLIND_PAUSE)),
        };
        if let Some((commits, _)) = moved.filter(|(_, pause)| now >= known.asked + *pause) {
            *known = Known { standings: HashMap::new(), asked: now, commits };
        }
        let unknown: Vec<EntryId> = ids.iter().filter(|id| !known.standings.contains_key(id)).copied().collect();
        if !unknown.is_empty() {
            let standings = self.handle.standing(unknown.clone()).await?;
            if known.standings.len() + unknown.len() > KNOWN_MAX {
                known.standings.clear();
                return self.handle.standing(ids.to_vec()).await;
            }
            known.standings.extend(unknown.into_iter().zip(standings));
        }
        Ok(ids.iter().filter_map(|id| known.standings.get(id).copied()).collect())
    }

    /// When a look finds what has moved by now.
    pub async fn next_look(&self) -> Instant {
        let pause = if self.handle.commits().is_some() { LOOK_PAUSE } else { BLIND_PAUSE };
        self.known.lock().await.asked + pause
    }

    /// Told whenever something moved, if anything tells it.
    pub fn moved(&self) -> Option<watch::Receiver<u64>> {
        self.handle.commits()
    }
}
