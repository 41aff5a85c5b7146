//! Which requests are let in: a page of somebody else's must not speak to this node through its reader's browser.
//!
//! A browser sends `Host` and `Origin` as they are, whatever page is open. A foreign name in `Host` means that a foreign
//! name server points at us (DNS rebinding); a foreign `Origin` means that a foreign page calls. This is no authentication:
//! whoever reaches the address with a program of his own is let in.

use std::net::IpAddr;

use warp::http::uri::{Authority, Uri};
use warp::http::{HeaderMap, Method, header};
use warp::reject::Reject;

use crate::config;

/// Who can reach the page and the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Browsers over TCP: `Host` and `Origin` are checked.
    Network,
    /// Programs of this user over a Unix socket, whose file mode is the check.
    UnixSocket,
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Foreign {
    Host,
    Origin,
}

impl Reject for Foreign {}

/// Checks requests; made once.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    access: Access,
    /// What this machine is called, in lower case.
    names: Vec<String>,
}

impl Guard {
    pub fn new(access: Access) -> Guard {
        let full = gethostname::gethostname().to_string_lossy().to_ascii_lowercase();
        let short = config::host_name().to_ascii_lowercase();
        let local = format!("{short}.local");
        Guard { access, names: vec!["localhost".into(), short, local, full] }
    }

    /// Whether the request may come in.
    pub fn check(&self, method: &Method, headers: &HeaderMap) -> Result<(), Foreign> {
        if self.access == Access::UnixSocket {
            return Ok(());
        }
        let host = text(headers, header::HOST).and_then(authority).ok_or(Foreign::Host)?;
        if !self.is_ours(host.host()) {
            return Err(Foreign::Host);
        }
        let only_reads = matches!(*method, Method::GET | Method::HEAD) && !headers.contains_key(header::UPGRADE);
        if only_reads || !headers.contains_key(header::ORIGIN) {
            return Ok(());
        }
        let own = text(headers, header::ORIGIN).is_some_and(|origin| is_origin_of(origin, &host));
        own.then_some(()).ok_or(Foreign::Origin)
    }

    fn is_ours(&self, host: &str) -> bool {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        bare.parse::<IpAddr>().is_ok() || name.ends_with(".localhost") || self.names.contains(&name)
    }
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn authority(text: &str) -> Option<Authority> {
    // What stands before an `@` names nobody here.
    text.parse().ok().filter(|_| !text.contains('@'))
}

/// Whether a page from `origin` came from `host`.
fn is_origin_of(origin: &str, host: &Authority) -> bool {
    let Ok(uri) = origin.parse::<Uri>() else { return false };
    let default = match uri.scheme_str() {
        Some("http") => 80,
        Some("https") => 443,
        _ => return false,
    };
    let port = |authority: &Authority| authority.port_u16().unwrap_or(default);
    uri.authority().is_some_and(|from| from.host().eq_ignore_ascii_case(host.host()) && port(from) == port(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: Method, host: &str, more: &[(header::HeaderName, &str)]) -> Result<(), Foreign> {
        let mut headers = HeaderMap::new();
        if !host.is_empty() {
            headers.insert(header::HOST, host.parse().unwrap());
        }
        for (name, value) in more {
            headers.insert(name, value.parse().unwrap());
        }
        Guard { access: Access::Network, names: vec!["localhost".into(), "pi".into()] }.check(&method, &headers)
    }

    #[test]
    fn addresses_and_own_names_are_hosts_of_ours_and_other_names_are_not() {
        for own in ["127.0.0.1", "127.0.0.1:8080", "localhost:1", "LOCALHOST.", "[::1]:8080", "10.1.2.3", "pi", "Pi:80"]
        {
            assert_eq!(check(Method::GET, own, &[]), Ok(()), "{own}");
        }
        for foreign in
            ["", "example.com", "localhost.example.com", "pi.example.com:8080", "a@localhost", "127.0.0.1.nip.io"]
        {
            assert_eq!(check(Method::GET, foreign, &[]), Err(Foreign::Host), "{foreign}");
        }
    }

    #[test]
    fn whoever_writes_or_opens_a_socket_comes_from_our_own_page_or_from_none() {
        let from = |method, origin| check(method, "localhost:8080", &[(header::ORIGIN, origin)]);
        assert_eq!(from(Method::POST, "http://localhost:8080"), Ok(()));
        assert_eq!(check(Method::POST, "localhost:8080", &[]), Ok(()));
        for foreign in
            ["http://localhost", "http://localhost:8081", "http://evil.example", "null", "ftp://localhost:8080", ""]
        {
            assert_eq!(from(Method::POST, foreign), Err(Foreign::Origin), "{foreign}");
            assert_eq!(from(Method::GET, foreign), Ok(()), "reading is left to the browser's own rules: {foreign}");
        }
        let upgrade = [(header::UPGRADE, "websocket"), (header::ORIGIN, "http://evil.example")];
        assert_eq!(check(Method::GET, "localhost", &upgrade), Err(Foreign::Origin));
        let default_port = [(header::UPGRADE, "websocket"), (header::ORIGIN, "https://pi")];
        assert_eq!(check(Method::GET, "pi:443", &default_port), Ok(()));
    }

    #[test]
    fn a_unix_socket_asks_nobody() {
        assert_eq!(Guard::new(Access::UnixSocket).check(&Method::POST, &HeaderMap::new()), Ok(()));
    }
}
