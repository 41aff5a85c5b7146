//! What a node can be told: the options of [`Builder`](crate::Builder), checked, with their defaults.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::StartError;
use crate::id::Room;
use crate::mesh_key::KeyRing;

/// The port where peers reach a node, unless it is taken: so that firewalls and seeds have something to name.
pub const PORT_DEFAULT: u16 = 47474;
/// How many days messages are kept on disk.
pub const RETAIN_DAYS_DEFAULT: u32 = 30;
/// How many bytes of messages are kept on disk: 1 GiB.
pub const RETAIN_BYTES_DEFAULT: u64 = 1024 * 1024 * 1024;

/// Everything a node can be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Display name, at most [`NAME_BYTES_MAX`](crate::replica::batch::NAME_BYTES_MAX) bytes; the host's name by default.
    pub name: String,
    /// Nodes of different meshes ignore each other. Rules of a room name; `default` by default.
    pub mesh: String,
    /// The keys of the mesh: nodes without one of them are kept out. None: the mesh is open, and anyone here can read and
    /// write.
    pub key: Option<KeyRing>,
    /// Where peers reach this node.
    pub listen: Listen,
    /// Seeds, dialled besides what discovery finds.
    pub seeds: Vec<Seed>,
    /// Whether to announce and look for nodes through mDNS.
    pub mdns: bool,
    /// Names or addresses of the interfaces to use; empty: all but known virtual ones.
    pub interfaces: Vec<String>,
    /// Identity and remembered peers; none: the identity lasts for the run.
    pub data_dir: Option<PathBuf>,
    /// Keeps nothing in `data_dir` but its lock: identity, remembered peers and messages last for the run.
    pub ephemeral: bool,
    /// Opens the data folder and talks to nobody: for reading, exporting and importing its log. `listen`, `seeds` and `mdns`
    /// count for nothing; the node listens on loopback, at a port that nobody is told.
    pub offline: bool,
    /// Whether to keep messages on disk; needs `data_dir`.
    pub history: bool,
    /// When what is kept counts as safe.
    pub fsync: Fsync,
    /// Messages leave the disk when they are older than this, [`RETAIN_DAYS_DEFAULT`] by default.
    pub retain_days: u32,
    /// The oldest messages leave the disk while their batches take more than this, [`RETAIN_BYTES_DEFAULT`] by default.
    pub retain_bytes: u64,
}

/// When a message counts as being on disk. Shown as `always`, `group` or `os`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Fsync {
    /// After an fsync of its own: as slow as the disk.
    Always,
    /// After an fsync together with all that waited with it. Rule of thumb: leave it at this.
    #[default]
    Group,
    /// Once the operating system has it, which writes it within a second: a power cut may lose that second.
    Os,
}

/// Where to listen for peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `0.0.0.0:47474`; when that is taken, the port this folder used last, else any free one.
    Default,
    /// This address, or none: port 0 is any.
    At(SocketAddr),
}

/// A `HOST[:PORT]` to dial; a host name is resolved anew at each try.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Seed {
    /// Host name, IPv4 or IPv6 address.
    pub host: String,
    /// Its port, [`PORT_DEFAULT`] unless given.
    pub port: u16,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            name: host_name(),
            mesh: "default".into(),
            key: None,
            listen: Listen::Default,
            seeds: Vec::new(),
            mdns: cfg!(feature = "mdns"),
            interfaces: Vec::new(),
            data_dir: None,
            ephemeral: false,
            offline: false,
            history: cfg!(feature = "history"),
            fsync: Fsync::default(),
            retain_days: RETAIN_DAYS_DEFAULT,
            retain_bytes: RETAIN_BYTES_DEFAULT,
        }
    }
}

impl Config {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// [`StartError::Config`] names the option and its rule.
    pub fn check(&self) -> Result<(), StartError> {
        if self.name.is_empty()
            || self.name.len() > crate::replica::batch::NAME_BYTES_MAX
            || self.name.chars().any(char::is_control)
        {
            return Err(StartError::Config("a name is 1 to 128 bytes without control characters".into()));
        }
        if !Room::is_valid(&self.mesh) {
            return Err(StartError::Config(format!(
                "`{}` is not a mesh name: 1 to 64 of a-z 0-9 - _ . that neither begins nor ends with a dot, no `..`",
                self.mesh
            )));
        }
        Ok(())
    }
}

/// The host's name, without its domain.
pub fn host_name() -> String {
    let full = gethostname::gethostname().to_string_lossy().into_owned();
    let short: String =
        full.split('.').next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(63).collect();
    if short.is_empty() { "node".into() } else { short }
}

impl Listen {
    /// The address to try first.
    pub fn first_choice(self) -> SocketAddr {
        match self {
            Listen::Default => SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT_DEFAULT)),
            Listen::At(address) => address,
        }
    }
}

impl FromStr for Fsync {
    type Err = String;

    fn from_str(text: &str) -> Result<Fsync, String> {
        match text {
            "always" => Ok(Fsync::Always),
            "group" => Ok(Fsync::Group),
            "os" => Ok(Fsync::Os),
            _ => Err(format!("`{text}` is not always, group or os")),
        }
    }
}

impl std::fmt::Display for Fsync {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Fsync::Always => "always",
            Fsync::Group => "group",
            Fsync::Os => "os",
        })
    }
}

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Seed, String> {
        let bad = || format!("`{text}` is not HOST[:PORT]");
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Seed { host: address.ip().to_string(), port: address.port() });
        }
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = bare.parse::<std::net::IpAddr>() {
            return Ok(Seed { host: ip.to_string(), port: PORT_DEFAULT });
        }
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(bad)?),
            None => (text, PORT_DEFAULT),
        };
        let name = !host.is_empty()
            && host.len() <= 253
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
        if name { Ok(Seed { host: host.into(), port }) } else { Err(bad()) }
    }
}

impl std::fmt::Display for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Seed { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_read_as_people_write_them() {
        for (text, shown) in [
            ("10.0.0.1", "10.0.0.1:47474"),
            ("10.0.0.1:5", "10.0.0.1:5"),
            ("pi.local", "pi.local:47474"),
            ("pi.local:80", "pi.local:80"),
            ("::1", "[::1]:47474"),
            ("[fe80::1]:9", "[fe80::1]:9"),
        ] {
            assert_eq!(text.parse::<Seed>().unwrap().to_string(), shown);
        }
        for bad in ["", ":80", "a b", "host:", "host:0", "host:99999", "http://x"] {
            assert!(bad.parse::<Seed>().is_err(), "{bad}");
        }
    }
}
