//! A LAN in this kernel: one network namespace for each machine, one for the bridge between them.
//!
//! Nothing of it is in the machine's own network. A machine's interface is `eth0`, as on a real one; its other end is a
//! port of the bridge, and [`Lan::unplug`] is that port going down: carrier lost, addresses kept.

use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{Place, eventually};

/// Machines on a bridge; gone when it is dropped.
#[derive(Debug)]
pub struct Lan {
    switch: String,
    machines: Vec<String>,
    subnet: usize,
}

impl Lan {
    /// So many machines, all plugged in.
    pub fn new(machines: usize) -> Lan {
        let mut lan = Lan::bare(machines);
        lan.switch = format!("{}-sw", lan.machines[0]);
        namespace(&lan.switch);
        // Everything is flooded, as by a simple switch.
        ip(&["-n", &lan.switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0", "stp_state", "0"]);
        ip(&["-n", &lan.switch, "link", "set", "br0", "up"]);
        for (number, machine) in lan.machines.iter().enumerate() {
            let port = format!("p{number}");
            ip(&["link", "add", "eth0", "netns", machine, "type", "veth", "peer", "name", &port, "netns", &lan.switch]);
            ip(&["-n", &lan.switch, "link", "set", &port, "master", "br0", "up"]);
            let address = format!("{}/24", lan.address(number));
            ip(&["-n", machine, "address", "add", &address, "broadcast", "+", "dev", "eth0"]);
            ip(&["-n", machine, "link", "set", "eth0", "up"]);
        }
        for machine in &lan.machines {
            let tentative = || ip(&["-n", machine, "-6", "address", "show", "tentative"]);
            eventually(Duration::from_secs(5), "IPv6 addresses are settled", || tentative().stdout.is_empty());
        }
        lan
    }

    /// One machine with nothing but loopback.
    pub fn loopback_only() -> Lan {
        Lan::bare(1)
    }

    fn bare(machines: usize) -> Lan {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        assert!((1..200).contains(&machines));
        remove_left_over();
        let subnet = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = |number| format!("hl-{}-{subnet}-{number}", std::process::id());
        let lan = Lan { switch: String::new(), machines: (0..machines).map(name).collect(), subnet };
        lan.machines.iter().for_each(|machine| namespace(machine));
        lan
    }

    /// Where to run what shall run on a machine, counted from 0.
    pub fn place(&self, machine: usize) -> Place {
        Place::Namespace(self.machines[machine].clone())
    }

    /// Where everything that is said passes by.
    pub fn switch(&self) -> Place {
        Place::Namespace(self.switch.clone())
    }

    /// The IPv4 address of a machine.
    pub fn address(&self, machine: usize) -> String {
        format!("10.77.{}.{}", self.subnet % 256, machine + 1)
    }

    /// Pulls a machine's cable.
    pub fn unplug(&self, machine: usize) {
        ip(&["-n", &self.switch, "link", "set", &format!("p{machine}"), "down"]);
    }

    /// Moves these machines to a bridge of their own: two LANs, each whole. Carriers stay, as behind a switch that fails.
    pub fn split(&self, away: &[usize]) {
        ip(&["-n", &self.switch, "link", "add", "br1", "type", "bridge", "mcast_snooping", "0", "stp_state", "0"]);
        ip(&["-n", &self.switch, "link", "set", "br1", "up"]);
        for machine in away {
            ip(&["-n", &self.switch, "link", "set", &format!("p{machine}"), "master", "br1"]);
        }
    }

    /// Makes one LAN of two again.
    pub fn heal(&self) {
        for machine in 0..self.machines.len() {
            ip(&["-n", &self.switch, "link", "set", &format!("p{machine}"), "master", "br0"]);
        }
        ip(&["-n", &self.switch, "link", "delete", "br1"]);
    }

    /// Lets nobody connect to a machine's default port, as a firewall that drops what comes in; what it opens itself works.
    pub fn shut(&self, machine: usize) {
        ip(&["-n", &self.machines[machine], "rule", "add", "ipproto", "tcp", "sport", "47474", "blackhole"]);
    }

    /// Puts it back.
    pub fn plug(&self, machine: usize) {
        ip(&["-n", &self.switch, "link", "set", &format!("p{machine}"), "up"]);
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for name in self.machines.iter().chain([&self.switch]).filter(|name| !name.is_empty()) {
            // A half-made LAN lacks some.
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
}

fn namespace(name: &str) {
    let made = Command::new("ip").args(["netns", "add", name]).output().expect("iproute2 is installed: `make setup`");
    assert!(
        made.status.success(),
        "cannot make a network namespace, which this test needs: run it as root, or as root of a user namespace \
         (`make help` says how).\n{}",
        String::from_utf8_lossy(&made.stderr)
    );
    ip(&["-n", name, "link", "set", "lo", "up"]);
}

/// Namespaces of test programs that were killed.
fn remove_left_over() {
    let list = Command::new("ip").args(["netns", "list"]).output().expect("iproute2 is installed: `make setup`");
    for line in String::from_utf8_lossy(&list.stdout).lines() {
        let name = line.split(' ').next().unwrap_or_default();
        let pid = name.strip_prefix("hl-").and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !std::path::Path::new("/proc").join(pid).exists()) {
            let _ = Command::new("ip").args(["netns", "delete", name]).output(); // Somebody else may be quicker.
        }
    }
}

#[track_caller]
fn ip(args: &[&str]) -> Output {
    let output = Command::new("ip").args(args).output().expect("iproute2 is installed: `make setup`");
    assert!(output.status.success(), "ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    output
}
