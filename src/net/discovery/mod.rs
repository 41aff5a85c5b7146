//! Discovery: finds out where other nodes may be.
//!
//! `Discovery` runs the rungs that need the network (mDNS and the seeds) as tasks on the runtime it is started on, and
//! yields `Candidate`s; `memory` and gossip yield more. The `ladder` decides whom of them to dial. Discovery says
//! where a node may be, never that it lives: that is for heartbeats to tell.

pub(crate) mod apart;
pub(crate) mod interfaces;
pub(crate) mod ladder;
#[cfg(feature = "mdns")]
pub(crate) mod mdns;
pub(crate) mod memory;
mod seeds;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::config::Seed;
use crate::error::StartError;
use crate::handle::FoundBy;
use crate::id::Run;
use crate::mesh_key::KeyRing;
use interfaces::{Policy, Survey};

/// Candidates that wait for the node; a rung that finds more waits.
const CANDIDATES_MAX: usize = 256;
/// How long a goodbye may take.
const SHUTDOWN_TIME: Duration = Duration::from_millis(500);

/// A place where a node may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Where it is reached; more than one only if they belong to `run`.
    pub addresses: Vec<SocketAddr>,
    /// Who it says it is.
    pub run: Option<Run>,
    /// The rung that found it.
    pub found_by: FoundBy,
    /// The mesh it says it is on.
    pub mesh: Option<String>,
    /// The version of the wire it says it speaks.
    pub version: Option<u8>,
    /// It shows another key than ours, or one of us has none.
    pub strange_key: bool,
}

/// What discovery must know of its node.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// This life of the node.
    pub run: Run,
    /// Its mesh.
    pub mesh: String,
    /// The keys of the mesh; none: it is open.
    pub mesh_keys: Option<KeyRing>,
    /// The version of the wire it speaks.
    pub version: u8,
    /// Where it listens, with the real port.
    pub listen: SocketAddr,
    /// Names or addresses of the interfaces to use; empty: all that are fit.
    pub interfaces: Vec<String>,
    /// Seeds to resolve.
    pub seeds: Vec<Seed>,
    /// Whether to announce and browse through mDNS; without the feature `mdns` nothing comes of it.
    pub mdns: bool,
}

/// The running rungs. Dropping it ends them without a goodbye.
#[derive(Debug)]
pub(crate) struct Discovery {
    policy: Policy,
    survey: watch::Sender<Arc<Survey>>,
    /// Keeps the receiver open where no rung runs.
    found: mpsc::Sender<Candidate>,
    stop: watch::Sender<()>,
    tasks: JoinSet<()>,
}

/// Ends a task when its sender is dropped.
type Stop = watch::Receiver<()>;

impl Discovery {
    /// Starts the rungs on the current runtime, and yields what they find until [`shutdown`](Discovery::shutdown).
    ///
    /// # Errors
    /// [`StartError::Config`] for an interface that does not exist.
    pub(crate) fn start(options: Options) -> Result<(Discovery, mpsc::Receiver<Candidate>), StartError> {
        tracing::debug!(run = %options.run, mesh = options.mesh, version = options.version, mdns = options.mdns, closed = options.mesh_keys.is_some(), "discovery starts");
        let policy = Policy::new(&options.interfaces, options.listen)?;
        let first = policy
            .survey()
            .map_err(|source| StartError::System { what: "cannot list the network interfaces", source })?;
        let (found, candidates) = mpsc::channel(CANDIDATES_MAX);
        let survey = watch::Sender::new(Arc::new(first));
        let (stop, stopped) = watch::channel(());
        let mut tasks = JoinSet::new();
        for seed in options.seeds.iter().cloned() {
            tasks.spawn(seeds::feed(seed, found.clone(), stopped.clone()));
        }
        #[cfg(feature = "mdns")]
        if options.mdns {
            tasks.spawn(mdns::run(options, survey.subscribe(), found.clone(), stopped));
        }
        Ok((Discovery { policy, survey, found, stop, tasks }, candidates))
    }

    /// The interfaces, and told when they change.
    pub(crate) fn survey(&self) -> watch::Receiver<Arc<Survey>> {
        self.survey.subscribe()
    }

    /// Looks at the interfaces, and tells those who follow them of a change: some system calls, no waiting.
    pub(crate) fn look(&self) {
        match self.policy.survey() {
            Ok(survey) => {
                self.survey.send_if_modified(|known| {
                    let changed = **known != survey;
                    if changed {
                        *known = Arc::new(survey);
                    }
                    changed
                });
            }
            Err(error) => tracing::debug!(%error, "cannot list the network interfaces"),
        }
    }

    /// Says goodbye and ends all tasks, in half a second at most.
    pub(crate) async fn shutdown(self) {
        let Discovery { found, stop, mut tasks, .. } = self;
        drop((found, stop));
        // What has not ended by then is aborted when the set is dropped.
        let _ = tokio::time::timeout(SHUTDOWN_TIME, async { while tasks.join_next().await.is_some() {} }).await;
    }
}

/// Whether an address may be passed on or taken by gossip over a link that runs (or does not run) on loopback: loopback
/// means another machine to everybody else.
pub(crate) fn gossip_fit(address: SocketAddr, via_loopback: bool) -> bool {
    is_dialable(address) && (via_loopback || !address.ip().to_canonical().is_loopback())
}

/// Whether a node can be behind `address`. Link-local IPv6 needs a scope, which is another one on every machine.
pub(crate) fn is_dialable(address: SocketAddr) -> bool {
    let ip = match address.ip().to_canonical() {
        IpAddr::V4(ip) => ip != Ipv4Addr::BROADCAST,
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    };
    ip && address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Epoch, NodeId};

    fn options(seeds: &[&str]) -> Options {
        Options {
            run: Run { node: NodeId([1; 32]), epoch: Epoch(1) },
            mesh: "default".into(),
            mesh_keys: None,
            version: 1,
            listen: "127.0.0.1:5".parse().unwrap(),
            interfaces: Vec::new(),
            seeds: seeds.iter().map(|seed| seed.parse().unwrap()).collect(),
            mdns: false,
        }
    }

    #[tokio::test]
    async fn seeds_are_found_and_found_again() {
        let (discovery, mut candidates) = Discovery::start(options(&["127.0.0.1:7"])).unwrap();
        for _ in 0..2 {
            let candidate = candidates.recv().await.unwrap();
            assert_eq!(candidate.addresses, ["127.0.0.1:7".parse().unwrap()]);
            assert_eq!((candidate.run, candidate.found_by), (None, FoundBy::Seed));
        }
        assert_eq!(discovery.survey().borrow().addresses(), ["127.0.0.1:5".parse().unwrap()]);
        discovery.shutdown().await;
        assert_eq!(candidates.recv().await, None);
    }

    #[test]
    fn loopback_is_gossiped_over_loopback_only() {
        let local = SocketAddr::from(([127, 0, 0, 1], 1));
        assert!(gossip_fit(local, true) && !gossip_fit(local, false));
        assert!(gossip_fit("10.0.0.1:5".parse().unwrap(), false));
        for bad in ["0.0.0.0:1", "10.0.0.1:0", "224.0.0.1:5", "255.255.255.255:5", "[fe80::1]:5", "[::]:1"] {
            assert!(!gossip_fit(bad.parse().unwrap(), true), "{bad}");
        }
        assert!(!gossip_fit("[::ffff:127.0.0.1]:1".parse().unwrap(), false));
    }

    #[tokio::test]
    async fn without_rungs_the_candidates_wait_for_shutdown() {
        let (discovery, mut candidates) = Discovery::start(options(&[])).unwrap();
        assert_eq!(candidates.try_recv(), Err(mpsc::error::TryRecvError::Empty));
        discovery.shutdown().await;
        assert_eq!(candidates.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
    }

    #[tokio::test]
    async fn an_unknown_interface_does_not_start() {
        let options = Options { interfaces: vec!["nothing0".into()], ..options(&[]) };
        assert!(matches!(Discovery::start(options), Err(StartError::Config(text)) if text.contains("nothing0")));
    }
}
