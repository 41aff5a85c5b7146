//! Where Redis is: one server, any of several, or whichever one Sentinel names.

use std::fmt;
use std::str::FromStr;

use redis::aio::MultiplexedConnection;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, TlsMode,
};
use tokio::time::timeout;

use super::Trouble;
use super::redis::ANSWER_WAIT;

/// What is said of a text that is no such URL. The text itself may hold a password.
const BAD_URL: &str = "this is no Redis URL: redis://[[USER]:PASSWORD@]HOST[:PORT][,HOST…][/DB], \
                       redis+sentinel://…/SERVICE[/DB], or rediss… with TLS";
/// The port of a Sentinel that does not say otherwise.
const SENTINEL_PORT: u16 = 26_379;
/// Where a host name is missing.
const NO_HOST: &str = "";

/// A Redis by its URL. What it shows of itself holds neither user nor password.
///
/// Several hosts are servers of one Cluster, of which the first that answers is spoken to, or Sentinels, which are asked for
/// the primary of a service. Their order does not matter for who it is.
#[derive(Clone)]
pub struct Target {
    at: Vec<ConnectionInfo>,
    service: Option<String>,
    place: String,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(url: &str) -> Result<Target, String> {
        let (scheme, rest) = url.split_once("://").ok_or(BAD_URL)?;
        let (scheme, sentinel) = match scheme.strip_suffix("+sentinel") {
            Some(scheme) => (scheme, true),
            None => (scheme, false),
        };
        match scheme {
            "redis" => {}
            "rediss" => super::begin_tls()?,
            _ => return Err(BAD_URL.into()),
        }
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (user, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        let (service, path) = if sentinel {
            let path = path.strip_prefix('/').ok_or(BAD_URL)?;
            let (service, path) = path.split_at(path.find(['/', '?', '#']).unwrap_or(path.len()));
            if service.is_empty() {
                return Err(BAD_URL.into());
            }
            (Some(service.to_string()), path)
        } else {
            (None, path)
        };
        let mut infos = Vec::new();
        for host in hosts.split(',') {
            let port_wanted = sentinel && !host.rsplit(']').next().is_some_and(|end| end.contains(':'));
            let port = if port_wanted { format!(":{SENTINEL_PORT}") } else { String::new() };
            let info = format!("{scheme}://{user}{host}{port}{path}").into_connection_info().map_err(|_| BAD_URL)?;
            if host_and_port(&info).0 == NO_HOST {
                return Err(BAD_URL.into());
            }
            let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
            infos.push(info.set_redis_settings(settings));
        }
        let mut places: Vec<String> = infos.iter().map(|info| place(host_and_port(info))).collect();
        places.sort();
        let service_shown = service.as_ref().map_or(String::new(), |service| format!("/{service}"));
        Ok(Target { at: infos, place: format!("{}{service_shown}", places.join(",")), service })
    }
}

/// Where a server is; nowhere for what is not reached over TCP.
fn host_and_port(info: &ConnectionInfo) -> (&str, u16) {
    match info.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => (host, *port),
        _ => (NO_HOST, 0),
    }
}

fn place((host, port): (&str, u16)) -> String {
    format!("{}:{port}", host.to_ascii_lowercase())
}

impl Target {
    /// Connects to the first server that answers, or to the one that is primary now.
    ///
    /// # Errors
    /// [`Trouble`].
    pub(super) async fn open(&self, config: &AsyncConnectionConfig) -> Result<MultiplexedConnection, Trouble> {
        let mut last = Trouble::new(BAD_URL);
        if let Some(service) = &self.service {
            // Each of them may be silent, and so may be the primary that it names.
            let wait = ANSWER_WAIT * 2;
            let primary = timeout(wait, self.primary(service)).await;
            let primary =
                primary.map_err(|_| Trouble::new(format!("no Sentinel names {service} within {wait:?}")))??;
            return Ok(primary.get_multiplexed_async_connection_with_config(config).await?);
        }
        for info in &self.at {
            match Client::open(info.clone())?.get_multiplexed_async_connection_with_config(config).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }

    /// The same, but at the server `address` (`HOST:PORT`), which another one of its Cluster has named.
    ///
    /// # Errors
    /// [`Trouble`].
    pub(super) async fn open_at(
        &self,
        address: &str,
        config: &AsyncConnectionConfig,
    ) -> Result<MultiplexedConnection, Trouble> {
        let unclear = || Trouble::new(format!("a server of the Redis Cluster names {address}, which is no address"));
        let (host, port) = address.rsplit_once(':').ok_or_else(unclear)?;
        let port: u16 = port.parse().map_err(|_| unclear())?;
        let info = self.at.first().ok_or_else(unclear)?;
        // A server that does not know its own name means the one that was asked.
        let host = if host.is_empty() { host_and_port(info).0.to_string() } else { host.to_string() };
        let address = match info.addr().clone() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure, tls_params }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        let client = Client::open(info.clone().set_addr(address))?;
        Ok(client.get_multiplexed_async_connection_with_config(config).await?)
    }

    async fn primary(&self, service: &str) -> Result<Client, Trouble> {
        let addresses = self.at.iter().map(|info| info.addr().clone());
        let mut sentinels = SentinelClientBuilder::new(addresses, service, SentinelServerType::Master)?;
        if let Some(info) = self.at.first() {
            let settings = info.redis_settings();
            sentinels =
                sentinels.set_client_to_redis_protocol(ProtocolVersion::RESP3).set_client_to_redis_db(settings.db());
            if let Some(user) = settings.username() {
                sentinels = sentinels.set_client_to_redis_username(user);
            }
            if let Some(password) = settings.password() {
                sentinels = sentinels.set_client_to_redis_password(password);
            }
            if let ConnectionAddr::TcpTls { insecure, .. } = info.addr() {
                let mode = if *insecure { TlsMode::Insecure } else { TlsMode::Secure };
                sentinels = sentinels.set_client_to_redis_tls_mode(mode);
            }
        }
        Ok(sentinels.build()?.async_get_client().await?)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_shows_where_it_is_and_no_secret() {
        for (url, shown) in [
            ("redis://localhost", "localhost:6379"),
            ("redis://:secret@Cache.lan:7000/3", "cache.lan:7000"),
            ("redis://ada:secret@10.0.0.1", "10.0.0.1:6379"),
            ("redis://:secret@b,a:7000,[::1]:7001/3", "::1:7001,a:7000,b:6379"),
            ("redis+sentinel://ada:secret@s2:5000,s1/main/3", "s1:26379,s2:5000/main"),
            ("redis+sentinel://s1/main", "s1:26379/main"),
        ] {
            let target: Target = url.parse().unwrap();
            assert_eq!(target.to_string(), shown, "{url}");
            assert!(!format!("{target:?}").contains("secret"));
        }
        for bad in [
            "localhost",
            "http://secret@localhost",
            "redis://u:secret@[::",
            "redis:/u:secret@",
            "redis://a,,b",
            "redis+sentinel://secret@a",
            "redis+sentinel://secret@a/",
            "redis+unix:///tmp/secret",
            "",
        ] {
            let error = bad.parse::<Target>().unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
