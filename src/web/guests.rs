//! What one address of the LAN may do at once: connections, WebSockets, requests. This machine itself is not limited.
//!
//! An address is remembered while it is connected or has requests to make up for, so there are never many.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The most connections open from one address; WebSockets are counted apart.
pub const GUEST_CONNECTIONS_MAX: u32 = 64;
/// The most WebSockets open from one address.
pub const GUEST_SOCKETS_MAX: u32 = 64;
/// The most connections open from all other machines together, so that there is always room for this one.
const ALL_CONNECTIONS_MAX: u32 = 768;
/// Requests and messages of one address in a second, for long.
const RATE_PER_S: f64 = 500.0;
/// And so many at once, after a rest.
const BURST: f64 = 2_000.0;
/// How long who is too quick waits before it is looked at again.
const PACE: Duration = Duration::from_millis(20);
/// Remembered addresses beyond which those are forgotten that have rested enough.
const REMEMBERED: usize = 4_096;

/// All addresses that are connected or were lately.
#[derive(Clone, Debug, Default)]
pub(super) struct Guests(Arc<Mutex<HashMap<IpAddr, Guest>>>);

#[derive(Debug)]
struct Guest {
    open: [u32; 2],
    /// What it may still do at this moment.
    left: f64,
    at: Instant,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Connection,
    Socket,
}

/// A connection that is counted for as long as this lives.
#[derive(Debug)]
pub(super) struct Visit {
    guests: Guests,
    address: Option<IpAddr>,
    kind: Kind,
}

/// The address that is limited, of IPv6 its network: none for this machine itself, which was reached at `here`.
pub(super) fn guest(address: IpAddr, here: Option<IpAddr>) -> Option<IpAddr> {
    let address = address.to_canonical();
    if address.is_loopback() || Some(address) == here.map(|here| here.to_canonical()) {
        return None;
    }
    Some(match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    })
}

impl Guests {
    /// Counts a connection; none if there are too many of this address already.
    pub fn enter(&self, address: Option<IpAddr>, kind: Kind) -> Option<Visit> {
        if let Some(address) = address {
            let all = || self.lock().values().map(|guest| guest.open[0]).sum::<u32>();
            if kind == Kind::Connection && all() >= ALL_CONNECTIONS_MAX {
                return None;
            }
            self.with(address, |guest| {
                let (open, max) = match kind {
                    Kind::Connection => (&mut guest.open[0], GUEST_CONNECTIONS_MAX),
                    Kind::Socket => (&mut guest.open[1], GUEST_SOCKETS_MAX),
                };
                let fits = *open < max;
                *open += u32::from(fits);
                fits.then_some(())
            })?;
        }
        Some(Visit { guests: self.clone(), address, kind })
    }

    /// Whether this address may do one thing more now.
    pub fn may(&self, address: Option<IpAddr>) -> bool {
        address.is_none_or(|address| {
            self.with(address, |guest| {
                let fits = guest.left >= 1.0;
                guest.left -= f64::from(u8::from(fits));
                fits
            })
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Guest>> {
        // Nothing that is done under it panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, address: IpAddr, act: impl FnOnce(&mut Guest) -> T) -> T {
        let mut guests = self.lock();
        let now = Instant::now();
        if guests.len() >= REMEMBERED && !guests.contains_key(&address) {
            guests.retain(|_, guest| !guest.rested(now));
        }
        let guest = guests.entry(address).or_insert(Guest { open: [0; 2], left: BURST, at: now });
        guest.rested(now);
        act(guest)
    }
}

impl Visit {
    /// Waits until this address may do one thing more.
    pub async fn pace(&self) {
        while !self.guests.may(self.address) {
            tokio::time::sleep(PACE).await;
        }
    }
}

impl Guest {
    /// Makes up for the time since it was last looked at; whether there is nothing left to remember.
    fn rested(&mut self, now: Instant) -> bool {
        let rest = now.saturating_duration_since(self.at).as_secs_f64();
        (self.left, self.at) = ((self.left + rest * RATE_PER_S).min(BURST), now);
        self.open == [0; 2] && self.left >= BURST
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Some(address) = self.address {
            self.guests.with(address, |guest| {
                let open = &mut guest.open[if self.kind == Kind::Connection { 0 } else { 1 }];
                *open = open.saturating_sub(1);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_connections_and_this_machine_any() {
        let guests = Guests::default();
        let far = guest("10.0.0.9".parse().unwrap(), None);
        let open: Vec<Visit> =
            (0..GUEST_CONNECTIONS_MAX).map(|_| guests.enter(far, Kind::Connection).unwrap()).collect();
        assert!(guests.enter(far, Kind::Connection).is_none());
        assert!(
            guests.enter(far, Kind::Socket).is_some()
                && guests.enter(guest([10, 0, 0, 8].into(), None), Kind::Connection).is_some()
        );
        drop(open);
        assert!(guests.enter(far, Kind::Connection).is_some());
        for here in ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(guest(here.parse().unwrap(), None), None, "{here}");
        }
        assert!((0..10_000).all(|_| guests.may(None)));
        // Its own address is this machine; hosts of one IPv6 network are one guest.
        let own = Some([10, 0, 0, 9].into());
        assert_eq!((guest([10, 0, 0, 9].into(), own), guest([10, 0, 0, 8].into(), own).is_some()), (None, true));
        assert_eq!(guest("fd00::1:2".parse().unwrap(), None), guest("fd00::9".parse().unwrap(), None));
    }

    #[test]
    fn other_machines_leave_room_for_this_one() {
        let guests = Guests::default();
        let address = |number: u32| guest(IpAddr::from((0x0a00_0000 + number / 60).to_be_bytes()), None);
        let open: Vec<_> = (0..2_000).map_while(|number| guests.enter(address(number), Kind::Connection)).collect();
        assert_eq!(open.len(), ALL_CONNECTIONS_MAX as usize);
        assert!(guests.enter(None, Kind::Connection).is_some());
    }

    #[test]
    fn who_asks_too_often_is_told_and_may_ask_again_later() {
        let guests = Guests::default();
        let far = guest("fd00::9".parse().unwrap(), None);
        let let_in = (0..5_000).filter(|_| guests.may(far)).count();
        assert!((BURST as usize..BURST as usize + 500).contains(&let_in), "{let_in}");
        guests.with(far.unwrap(), |guest| guest.at -= Duration::from_secs(1));
        assert!(guests.may(far));
    }

    #[test]
    fn addresses_that_have_rested_are_forgotten() {
        let guests = Guests::default();
        for number in 0..3 * REMEMBERED as u32 {
            drop(guests.enter(Some(IpAddr::from(number.to_be_bytes())), Kind::Connection));
        }
        assert!(guests.0.lock().unwrap().len() <= REMEMBERED);
    }
}
