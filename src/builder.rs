//! The way to start a node: its options, and the thread it lives on.

use std::path::PathBuf;

use tokio::sync::oneshot;

use crate::config::{Config, Listen, Seed};
use crate::error::StartError;
use crate::handle::Handle;
use crate::node::Loop;

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
            runtime.block_on(async move {
                match Loop::start(self.config).await {
                    // Whoever gave up waiting has dropped the handle, and with it the node.
                    Ok((node, handle)) => {
                        drop(started.send(Ok(handle)));
                        node.run().await;
                    }
                    Err(error) => drop(started.send(Err(error))),
                }
            });
        });
        spawned.map_err(system("no thread for the node"))?;
        let died = || system("the node's thread")(std::io::Error::other("it died while the node started"));
        start.await.unwrap_or_else(|_| Err(died()))
    }
}
