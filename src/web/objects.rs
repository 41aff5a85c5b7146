//! What the API and the WebSocket show: nodes, peers, rooms and messages as JSON objects.

use std::net::SocketAddr;
use std::time::Instant;

use data_encoding::BASE64;
use jiff::Timestamp;
use serde::Serialize;

use crate::handle::{
    BridgeState, BridgeStatus, FoundBy, Handle, HistoryHealth, Hlc, Message, Payload, Peer, PeerState, RoomSummary,
    Standing, State, Via,
};
use crate::id::{EntryId, Epoch, Key, NodeId, Room};

/// A node, as the API and `welcome` show it.
#[derive(Serialize)]
pub(super) struct NodeObject<'a> {
    node: NodeId,
    name: &'a str,
    mesh: &'a str,
    epoch: Epoch,
    version: &'static str,
    listen: SocketAddr,
    addresses: Vec<SocketAddr>,
    open: bool,
    history: HistoryHealth,
}

impl NodeObject<'_> {
    pub fn of(handle: &Handle) -> NodeObject<'_> {
        let info = handle.info();
        NodeObject {
            node: info.run.node,
            name: &info.name,
            mesh: &info.mesh,
            epoch: info.run.epoch,
            version: env!("CARGO_PKG_VERSION"),
            listen: info.listen,
            addresses: handle.addresses().to_vec(),
            open: info.open,
            history: handle.history_health(),
        }
    }
}

/// A bridge, as the API shows it.
#[derive(Serialize)]
pub(super) struct BridgeObject {
    name: String,
    state: BridgeState,
    sent: u64,
    received: u64,
    behind_s: Option<u64>,
    trouble: Option<String>,
}

/// All bridges of a node.
pub(super) fn bridge_objects(handle: &Handle) -> Vec<BridgeObject> {
    let object = |BridgeStatus { name, state, sent, received, behind_s, trouble }| BridgeObject {
        name: name.to_string(),
        state,
        sent,
        received,
        behind_s,
        trouble: trouble.map(|trouble| trouble.to_string()),
    };
    handle.bridges().into_iter().map(object).collect()
}

/// A peer, as the API and `peers` show it.
#[derive(Serialize)]
pub(super) struct PeerObject<'a> {
    node: NodeId,
    epoch: Epoch,
    name: &'a str,
    state: PeerState,
    address: Option<SocketAddr>,
    found_by: FoundBy,
    rtt_ms: Option<f64>,
    last_seen_ms: Option<u64>,
    dropped: u64,
}

/// All peers.
pub(super) fn peer_objects<'a>(peers: &'a [Peer]) -> Vec<PeerObject<'a>> {
    let now = Instant::now();
    let object = |peer: &'a Peer| {
        let Peer { run, name, state, address, found_by, rtt, last_heard, dropped } = peer;
        let seen_ms = |heard| u64::try_from(now.saturating_duration_since(heard).as_millis()).unwrap_or(u64::MAX);
        PeerObject {
            node: run.node,
            epoch: run.epoch,
            name,
            state: *state,
            address: *address,
            found_by: *found_by,
            rtt_ms: rtt.map(|rtt| rtt.as_micros() as f64 / 1e3),
            last_seen_ms: last_heard.map(seen_ms),
            dropped: *dropped,
        }
    };
    peers.iter().map(object).collect()
}

/// A room, as the API and `welcome` show it.
#[derive(Serialize)]
pub(super) struct RoomObject<'a> {
    room: &'a Room,
    messages: u64,
    last: String,
}

impl RoomObject<'_> {
    pub fn of(summary: &RoomSummary) -> RoomObject<'_> {
        RoomObject { room: &summary.room, messages: summary.messages, last: time(summary.last) }
    }
}

/// A message, as the API shows it, and as the `message` frame of a WebSocket, whose `type` is taken.
#[derive(Serialize)]
pub(super) struct MessageObject<'a> {
    /// The content type of what is not text; in a frame, the kind of frame.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    id: EntryId,
    room: &'a Room,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    name: &'a str,
    node: NodeId,
    time: String,
    /// The same with the part that tells what was said later within a millisecond: messages stand in the order of this,
    /// then of their ids.
    hlc: String,
    via: Via,
    state: State,
    stored_by: usize,
    verified: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    late: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Key>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
}

impl<'a> MessageObject<'a> {
    pub fn of(message: &'a Message, standing: Standing) -> MessageObject<'a> {
        let (text, mime, data) = match &message.payload {
            Payload::Text(text) => (Some(text.as_str()), None, None),
            Payload::Data { mime, data } => (None, Some(&**mime), Some(BASE64.encode(data))),
        };
        MessageObject {
            kind: mime,
            id: message.id,
            room: &message.room,
            text,
            content_type: None,
            data,
            name: &message.name,
            node: message.id.run.node,
            time: time(message.hlc),
            hlc: format!("{:016x}", message.hlc.0),
            via: message.via,
            state: standing.state,
            stored_by: standing.stored_by,
            verified: message.via == Via::Mesh,
            late: message.late,
            key: message.key,
            cursor: None,
        }
    }

    /// The same as a frame, with a cursor where it ends a burst.
    pub fn frame(message: &'a Message, standing: Standing, cursor: Option<String>) -> MessageObject<'a> {
        let object = MessageObject::of(message, standing);
        MessageObject { kind: Some("message"), content_type: object.kind, cursor, ..object }
    }
}

/// RFC 3339 in UTC with milliseconds.
pub(super) fn time(hlc: Hlc) -> String {
    let wall_ms = i64::try_from(hlc.wall_ms()).unwrap_or(i64::MAX);
    // A clock may be set beyond the year 9999, where RFC 3339 ends.
    let time = Timestamp::from_millisecond(wall_ms).unwrap_or(Timestamp::MAX);
    format!("{time:.3}")
}

#[cfg(test)]
mod tests {
    use super::super::api::to_text;
    use super::*;
    use crate::id::{Run, Seq};

    const SENT: Standing = Standing { state: State::Sent, stored_by: 0 };
    const STORED: Standing = Standing { state: State::Replicated, stored_by: 2 };

    fn message(payload: Payload) -> Message {
        let run = Run { node: NodeId([7; 32]), epoch: Epoch(0xabc) };
        Message {
            id: EntryId { run, seq: Seq(42) },
            room: Room::lobby(),
            payload,
            name: "ada".into(),
            hlc: Hlc::at(1_769_860_800_123),
            via: Via::Mesh,
            key: None,
            late: false,
        }
    }

    #[test]
    fn a_message_object_has_the_fields_of_the_contract() {
        let node = NodeId([7; 32]);
        let text = message("hi <b>".into());
        let expected = format!(
            r#"{{"id":"{node}.0000000000000abc.42","room":"lobby","text":"hi <b>","name":"ada","node":"{node}","time":"2026-01-31T12:00:00.123Z","hlc":"019c13ec9e7b0000","via":"mesh","state":"sent","stored_by":0,"verified":true}}"#
        );
        assert_eq!(to_text(&MessageObject::of(&text, SENT)), expected);
        let frame = to_text(&MessageObject::frame(&text, SENT, Some("abc".into())));
        assert!(frame.starts_with(r#"{"type":"message","id":"#) && frame.ends_with(r#","cursor":"abc"}"#), "{frame}");

        let late = Message { late: true, key: Some(Key([1; 16])), ..message(vec![0, 255].into()) };
        let object = to_text(&MessageObject::of(&late, STORED));
        for part in [
            r#""type":"application/octet-stream""#,
            r#""data":"AP8=""#,
            r#""late":true"#,
            r#""key":"0101"#,
            r#""state":"replicated","stored_by":2"#,
        ] {
            assert!(object.contains(part), "{part} in {object}");
        }
        assert!(!object.contains("text"), "{object}");
        let frame = to_text(&MessageObject::frame(&late, STORED, None));
        assert!(
            frame.contains(r#""type":"message""#) && frame.contains(r#""content_type":"application/octet-stream""#)
        );
    }

    #[test]
    fn times_beyond_the_calendar_are_still_shown() {
        assert_eq!(time(Hlc::at(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(Hlc(u64::MAX)), "9999-12-30T22:00:00.999Z");
    }
}
