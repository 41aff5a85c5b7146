//! An AMQP 0-9-1 broker: where it is, how it is reached, and what its refusals mean.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties, ErrorKind};
use tokio::time::timeout;

use crate::id::Room;

/// The header that names the room where the routing key does not.
pub(super) const ROOM_HEADER: &str = "x-hubless-room";
/// How long a broker may take to answer.
const CONNECT_WAIT: Duration = Duration::from_secs(10);

/// A broker by its URL. What it shows of itself holds neither user nor password.
#[derive(Clone)]
pub struct Target(AMQPUri);

impl FromStr for Target {
    type Err = String;

    fn from_str(url: &str) -> Result<Target, String> {
        // The text itself may hold a password.
        let bad = || "this is no AMQP URL: amqp://[USER:PASSWORD@]HOST[:PORT][/VHOST]".to_string();
        let uri: AMQPUri = url.parse().map_err(|_| bad())?;
        // The parser is content with less.
        if !url.contains("://") {
            return Err(bad());
        }
        match uri.scheme {
            AMQPScheme::AMQP => Ok(Target(uri)),
            AMQPScheme::AMQPS => Err("amqps:// is not spoken yet: go through a TLS tunnel on this machine".into()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri { authority, vhost, .. } = &self.0;
        write!(f, "{}:{}", authority.host.to_ascii_lowercase(), authority.port)?;
        if vhost == "/" { Ok(()) } else { write!(f, "/{vhost}") }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({self})")
    }
}

/// Why a broker does not do what is asked of it, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}", hint.map_or(String::new(), |hint| format!(" ({hint})")))]
pub struct Trouble {
    message: String,
    hint: Option<&'static str>,
}

impl Trouble {
    pub(super) fn new(message: impl Into<String>) -> Trouble {
        Trouble { message: message.into(), hint: None }
    }
}

impl From<lapin::Error> for Trouble {
    fn from(error: lapin::Error) -> Trouble {
        match error.kind() {
            ErrorKind::ProtocolError(refusal) => {
                let hint = match refusal.get_id() {
                    403 => Some("the user of the URL may not do this: check its name, password and permissions"),
                    404 => Some("it is not there: check the names given"),
                    406 => Some(
                        "it is there already and differs in the property that is named: declare it alike in the other \
                         program, delete it, or give another name",
                    ),
                    530 => Some("the vhost is not there, or the user of the URL may not use it"),
                    _ => None,
                };
                Trouble { message: refusal.get_message().to_string(), hint }
            }
            ErrorKind::IOError(error) => Trouble::new(error.to_string()),
            ErrorKind::MissingHeartbeatError => Trouble::new("the broker has fallen silent"),
            _ => Trouble::new(error.to_string()),
        }
    }
}

impl Target {
    /// Connects as `name`, which the broker shows to its operator.
    ///
    /// # Errors
    /// [`Trouble`], also if the broker takes longer than 10 s.
    pub(super) async fn connect(&self, name: String) -> Result<Connection, Trouble> {
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let connection = Connection::connect_uri(self.0.clone(), properties);
        let connected = timeout(CONNECT_WAIT, connection).await;
        Ok(connected.map_err(|_| Trouble::new("the broker does not answer"))??)
    }
}

/// The room of a message: by its header, else by its routing key; else the lobby.
pub(super) fn room(header: Option<&str>, routing_key: &str) -> Room {
    let named = header.and_then(|room| Room::new(room).ok());
    named.or_else(|| super::room(routing_key)).unwrap_or_else(Room::lobby)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_shows_where_it_is_and_no_secret() {
        for (url, shown) in [
            ("amqp://localhost", "localhost:5672"),
            ("amqp://u:secret@Broker.lan:5673", "broker.lan:5673"),
            ("amqp://u:secret@10.0.0.1/%2f", "10.0.0.1:5672"),
            ("amqp://10.0.0.1/chat", "10.0.0.1:5672/chat"),
        ] {
            let target: Target = url.parse().unwrap();
            assert_eq!(target.to_string(), shown, "{url}");
            assert!(!format!("{target:?}").contains("secret"));
        }
        for bad in ["localhost", "http://localhost", "amqp://u:secret@[::", "amqp:/u:secret@", "amqps://localhost", ""]
        {
            let error = bad.parse::<Target>().unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn rooms_come_from_headers_and_routing_keys() {
        for (header, key, expected) in [
            (None, "", "lobby"),
            (None, "chat", "lobby"),
            (None, "chat.nodejs", "nodejs"),
            (None, "chat.lobby", "lobby"),
            (None, "chatter.x", "lobby"),
            (None, "chat.Not/A/Room", "lobby"),
            (Some("ops"), "chat.nodejs", "ops"),
            (Some("../x"), "chat.nodejs", "nodejs"),
        ] {
            assert_eq!(room(header, key).as_str(), expected, "{header:?} {key}");
        }
    }
}
