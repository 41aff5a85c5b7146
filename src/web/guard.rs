//! Which requests are let in: a page of somebody else's must not speak to this node through its reader's browser, and who
//! is elsewhere needs the token.
//!
//! A browser sends `Host` and `Origin` as they are, whatever page is open. A foreign name in `Host` means that a foreign
//! name server points at us (DNS rebinding); a foreign `Origin` means that a foreign page calls. Programs of this machine
//! need nothing else. Others show the token: `Authorization: Bearer`, the cookie that the page was given, or `?token=`.

use std::net::IpAddr;

use warp::http::uri::{Authority, Uri};
use warp::http::{HeaderMap, HeaderValue, Method, header};
use warp::reject::Reject;

use super::assets;
use super::token::WebToken;
use crate::config;
use crate::id::NodeId;

/// What proxies add to a request that they pass on.
const PASSED_ON: &[&str] = &["forwarded", "x-forwarded-for", "x-real-ip", "via"];
/// So much of the node's name is in the cookie's.
const COOKIE_CHARS: usize = 8;

/// Who may use the page and the API.
#[derive(Clone, Debug)]
pub enum Access {
    /// Programs and browsers of this machine; from elsewhere whoever has the token, nobody where there is none. `Host` and
    /// `Origin` are checked.
    Network(Option<WebToken>),
    /// Programs of this user over a Unix socket, whose file mode is the check.
    UnixSocket,
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Foreign {
    Host,
    Origin,
    /// It comes from elsewhere and does not show the token.
    Token,
    /// Too many come from there.
    Rate,
}

impl Reject for Foreign {}

/// What is looked at of a request.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// Where it comes from; none is this machine itself.
    pub guest: Option<IpAddr>,
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
}

impl Caller {
    /// Whether a person waits for the page.
    pub fn wants_page(&self) -> bool {
        let html = text(&self.headers, header::ACCEPT).is_some_and(|accept| accept.contains("text/html"));
        html && self.path == "/"
    }
}

/// Checks requests; made once.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    access: Access,
    /// What this machine is called, in lower case.
    names: Vec<String>,
    /// The cookie's name: browsers have one jar for all ports of a host.
    cookie: String,
}

impl Guard {
    pub fn new(access: Access, node: NodeId) -> Guard {
        let full = gethostname::gethostname().to_string_lossy().to_ascii_lowercase();
        let short = config::host_name().to_ascii_lowercase();
        let local = format!("{short}.local");
        let cookie = format!("hubless-{}", &node.to_string()[..COOKIE_CHARS]);
        Guard { access, names: vec!["localhost".into(), short, local, full], cookie }
    }

    /// Whether the request may come in.
    pub fn check(&self, caller: &Caller) -> Result<(), Foreign> {
        let Access::Network(token) = &self.access else { return Ok(()) };
        let Caller { guest, method, headers, .. } = caller;
        let shown = token.as_ref().is_some_and(|token| self.shows(caller, token));
        let host = text(headers, header::HOST).and_then(authority).ok_or(Foreign::Host)?;
        // Whoever has the token was not led here by a foreign name; a proxy passes on the name that it has itself.
        if !shown && !self.is_ours(host.host()) {
            return Err(Foreign::Host);
        }
        let only_reads = matches!(*method, Method::GET | Method::HEAD) && !headers.contains_key(header::UPGRADE);
        if !only_reads && headers.contains_key(header::ORIGIN) {
            let own = text(headers, header::ORIGIN).is_some_and(|origin| is_origin_of(origin, &host));
            own.then_some(()).ok_or(Foreign::Origin)?;
        }
        // What comes through a proxy on this machine comes from elsewhere.
        let is_here = guest.is_none() && !PASSED_ON.iter().any(|name| headers.contains_key(*name));
        (is_here || shown || is_for_all(&caller.path)).then_some(()).ok_or(Foreign::Token)
    }

    /// The cookie that spares a browser the token in its address, if that has it and it is right.
    pub fn cookie(&self, caller: &Caller) -> Option<HeaderValue> {
        let Access::Network(Some(token)) = &self.access else { return None };
        in_query(&caller.query).filter(|word| token.is(word))?;
        // A link from another page is followed by the page itself, so it is not `Strict`; nothing is written by `GET`.
        let cookie = format!("{}={}; Path=/; Max-Age=31536000; HttpOnly; SameSite=Lax", self.cookie, token.cookie());
        HeaderValue::from_str(&cookie).ok()
    }

    /// Whether a request has the token, or the cookie that was given for it.
    fn shows(&self, caller: &Caller, token: &WebToken) -> bool {
        let bearer = text(&caller.headers, header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        let cookies = caller.headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
        let cookies = cookies.flat_map(|value| value.split("; "));
        let cookies = cookies.filter_map(|cookie| cookie.strip_prefix(&*self.cookie)?.strip_prefix('='));
        bearer.into_iter().chain(in_query(&caller.query)).any(|word| token.is(word.trim()))
            || cookies.into_iter().any(|word| token.is_cookie(word.trim()))
    }

    fn is_ours(&self, host: &str) -> bool {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        bare.parse::<IpAddr>().is_ok() || name.ends_with(".localhost") || self.names.contains(&name)
    }
}

/// What shows nothing of this node: that it lives, and what the page is made of, the page itself aside. Only what is named
/// here; a path that a route takes in another way, too, stays closed.
fn is_for_all(path: &str) -> bool {
    path == "/healthz" || path.strip_prefix('/').is_some_and(|file| file != "index.html" && assets::is_there(file))
}

/// The token in the query of an address; it has no letters that are escaped there.
fn in_query(query: &str) -> Option<&str> {
    // A space that was pasted with it is a `+` there.
    query.split('&').find_map(|pair| pair.strip_prefix("token=")).map(|word| word.trim_matches('+'))
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

    const SECRET: &str = "0123456789abcdef";

    fn guard(access: Access) -> Guard {
        Guard { names: vec!["localhost".into(), "pi".into()], ..Guard::new(access, NodeId([7; 32])) }
    }

    fn caller(method: Method, host: &str, more: &[(header::HeaderName, &str)]) -> Caller {
        let mut headers = HeaderMap::new();
        if !host.is_empty() {
            headers.insert(header::HOST, host.parse().unwrap());
        }
        for (name, value) in more {
            headers.append(name, value.parse().unwrap());
        }
        Caller { guest: None, method, path: "/".into(), query: String::new(), headers }
    }

    fn check(method: Method, host: &str, more: &[(header::HeaderName, &str)]) -> Result<(), Foreign> {
        guard(Access::Network(None)).check(&caller(method, host, more))
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
        assert_eq!(guard(Access::UnixSocket).check(&caller(Method::POST, "", &[])), Ok(()));
    }

    #[test]
    fn who_comes_from_elsewhere_shows_the_token() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), SECRET).unwrap();
        std::fs::set_permissions(folder.path().join("token"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        let token = WebToken::read_or_make(&folder.path().join("token")).unwrap();
        let guard = guard(Access::Network(Some(token)));
        let far = |path: &str, query: &str, more: &[(header::HeaderName, &str)]| {
            let caller = caller(Method::GET, "10.0.0.1:8080", more);
            let caller = Caller { guest: Some([10, 0, 0, 9].into()), path: path.into(), query: query.into(), ..caller };
            (guard.check(&caller), guard.cookie(&caller))
        };
        for closed in
            ["/", "/index.html", "/api/v1/node", "/metrics", "/readyz", "/metrics/", "/readyz//", "//", "/nothing", ""]
        {
            assert_eq!(far(closed, "", &[]).0, Err(Foreign::Token), "{closed}");
            assert_eq!(far(closed, "token=wrong", &[]), (Err(Foreign::Token), None), "{closed}");
            assert_eq!(far(closed, &format!("a=b&token={SECRET}"), &[]).0, Ok(()), "{closed}");
        }
        for open in ["/healthz", "/style.css", "/app.js"] {
            assert_eq!(far(open, "", &[]).0, Ok(()), "{open}");
        }
        assert_eq!(far("/", "", &[(header::AUTHORIZATION, &format!("Bearer {SECRET}"))]).0, Ok(()));
        assert_eq!(far("/", "", &[(header::AUTHORIZATION, SECRET)]).0, Err(Foreign::Token));
        // A browser shows the cookie that it was given, among others.
        let cookie = far("/", &format!("token={SECRET}"), &[]).1.unwrap();
        let cookie = cookie.to_str().unwrap().split(';').next().unwrap().to_string();
        assert_eq!(far("/", "", &[(header::COOKIE, &format!("x=y; {cookie}"))]).0, Ok(()));
        assert!(!cookie.contains(SECRET), "any server of this host is shown the cookie");
        assert_eq!(far("/", "", &[(header::COOKIE, &cookie[..cookie.len() - 1])]).0, Err(Foreign::Token));
        assert_eq!(far("/", &format!("token=+{SECRET}"), &[]).0, Ok(()));
        // A proxy on this machine passes on what comes from elsewhere, with its own name.
        let passed = [(header::FORWARDED, "for=10.0.0.9")];
        let through = |query: String| Caller { query, ..caller(Method::GET, "chat.example", &passed) };
        assert_eq!(guard.check(&through(String::new())), Err(Foreign::Host));
        assert_eq!(guard.check(&through(format!("token={SECRET}"))), Ok(()));
        assert_eq!(guard.check(&caller(Method::GET, "localhost", &passed)), Err(Foreign::Token));
        // Without a token nobody from elsewhere is let in, and whoever is here needs none.
        let alone = super::tests::guard(Access::Network(None));
        let caller = Caller { guest: Some([10, 0, 0, 9].into()), ..caller(Method::GET, "10.0.0.1", &[]) };
        assert_eq!(alone.check(&caller), Err(Foreign::Token));
        assert_eq!(alone.check(&Caller { guest: None, ..caller }), Ok(()));
    }
}
