//! What bridges of this node are doing, and what the log knows of all bridges of the mesh.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Handle;
#[cfg(any(feature = "amqp", feature = "redis"))]
use super::{Cursor, Draft, Event, Filter, Published, Query, Subscription};
#[cfg(any(feature = "amqp", feature = "redis"))]
use crate::error::{HistoryError, PublishError, Stopped};
#[cfg(any(feature = "amqp", feature = "redis"))]
use crate::id::Room;
#[cfg(any(feature = "amqp", feature = "redis"))]
use crate::replica::control::Control;

/// A bridge of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeStatus {
    /// Its name, made from its target: the same on every node that offers it. Holds no user and no password.
    pub name: Arc<str>,
    /// What it does now.
    pub state: BridgeState,
    /// Messages that its target has confirmed, in this life of the node.
    pub sent: u64,
    /// Messages that came from its target and were kept, in this life of the node.
    pub received: u64,
    /// How long ago that was said which its target has just confirmed, in seconds, while it is still sending what is old.
    pub behind_s: Option<u64>,
    /// Why it does not reach its target, if it does not.
    pub trouble: Option<Arc<str>>,
}

/// What a bridge does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BridgeState {
    /// It does not reach its target, and tries again and again.
    Connecting,
    /// It reaches its target, and another node leads, or none yet.
    Standing,
    /// What goes out and comes in goes through it.
    Active,
}

/// The bridges of a node, by name.
#[derive(Debug, Default)]
pub(crate) struct Bridges(Mutex<BTreeMap<Arc<str>, BridgeStatus>>);

impl Handle {
    /// The bridges of this node.
    pub fn bridges(&self) -> Vec<BridgeStatus> {
        self.inner.bridges.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

#[cfg(any(feature = "amqp", feature = "redis"))]
impl Handle {
    /// A bridge says what it does; what changed beside its counts is an event.
    pub(crate) fn tell_bridge(&self, status: BridgeStatus) {
        let mut bridges = self.inner.bridges.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = bridges.insert(status.name.clone(), status.clone());
        let news = |status: &BridgeStatus| (status.state, status.behind_s, status.trouble.clone());
        if before.is_none_or(|before| news(&before) != news(&status)) {
            // Nobody has to listen.
            let _ = self.inner.events.send(Event::Bridge(status));
        }
    }

    /// A bridge has ended.
    pub(crate) fn forget_bridge(&self, name: &str) {
        self.inner.bridges.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Tells the other nodes something in the log.
    pub(crate) async fn tell(&self, control: &Control) -> Result<Published, PublishError> {
        self.publish_with(Draft::new(Room::control(), control.payload())).await
    }

    /// What nodes tell each other from now on.
    pub(crate) async fn controls(&self) -> Result<Subscription, Stopped> {
        self.open(Filter::Room(Room::control()), None).await
    }

    /// What is behind a bridge; none if it has not begun anywhere that is known here.
    pub(crate) async fn progress(&self, bridge: &str) -> Result<Option<Cursor>, HistoryError> {
        let log = self.inner.log.as_ref().ok_or(HistoryError::Closed)?;
        let bridge = bridge.to_owned();
        Ok(log.read(move |reader| reader.progress(&bridge)).await?.and_then(|progress| progress.covered()))
    }

    /// The word that tells this mesh from others of its name, if one was ever made.
    pub(crate) async fn site(&self) -> Result<Option<Arc<str>>, HistoryError> {
        let log = self.inner.log.as_ref().ok_or(HistoryError::Closed)?;
        log.read(|reader| reader.site()).await
    }

    /// Covers all that this node holds.
    pub(crate) async fn everything(&self) -> Result<Cursor, HistoryError> {
        Ok(self.messages(Query { limit: 1, ..Query::default() }).await?.after)
    }
}
