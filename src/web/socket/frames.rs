//! The frames of `hubless.v1`: JSON objects with a `type`.

use serde::{Deserialize, Serialize};
use tokio_tungstenite::tungstenite::protocol::Message as WsMessage;

use super::super::api::{self, Failure};
use super::super::objects::{BridgeObject, NodeObject, PeerObject, RoomObject};
use crate::handle::{Gap, GapReason, HistoryHealth, State};
use crate::id::EntryId;

/// A frame from a client; which fields it has depends on its type.
#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "a JSON object with a type")]
pub(super) struct Incoming {
    #[serde(rename = "type")]
    pub kind: String,
    pub name: Option<String>,
    pub after: Option<String>,
    pub durable: Option<String>,
    /// In `hello`: a cursor after so many messages at the latest.
    pub burst: Option<usize>,
    pub client_id: Option<String>,
    pub room: Option<String>,
    pub text: Option<String>,
    pub content_type: Option<String>,
    pub data: Option<String>,
    pub cursor: Option<String>,
}

impl Incoming {
    pub fn read(frame: &WsMessage) -> Result<Incoming, Failure> {
        match frame {
            WsMessage::Text(text) => serde_json::from_str(text).map_err(|error| Failure::malformed(error.to_string())),
            _ => Err(Failure::malformed("a frame is JSON text")),
        }
    }
}

/// A frame to a client; `message` is made elsewhere.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Outgoing<'a> {
    Welcome {
        /// `node`, `mesh` and the rest, as the API shows them.
        #[serde(flatten)]
        node: NodeObject<'a>,
        rooms: Vec<RoomObject<'a>>,
        peers: Vec<PeerObject<'a>>,
        bridges: Vec<BridgeObject>,
        cursor: String,
        /// The durable cursor that this socket holds.
        #[serde(skip_serializing_if = "Option::is_none")]
        durable: Option<&'a str>,
    },
    Accepted {
        client_id: Option<&'a str>,
        id: EntryId,
        state: State,
    },
    Stored {
        id: EntryId,
        by: usize,
        state: State,
    },
    Acked {
        cursor: &'a str,
    },
    Gap {
        missing: u64,
        reason: GapReason,
    },
    Peers {
        peers: Vec<PeerObject<'a>>,
    },
    /// One of them reached its target or lost it, leads or stands.
    Bridges {
        bridges: Vec<BridgeObject>,
    },
    CatchUp {
        missing: u64,
        done: u64,
    },
    History {
        state: HistoryHealth,
    },
    Error {
        code: &'a str,
        message: &'a str,
        client_id: Option<&'a str>,
    },
    Pong,
}

impl Outgoing<'_> {
    pub fn text(&self) -> String {
        api::to_text(self)
    }

    pub fn gap(Gap { missing, reason }: Gap) -> String {
        Outgoing::Gap { missing, reason }.text()
    }

    pub fn error(failure: &Failure, client_id: Option<&str>) -> String {
        Outgoing::Error { code: failure.code, message: &failure.message, client_id }.text()
    }
}

/// Reads one frame; see [`crate::fuzz`].
#[cfg(feature = "fuzz")]
pub(in crate::web) fn fuzz(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(incoming) = Incoming::read(&WsMessage::text(text)) else { return };
    let Incoming { name, client_id, room, text, content_type, data, cursor, after, .. } = incoming;
    for cursor in [cursor, after].into_iter().flatten() {
        if let Ok(read) = cursor.parse::<crate::handle::Cursor>() {
            let again: crate::handle::Cursor = read.to_string().parse().unwrap_or_default();
            assert_eq!(again.to_string(), read.to_string());
        }
    }
    let _ = api::Said { room, text, mime: content_type, data, name, client_id }.draft();
}
