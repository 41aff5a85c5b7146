//! The page: the files of `public/`, inside the binary.
//!
//! A debug build reads them from the source folder instead, so that the page can be worked on while a node runs.

use std::borrow::Cow;

use data_encoding::HEXLOWER;
use rust_embed::{EmbeddedFile, RustEmbed};
use warp::http::{HeaderMap, HeaderValue, StatusCode, header};
use warp::hyper::body::Bytes;
use warp::reply::Response;

/// Scripts, styles and sockets of this node only; nothing inline, nothing in a frame.
const POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; object-src 'none'; \
    base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

#[derive(RustEmbed)]
#[folder = "public/"]
struct Public;

/// The file at `path`, the page itself at the empty path; none if there is no such file.
pub(super) fn file(path: &str, request: &HeaderMap) -> Option<Response> {
    let path = if path.is_empty() { "index.html" } else { path };
    let file = read(path)?;
    let tag = format!("\"{}\"", HEXLOWER.encode(&file.metadata.sha256_hash()[..16]));
    let known =
        request.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok()).is_some_and(|tags| tags.contains(&tag));
    let mut response = if known {
        let mut response = Response::default();
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        Response::new(match file.data {
            Cow::Borrowed(bytes) => Bytes::from_static(bytes).into(),
            Cow::Owned(bytes) => bytes.into(),
        })
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(path)));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    // Asked for each time and answered with 304: a new node never serves with an old page.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    Some(response)
}

/// Whether there is a file at `path`.
pub(super) fn is_there(path: &str) -> bool {
    read(path).is_some()
}

/// A path is taken to the letter: a build that reads from the source folder would follow more.
fn read(path: &str) -> Option<EmbeddedFile> {
    let plain = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    plain.then(|| Public::get(path)).flatten()
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit('.').next().unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "txt" | "md" | "LICENSE" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_known_by_its_tag_is_not_sent_again() {
        let mut request = HeaderMap::new();
        let first = file("", &request).unwrap();
        assert_eq!(first.status(), StatusCode::OK);
        assert_eq!(first.headers()[header::CONTENT_TYPE], "text/html; charset=utf-8");
        request.insert(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone());
        assert_eq!(file("index.html", &request).unwrap().status(), StatusCode::NOT_MODIFIED);
        request.insert(header::IF_NONE_MATCH, HeaderValue::from_static("\"other\""));
        assert_eq!(file("index.html", &request).unwrap().status(), StatusCode::OK);
    }

    #[test]
    fn nothing_outside_the_folder_is_served() {
        for path in [
            "../Cargo.toml",
            "/etc/passwd",
            "..%2fCargo.toml",
            "no-such-file",
            "vendor/../../Cargo.toml",
            "/etc/os-release",
            "../../../../../../etc/mtab",
        ] {
            assert!(file(path, &HeaderMap::new()).is_none(), "{path}");
        }
    }
}
