//! Nodes that keep their data folders: killed, cut off from power and started again, while the mesh stays the same.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::ops::Deref;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::shim::{Entries, Shim};
use super::{Home, Hubless, Lan, Place, eventually};

const PATIENCE: Duration = Duration::from_secs(20);

/// A node with a home of its own, running or not. Used as a [`Hubless`] while it runs.
#[derive(Debug)]
pub struct Member {
    name: String,
    place: Place,
    /// Where others reach it, if its ready file does not say.
    address: Option<String>,
    home: Home,
    args: Vec<String>,
    env: Vec<(&'static str, OsString)>,
    shim: Option<Shim>,
    node: Option<Hubless>,
}

impl Member {
    /// On loopback, not yet started.
    pub fn new(name: &str) -> Member {
        Member::with_home(name, Home::new())
    }

    /// The same in a home that is there.
    pub fn with_home(name: &str, home: Home) -> Member {
        let args = ["--listen", "127.0.0.1:0"].map(String::from).to_vec();
        let (place, name) = (Place::Here, name.into());
        Member { name, place, address: None, home, args, env: Vec::new(), shim: None, node: None }
    }

    /// On a machine of a LAN, at the default port.
    pub fn at(name: &str, lan: &Lan, machine: usize) -> Member {
        let (place, address) = (lan.place(machine), Some(lan.address(machine)));
        Member { place, address, args: Vec::new(), ..Member::new(name) }
    }

    /// With further options.
    pub fn args(mut self, args: &[&str]) -> Member {
        self.args.extend(args.iter().map(ToString::to_string));
        self
    }

    /// On a disk whose syncs are watched.
    pub fn on_shim(mut self) -> Member {
        self.shim = Some(Shim::over(&self.data_dir()));
        self
    }

    /// With this in its environment.
    pub fn env(mut self, env: Vec<(&'static str, OsString)>) -> Member {
        self.env = env;
        self
    }

    /// Its data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.home.path().join("node")
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its disk.
    pub fn shim(&self) -> &Shim {
        self.shim.as_ref().expect("this one is on a shim")
    }

    /// Starts it with these seeds, without waiting.
    pub fn spawn(&mut self, seeds: &[String]) {
        assert!(self.node.is_none(), "{} runs", self.name);
        let data_dir = self.data_dir();
        let mut args = vec!["--no-mdns", "--no-http", "--name", &self.name];
        args.extend(["--data-dir", data_dir.to_str().expect("paths are UTF-8")]);
        args.extend(self.args.iter().map(String::as_str));
        args.extend(seeds.iter().flat_map(|seed| ["--connect", seed]));
        let mut env = self.env.clone();
        if let Some(shim) = &self.shim {
            shim.settle();
            env.extend(shim.env());
        }
        self.node = Some(Hubless::spawn_with(&self.place, &self.home, &args, &env));
    }

    /// What another one dials to reach it.
    pub fn seed(&self) -> String {
        self.address.clone().unwrap_or_else(|| self.listen())
    }

    /// Whether it has been started and not been ended.
    pub fn runs(&self) -> bool {
        self.node.is_some()
    }

    /// Ends it in order.
    pub fn stop(&mut self) {
        self.node.take().expect("it runs").stop();
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.node.take().expect("it runs").kill();
    }
}

impl Deref for Member {
    type Target = Hubless;

    fn deref(&self) -> &Hubless {
        self.node.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name))
    }
}

/// Members that know each other by seeds.
#[derive(Debug)]
pub struct Mesh(pub Vec<Member>);

impl Mesh {
    /// Starts them all and waits until all are up to each other.
    pub fn start(members: Vec<Member>) -> Mesh {
        let mut mesh = Mesh(members);
        let all: Vec<usize> = (0..mesh.0.len()).collect();
        mesh.start_again(&all);
        mesh
    }

    /// On loopback, with these names.
    pub fn of(names: &[&str]) -> Mesh {
        Mesh::start(names.iter().map(|name| Member::new(name)).collect())
    }

    /// Those that run.
    pub fn running(&self) -> Vec<&Hubless> {
        self.0.iter().filter(|member| member.runs()).map(Deref::deref).collect()
    }

    /// What a further member dials to reach those that run.
    pub fn seeds(&self) -> Vec<String> {
        self.0.iter().filter(|member| member.runs()).map(Member::seed).collect()
    }

    /// Starts these, one after the other with all before as seeds, and waits until all are up to each other.
    pub fn start_again(&mut self, which: &[usize]) {
        for index in which {
            let seeds = self.seeds();
            self.0[*index].spawn(&seeds);
        }
        self.all_up();
    }

    /// Waits until all that run serve and are up to each other.
    #[track_caller]
    pub fn all_up(&self) {
        let running = self.running();
        running.iter().for_each(|node| drop(node.ready()));
        let nodes: BTreeSet<u32> = running.iter().map(|node| node.pid()).collect();
        assert_eq!(nodes.len(), running.len());
        eventually(PATIENCE, "all are up to each other", || {
            running.iter().all(|node| {
                let others: Vec<&Hubless> = running.iter().copied().filter(|other| other.pid() != node.pid()).collect();
                node.sees_up(&others)
            })
        });
    }

    /// Kills these at once.
    pub fn kill(&mut self, which: &[usize]) {
        for index in which {
            self.0[*index].node.as_mut().expect("it runs").begin_kill();
        }
        which.iter().for_each(|index| self.0[*index].kill());
    }

    /// Kills these at once and lets their disks forget what was not synced.
    pub fn cut_power(&mut self, which: &[usize], entries: Entries) {
        self.kill(which);
        which.iter().for_each(|index| self.0[*index].shim().cut_power(entries));
    }

    /// Stops all in order and starts them again; answers how long the mesh was not whole.
    pub fn restart(&mut self) -> Duration {
        let started = Instant::now();
        let all: Vec<usize> = (0..self.0.len()).collect();
        self.0.iter_mut().for_each(Member::stop);
        self.start_again(&all);
        started.elapsed()
    }
}
