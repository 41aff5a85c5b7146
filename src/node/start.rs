//! Starts a node: its options, the thread it lives on, and everything that the loop owns.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};

use super::presence::Presence;
use super::publishes::Publishes;
use super::{ASKS_MAX, EVENTS_MAX, Inbox, Log, Loop, NET_EVENTS_MAX, SUBMISSIONS_MAX, now};
use crate::aside::Aside;
use crate::config::{Config, Fsync, Listen, Seed};
use crate::data_dir::DataDir;
use crate::error::StartError;
use crate::handle::{Bridges, Handle, HistoryHealth, Holders, Info, Inner};
use crate::history::{self, History, LogHandle};
use crate::id::{Epoch, NodeKey};
use crate::mesh_key::KeyRing;
use crate::metrics::Metrics;
use crate::net::discovery::ladder::Ladder;
use crate::net::discovery::memory::{self, Memory};
use crate::net::discovery::{self, Discovery};
use crate::net::publisher::Begun;
use crate::net::{self, Net, NetOptions};
use crate::replica::event::Input;
use crate::replica::{Replica, WINDOW_BYTES_MAX};
use crate::wire;

/// The way to start a node: [`Node::builder`].
#[derive(Debug)]
pub struct Node;

impl Node {
    /// A node with the defaults of [`Config`], to be told more and started.
    pub fn builder() -> Builder {
        Builder { config: Config::default() }
    }
}

/// What a node is told before it starts.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    config: Config,
}

impl Builder {
    /// All options at once.
    pub fn config(mut self, config: Config) -> Builder {
        self.config = config;
        self
    }

    /// Nodes of different meshes ignore each other.
    pub fn mesh(mut self, mesh: &str) -> Builder {
        self.config.mesh = mesh.into();
        self
    }

    /// The display name.
    pub fn name(mut self, name: &str) -> Builder {
        self.config.name = name.into();
        self
    }

    /// Where peers reach this node.
    pub fn listen(mut self, listen: Listen) -> Builder {
        self.config.listen = listen;
        self
    }

    /// Nodes to dial besides what discovery finds.
    pub fn seeds(mut self, seeds: Vec<Seed>) -> Builder {
        self.config.seeds = seeds;
        self
    }

    /// Whether to announce and look for nodes through mDNS.
    pub fn mdns(mut self, mdns: bool) -> Builder {
        self.config.mdns = mdns;
        self
    }

    /// Names or addresses of the interfaces to use; empty: all but known virtual ones.
    pub fn interfaces(mut self, interfaces: Vec<String>) -> Builder {
        self.config.interfaces = interfaces;
        self
    }

    /// Where identity and remembered peers live; none: the identity lasts for the run.
    pub fn data_dir(mut self, data_dir: Option<PathBuf>) -> Builder {
        self.config.data_dir = data_dir;
        self
    }

    /// Keeps nothing in the data folder but its lock.
    pub fn ephemeral(mut self, ephemeral: bool) -> Builder {
        self.config.ephemeral = ephemeral;
        self
    }

    /// Opens the data folder and talks to nobody: for reading, exporting and importing its log.
    pub fn offline(mut self, offline: bool) -> Builder {
        self.config.offline = offline;
        self
    }

    /// Whether to keep messages on disk; needs a data folder.
    pub fn history(mut self, history: bool) -> Builder {
        self.config.history = history;
        self
    }

    /// When what is kept counts as safe.
    pub fn fsync(mut self, fsync: Fsync) -> Builder {
        self.config.fsync = fsync;
        self
    }

    /// The keys of the mesh: nodes without one of them are kept out.
    pub fn key(mut self, key: KeyRing) -> Builder {
        self.config.key = Some(key);
        self
    }

    /// How long, and how many bytes of, messages are kept on disk.
    pub fn retain(mut self, days: u32, bytes: u64) -> Builder {
        (self.config.retain_days, self.config.retain_bytes) = (days, bytes);
        self
    }

    /// Starts the node on a thread of its own, and answers when peers can reach it. Works on any runtime.
    ///
    /// # Errors
    /// [`StartError`]; nothing of the node is left running.
    pub async fn start(self) -> Result<Handle, StartError> {
        self.config.check()?;
        let (started, start) = oneshot::channel();
        let thread = std::thread::Builder::new().name("hubless".into());
        let system = |what| move |source| StartError::System { what, source };
        let spawned = thread.spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(source) => return drop(started.send(Err(system("no runtime for the node")(source)))),
            };
            let life = async move {
                match Loop::start(self.config).await {
                    // Whoever gave up waiting has dropped the handle, and with it the node.
                    Ok((node, handle)) => {
                        drop(started.send(Ok(handle)));
                        node.run().await;
                    }
                    Err(error) => drop(started.send(Err(error))),
                }
            };
            // As a task: waking what `block_on` itself polls takes a system call, even from this thread.
            if let Err(error) = runtime.block_on(runtime.spawn(life))
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        });
        spawned.map_err(system("no thread for the node"))?;
        start.await.unwrap_or_else(|_| Err(died("the node's thread")))
    }
}

fn died(what: &'static str) -> StartError {
    StartError::System { what, source: std::io::Error::other("it died while the node started") }
}

impl Loop {
    /// Opens the folder, the sockets and discovery.
    async fn start(mut config: Config) -> Result<(Loop, Handle), StartError> {
        if config.offline {
            config = Config {
                listen: Listen::At((Ipv4Addr::LOCALHOST, 0).into()),
                seeds: Vec::new(),
                mdns: false,
                ..config
            };
        }
        let voice = Begun::new();
        let data_dir = config.data_dir.as_deref().map(DataDir::open).transpose()?;
        let random = |what| move |error: getrandom::Error| StartError::System { what, source: error.into() };
        let system = |what| move |source| StartError::System { what, source };
        // Where anything is kept.
        let keeping = data_dir.as_ref().filter(|_| !config.ephemeral);
        let identity = match keeping {
            Some(data_dir) => data_dir.identity()?,
            None => {
                let mut secret = [0; 32];
                getrandom::fill(&mut secret).map_err(random("no random identity"))?;
                NodeKey::from_bytes(&secret)
            }
        };
        let epoch = Epoch(getrandom::u64().map_err(random("no random epoch"))?);
        let seed = getrandom::u64().map_err(random("no random seed"))?;
        let run = identity.run(epoch);
        let metrics = Metrics::new();
        let folder = keeping.map(|data_dir| data_dir.path().to_path_buf());
        // What is remembered of the network is for nodes that are on it.
        let remembering = folder.as_deref().filter(|_| !config.offline);
        let last_port = remembering.and_then(memory::load_port);
        let mesh: Arc<str> = config.mesh.as_str().into();
        let name: Arc<str> = config.name.as_str().into();

        let aside = Aside::new().map_err(system("no threads for readers"))?;
        let (reports, reports_inbox) = mpsc::unbounded_channel();
        let kept = folder.as_ref().filter(|_| config.history).map(|folder| history::Options {
            folder: folder.join("history"),
            fsync: config.fsync,
            retain_days: config.retain_days,
            retain_bytes: config.retain_bytes,
        });
        // It is opened while sockets and discovery begin.
        let opening = kept.map(|options| {
            let (reply, opening) = oneshot::channel();
            let metrics = metrics.clone();
            aside.begin(reply, move || History::open(options, metrics, reports));
            opening
        });

        let (net_events, net_inbox) = mpsc::channel(NET_EVENTS_MAX);
        let begun = async {
            let listener = net::bind(config.listen, last_port).await?;
            let listen = listener.local_addr().map_err(system("the address listened on"))?;
            let (discovery, candidates) = Discovery::start(discovery::Options {
                run,
                mesh: config.mesh.clone(),
                mesh_keys: config.key.clone(),
                version: wire::WIRE_VERSION,
                listen,
                interfaces: config.interfaces,
                seeds: config.seeds,
                mdns: config.mdns,
            })?;
            // It announces this node while the rest is made; whoever calls so soon waits a few milliseconds.
            tokio::task::yield_now().await;
            let (key, mesh_keys) = (identity.clone(), config.key.clone());
            let options = NetOptions { run, key, mesh: mesh.clone(), mesh_keys, listener, voice, aside: aside.clone() };
            Ok((Net::start(options, metrics.clone(), net_events).await?, discovery, candidates))
        };
        let begun = begun.await;
        // Whatever came of it, nothing of the history is left running.
        let opened = match opening {
            Some(opening) => Some(opening.await.unwrap_or_else(|_| Err(died("the history")))?),
            None => None,
        };
        let (net, discovery, candidates) = begun?;
        let listen = net.listen();
        if let Some(folder) = remembering.filter(|_| last_port != Some(listen.port())) {
            let folder = folder.to_path_buf();
            tokio::spawn(async move {
                if let Err(error) = memory::save_port(&folder, listen.port()).await {
                    tracing::warn!(%error, "cannot remember the port");
                }
            });
        }
        let (log, opened) = match opened {
            Some((history, opened)) => {
                let (commits, committed) = watch::channel(0);
                let handle = LogHandle::new(
                    history.reader(),
                    history.keeper(),
                    history.health(),
                    history.admitted(),
                    committed,
                    aside.clone(),
                );
                let (health, _) = watch::channel(HistoryHealth::Working);
                (Some(Log { history, handle, fsync: config.fsync, commits, health }), Some(opened))
            }
            None => (None, None),
        };
        let survey = discovery.survey();
        let started = Instant::now();
        let mut ladder = Ladder::new(run, &config.mesh, wire::WIRE_VERSION, seed);
        let memory = remembering.map(Memory::load);
        for candidate in memory.iter().flat_map(Memory::candidates) {
            ladder.found(started, candidate);
        }

        let (publish, publish_inbox) = mpsc::channel(SUBMISSIONS_MAX);
        let (ask, ask_inbox) = mpsc::channel(ASKS_MAX);
        let (peers, peers_seen) = watch::channel(Arc::from([]));
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let (addresses, interfaces) = {
            let survey = survey.borrow();
            (survey.addresses(), survey.interfaces().to_vec())
        };
        let data_folder = data_dir.as_ref().map(|data_dir| data_dir.path().to_path_buf());
        let open = config.key.is_none();
        let info =
            Info { run, name: name.clone(), mesh, open, listen, interfaces: interfaces.into(), data_dir: data_folder };
        let (addresses_told, addresses_seen) = watch::channel(addresses.as_slice().into());
        let inner = Inner {
            info,
            publish,
            ask,
            peers: peers_seen,
            addresses: addresses_seen,
            events: events.clone(),
            metrics: metrics.clone(),
            aside,
            log: log.as_ref().map(|log| log.handle.clone()),
            holders: Arc::new(Holders::default()),
            bridges: Bridges::default(),
            health: log.as_ref().map_or_else(|| watch::channel(HistoryHealth::None).1, |log| log.health.subscribe()),
        };
        let mut replica = Replica::new(now(started), identity, epoch, name, seed, WINDOW_BYTES_MAX, opened);
        replica.handle(now(started), Input::Endpoints(addresses));
        let node = Loop {
            replica,
            ladder,
            net,
            discovery,
            survey,
            memory,
            _data_dir: data_dir,
            inbox: Inbox { reports: reports_inbox, publish: publish_inbox, ask: ask_inbox, net: net_inbox, candidates },
            alarm: Box::pin(tokio::time::sleep_until(started.into())),
            feeds: Vec::new(),
            drained: Arc::new(Notify::new()),
            links: HashMap::new(),
            links_made: 0,
            offers: HashMap::new(),
            presence: Presence::new(peers, addresses_told, events),
            held_asks: Vec::new(),
            log,
            publishes: Publishes::default(),
            catching_up: None,
            metrics,
            started,
            pinged: started,
            saved: started,
            peers_changed: true,
        };
        Ok((node, Handle::new(inner)))
    }
}
