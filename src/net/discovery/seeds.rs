//! Seeds: addresses given by hand, resolved anew at each try.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc;

use super::ladder::ADDRESSES_MAX;
use super::{Candidate, Stop};
use crate::config::Seed;
use crate::handle::FoundBy;

const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// A name server that does not answer holds up its seed no longer.
const RESOLVE_TIME: Duration = Duration::from_secs(5);

/// Yields the addresses of `seed` now, and again after 1 s, 2 s, … 30 s: its name may move to another machine.
pub(super) async fn feed(seed: Seed, found: mpsc::Sender<Candidate>, mut stop: Stop) {
    let mut again = AGAIN_MIN;
    let mut unknown = false;
    loop {
        let addresses = tokio::select! {
            _ = stop.changed() => return,
            addresses = resolve(&seed) => addresses,
        };
        if addresses.is_empty() && !unknown {
            tracing::warn!(%seed, "cannot find the address of this seed; trying on");
        }
        unknown = addresses.is_empty();
        if !unknown {
            let candidate = Candidate {
                addresses,
                run: None,
                found_by: FoundBy::Seed,
                mesh: None,
                version: None,
                strange_key: false,
            };
            tokio::select! {
                _ = stop.changed() => return,
                sent = found.send(candidate) => if sent.is_err() { return },
            }
        }
        tokio::select! {
            _ = stop.changed() => return,
            () = tokio::time::sleep(again) => again = (again * 2).min(AGAIN_MAX),
        }
    }
}

/// The addresses of `seed` as of now; none if its name is unknown or nobody answers.
async fn resolve(seed: &Seed) -> Vec<SocketAddr> {
    let lookup = tokio::net::lookup_host((seed.host.as_str(), seed.port));
    match tokio::time::timeout(RESOLVE_TIME, lookup).await {
        Ok(Ok(addresses)) => addresses.take(ADDRESSES_MAX).collect(),
        Ok(Err(error)) => {
            tracing::debug!(%seed, %error, "seed not resolved");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_and_addresses_resolve_and_what_does_not_is_empty() {
        let local = resolve(&"localhost:9".parse().unwrap()).await;
        assert!(!local.is_empty() && local.iter().all(|address| address.ip().is_loopback() && address.port() == 9));
        assert_eq!(resolve(&"[::1]:9".parse().unwrap()).await, ["[::1]:9".parse().unwrap()]);
        assert_eq!(resolve(&Seed { host: String::new(), port: 9 }).await, []);
    }
}
