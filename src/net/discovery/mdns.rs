//! mDNS: announces this node as `_hubless._tcp.local.` and browses for others (RFC 6762, RFC 6763).
//!
//! The records of a node are its port, its addresses on each used interface, and a TXT with `v` (version of the wire), `m`
//! (mesh) and `r` (run). A node with a mesh key shows no mesh but `k`, which tells those who have the key that it has it, too.
//! The instance name is random, so nothing is probed for and a newcomer is heard at its first packet.
//! The `mdns-sd` crate does this on a thread of its own. What comes from the network is checked here: only addresses on
//! attached subnets are passed on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mdns_sd::{DaemonStatus, IfKind, IfPredicate, Receiver, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{mpsc, watch};

use super::interfaces::Survey;
use super::ladder::ADDRESSES_MAX;
use super::{Candidate, Options, Stop, is_dialable};
use crate::handle::FoundBy;
use crate::id::{Room, Run};

const SERVICE: &str = "_hubless._tcp.local.";
/// After a change of the interfaces the daemon looks at them so often, for so long.
const FOLLOWS_EVERY_S: u32 = 1;
const FOLLOWS_FOR: Duration = Duration::from_secs(5);
/// At any other time so often: it may have failed to join a group, or left it in an outage too short to be seen.
const LOOKS_EVERY_S: u32 = 30;
/// How long to wait after mDNS could not start, or its events broke off.
const AGAIN: Duration = Duration::from_secs(2);
/// Records of others that are remembered: some six for each of their addresses.
const RECORDS_MAX: i64 = 8_192;
/// And timers for these, some three each.
const TIMERS_MAX: i64 = 8 * RECORDS_MAX;
/// How often they are counted.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long the goodbye may take.
const GOODBYE_TIME: Duration = Duration::from_millis(300);

/// Announces and browses until `stop`, then says goodbye. Starts over when mDNS fails: another program may hold its port.
pub(super) async fn run(
    options: Options,
    survey: watch::Receiver<Arc<Survey>>,
    found: mpsc::Sender<Candidate>,
    mut stop: Stop,
) {
    let mut warned = false;
    loop {
        match Daemon::start(&options, &survey) {
            Ok(daemon) => {
                warned = false;
                tokio::select! {
                    _ = stop.changed() => return daemon.goodbye().await,
                    () = daemon.forward(&survey, &found) => {}
                    () = daemon.follow(survey.clone()) => {}
                    records = daemon.overflows() => {
                        tracing::warn!(records, "mDNS is flooded: all it knew is forgotten");
                    }
                }
            }
            Err(error) if !warned => {
                warned = true;
                tracing::warn!(%error, "mDNS does not work; seeds, gossip and memory remain");
            }
            Err(_) => {}
        }
        tokio::select! {
            _ = stop.changed() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// The thread of `mdns-sd`, which ends with this.
struct Daemon(ServiceDaemon, Options);

impl Daemon {
    fn start(
        options: &Options,
        survey: &watch::Receiver<Arc<Survey>>,
    ) -> Result<Daemon, Box<dyn std::error::Error + Send + Sync>> {
        try_port(options.listen.ip())?;
        let daemon = Daemon(ServiceDaemon::new()?, options.clone());
        let survey = survey.clone();
        // Asked for each address at each look at the interfaces.
        let unused = IfPredicate::new(move |one| !survey.borrow().uses(&one.name, one.ip()));
        daemon.0.disable_interface(IfKind::Predicate(unused))?;
        daemon.0.set_ip_check_interval(LOOKS_EVERY_S)?;
        daemon.0.register(announcement(options)?)?;
        Ok(daemon)
    }

    /// Passes on what is found; returns when the daemon has died or nobody takes candidates any more.
    async fn forward(&self, survey: &watch::Receiver<Arc<Survey>>, found: &mpsc::Sender<Candidate>) {
        while let Ok(events) = self.0.browse(SERVICE) {
            if self.forward_events(&events, survey, found).await.is_err() {
                return;
            }
            // The daemon closes an event queue that runs full. A new one begins with all that is known.
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Has the daemon look at the interfaces soon after they have changed; returns when it has died.
    async fn follow(&self, mut survey: watch::Receiver<Arc<Survey>>) {
        loop {
            if survey.changed().await.is_err() {
                // The node stops, and stops this.
                std::future::pending::<()>().await;
            }
            if self.0.set_ip_check_interval(FOLLOWS_EVERY_S).is_err() {
                return;
            }
            tokio::time::sleep(FOLLOWS_FOR).await;
            if self.0.set_ip_check_interval(LOOKS_EVERY_S).is_err() {
                return;
            }
        }
    }

    /// Waits until the daemon remembers more than it should, for it has no bound; how many records. It answers nothing as
    /// long as something comes quicker than it reads, so a flood is noticed when it is over.
    async fn overflows(&self) -> i64 {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            // Without an answer it has ended, which is noticed elsewhere.
            let Ok(answer) = self.0.get_metrics() else { continue };
            let Ok(counts) = answer.recv_async().await else { continue };
            let records = counts.iter().filter(|(name, _)| name.starts_with("cached-")).map(|(_, count)| count).sum();
            // Those who repeat themselves make no records, but timers.
            let timers = counts.get("timer").copied().unwrap_or_default();
            if records > RECORDS_MAX || timers > TIMERS_MAX {
                return records;
            }
        }
    }

    async fn forward_events(
        &self,
        events: &Receiver<ServiceEvent>,
        survey: &watch::Receiver<Arc<Survey>>,
        found: &mpsc::Sender<Candidate>,
    ) -> Result<(), mpsc::error::SendError<Candidate>> {
        while let Ok(event) = events.recv_async().await {
            if let ServiceEvent::ServiceResolved(service) = event {
                let candidate = candidate(&service, &survey.borrow(), &self.1);
                if let Some(candidate) = candidate {
                    found.send(candidate).await?;
                }
            }
        }
        Ok(())
    }

    /// Withdraws the announcement and ends the thread.
    async fn goodbye(self) {
        let Ok(status) = self.0.shutdown() else { return };
        let ended = async { while status.recv_async().await.is_ok_and(|status| status != DaemonStatus::Shutdown) {} };
        // Others notice without it, a little later.
        let _ = tokio::time::timeout(GOODBYE_TIME, ended).await;
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // An error means that the thread has ended, or is so far behind that it is lost anyway.
        let _ = self.0.shutdown();
    }
}

/// Whether the port of mDNS can be shared with whoever has it. The daemon does not say, and never tries again.
fn try_port(listen: IpAddr) -> std::io::Result<()> {
    let (domain, any) = match listen {
        IpAddr::V4(_) => (Domain::IPV4, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        IpAddr::V6(_) => (Domain::IPV6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SocketAddr::new(any, mdns_sd::MDNS_PORT).into())
}

fn announcement(options: &Options) -> Result<ServiceInfo, Box<dyn std::error::Error + Send + Sync>> {
    let name = format!("{:016x}", getrandom::u64().map_err(|error| error.to_string())?);
    let host = format!("{name}.local.");
    let (version, run) = (options.version.to_string(), options.run.to_string());
    let (kind, shown) = match &options.mesh_keys {
        None => ("m", options.mesh.clone()),
        Some(keys) => ("k", keys.first().tag(&options.mesh, options.run)),
    };
    let text = [("v", version.as_str()), (kind, shown.as_str()), ("r", run.as_str())];
    let mut info = ServiceInfo::new(SERVICE, &name, &host, "", options.listen.port(), &text[..])?.enable_addr_auto();
    info.set_requires_probe(false);
    Ok(info)
}

/// What a record says; nothing if that is of no use here.
fn candidate(service: &ResolvedService, survey: &Survey, own: &Options) -> Option<Candidate> {
    let text = |key| service.get_property_val_str(key);
    let version = text("v")?.parse().ok()?;
    let mesh = text("m").map(|mesh| mesh.chars().take(Room::LEN_MAX).collect());
    // Another version may write its run in another way; it is named as a neighbour kept apart all the same.
    let run = text("r").and_then(|run| run.parse::<Run>().ok());
    // Whoever shows no mesh must show a key, and only those are dialled who show one of ours.
    let strange_key = match (&own.mesh_keys, text("k")) {
        (None, None) => false,
        (Some(keys), Some(tag)) => !run.is_some_and(|run| keys.iter().any(|key| key.tag(&own.mesh, run) == tag)),
        _ => true,
    };
    if mesh.is_none() && text("k").is_none() {
        return None;
    }
    let mut addresses: Vec<SocketAddr> = service
        .get_addresses()
        .iter()
        .map(|ip| SocketAddr::new(ip.to_ip_addr(), service.get_port()))
        .filter(|address| is_dialable(*address) && survey.is_attached(address.ip()))
        .collect();
    addresses.sort();
    addresses.truncate(ADDRESSES_MAX);
    let found = Candidate { addresses, run, found_by: FoundBy::Mdns, mesh, version: Some(version), strange_key };
    (!found.addresses.is_empty()).then_some(found)
}

/// Reads records made of lines of `key=value`; see [`crate::fuzz`].
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz(bytes: &[u8]) {
    use crate::id::{Epoch, NodeId};
    use crate::mesh_key::{KeyRing, MeshKey};

    let text = String::from_utf8_lossy(bytes);
    let pairs: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let Ok(info) = ServiceInfo::new(SERVICE, "x", "x.local.", "127.0.0.1", 4711, &pairs[..]) else { return };
    let mut own = Options {
        run: Run { node: NodeId([9; 32]), epoch: Epoch(9) },
        mesh: "lab".into(),
        mesh_keys: None,
        version: 1,
        listen: ([127, 0, 0, 1], 4711).into(),
        interfaces: Vec::new(),
        seeds: Vec::new(),
        mdns: true,
    };
    let survey = super::interfaces::Policy::new(&[], own.listen).ok().and_then(|policy| policy.survey().ok());
    let (Some(survey), service) = (survey, info.as_resolved_service()) else { return };
    if let Some(found) = candidate(&service, &survey, &own) {
        assert!(found.addresses.len() <= ADDRESSES_MAX);
        assert!(found.mesh.is_none_or(|mesh| mesh.chars().count() <= Room::LEN_MAX));
    }
    // Nobody guesses a key.
    own.mesh_keys = MeshKey::random().ok().map(KeyRing::of);
    assert!(candidate(&service, &survey, &own).is_none_or(|found| found.strange_key));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Epoch, NodeId};
    use crate::mesh_key::{KeyRing, MeshKey};
    use crate::net::discovery::interfaces::Policy;

    fn options() -> Options {
        Options {
            run: Run { node: NodeId([9; 32]), epoch: Epoch(9) },
            mesh: "lab".into(),
            mesh_keys: None,
            version: 1,
            listen: "127.0.0.1:4711".parse().unwrap(),
            interfaces: Vec::new(),
            seeds: Vec::new(),
            mdns: true,
        }
    }

    fn loopback() -> Survey {
        Policy::new(&[], options().listen).unwrap().survey().unwrap()
    }

    fn resolved(addresses: &str, text: &[(&str, &str)]) -> ResolvedService {
        ServiceInfo::new(SERVICE, "x", "x.local.", addresses, 4711, text).unwrap().as_resolved_service()
    }

    #[test]
    fn an_announcement_reads_back_as_the_node_that_made_it() {
        let info = announcement(&options()).unwrap();
        let text: Vec<_> = info.get_properties().iter().map(|text| (text.key(), text.val_str())).collect();
        let candidate = candidate(&resolved("127.0.0.1", &text), &loopback(), &options()).unwrap();
        assert_eq!(candidate.run, Some(options().run));
        assert_eq!((candidate.mesh.as_deref(), candidate.version), (Some("lab"), Some(1)));
        assert_eq!(candidate.addresses, [options().listen]);
    }

    #[test]
    fn a_key_shows_neither_mesh_nor_name_and_only_its_like_are_dialled() {
        let closed = |key: &MeshKey| Options { mesh_keys: Some(KeyRing::of(key.clone())), ..options() };
        let (ours, other) = (MeshKey::random().unwrap(), MeshKey::random().unwrap());
        let said = |of: &Options| {
            let info = announcement(of).unwrap();
            info.get_properties().iter().map(|text| (text.key().to_string(), text.val_str().to_string())).collect()
        };
        let found = |said: &Vec<(String, String)>, by: &Options| {
            let text: Vec<(&str, &str)> = said.iter().map(|(key, value)| (&**key, &**value)).collect();
            candidate(&resolved("127.0.0.1", &text), &loopback(), by).unwrap()
        };
        let shown: Vec<(String, String)> = said(&closed(&ours));
        assert!(shown.iter().all(|(key, value)| key != "m" && !value.contains("lab")), "{shown:?}");
        assert!(!found(&shown, &closed(&ours)).strange_key);
        assert!(found(&shown, &closed(&other)).strange_key && found(&shown, &options()).strange_key);
        assert!(found(&said(&options()), &closed(&ours)).strange_key);
        // Somebody else's tag proves nothing.
        let mut stolen = shown;
        stolen
            .iter_mut()
            .filter(|(key, _)| key == "r")
            .for_each(|(_, run)| *run = Run { epoch: Epoch(7), ..options().run }.to_string());
        assert!(found(&stolen, &closed(&ours)).strange_key);
    }

    #[test]
    fn only_addresses_on_attached_subnets_are_taken() {
        let text = [("v", "1"), ("m", "lab"), ("r", "?")];
        let some =
            candidate(&resolved("127.0.0.3,203.0.113.1,fe80::1,0.0.0.0", &text), &loopback(), &options()).unwrap();
        assert_eq!(some.addresses, ["127.0.0.3:4711".parse().unwrap()]);
        assert_eq!(candidate(&resolved("203.0.113.1", &text), &loopback(), &options()), None);
    }

    #[test]
    fn records_that_are_not_ours_are_passed_over() {
        for text in [&[("m", "lab")][..], &[("v", "x"), ("m", "lab")], &[("v", "1")], &[("v", "999"), ("m", "lab")]] {
            assert_eq!(candidate(&resolved("127.0.0.1", text), &loopback(), &options()), None);
        }
    }
}
