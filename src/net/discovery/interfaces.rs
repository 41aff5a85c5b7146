//! The network interfaces of this machine: which of them discovery uses, and at which addresses peers reach this node.
//!
//! A [`Policy`] is what the user chose, a [`Survey`] what comes of it at one moment. Virtual interfaces are passed over by
//! name, because their neighbours are seldom machines of the LAN; an interface that only looks like a real one (inside a
//! container, say) is used. Loopback serves where there is nothing else, so that nodes on one laptop off-line find each
//! other. Nothing here opens a socket.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use if_addrs::IfAddr;

use crate::error::StartError;
use crate::handle::Interface;

/// Beginnings of names that belong to virtual interfaces.
const VIRTUAL: [&str; 8] = ["docker", "br-", "veth", "virbr", "tun", "utun", "tailscale", "vboxnet"];

/// Which interfaces are wanted.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// Names or addresses; empty: whatever is fit.
    wanted: Vec<String>,
    /// Where the node listens: it is reached at no other address.
    listen: SocketAddr,
}

/// The interfaces at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Survey {
    interfaces: Vec<Interface>,
    used: Vec<Used>,
    listen: SocketAddr,
}

/// An address of this machine that discovery uses.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Used {
    name: String,
    /// An interface that was made anew has another one, and lost what was joined on it.
    index: Option<u32>,
    address: IfAddr,
}

impl Policy {
    /// Uses the interfaces named in `wanted`, or all that are fit, as far as a node that listens at `listen` is reached
    /// there.
    ///
    /// # Errors
    /// [`StartError::Config`] if there is no such interface; it names those that exist.
    pub(crate) fn new(wanted: &[String], listen: SocketAddr) -> Result<Policy, StartError> {
        let list = |source| StartError::System { what: "cannot list the network interfaces", source };
        Policy::check(wanted, listen, &if_addrs::get_if_addrs().map_err(list)?)
    }

    fn check(wanted: &[String], listen: SocketAddr, all: &[if_addrs::Interface]) -> Result<Policy, StartError> {
        let unknown = |wanted: &&String| !all.iter().any(|interface| is_meant(wanted, interface));
        if let Some(unknown) = wanted.iter().find(unknown) {
            let names: BTreeSet<&str> = all.iter().map(|interface| interface.name.as_str()).collect();
            let names = names.into_iter().collect::<Vec<_>>().join(", ");
            return Err(StartError::Config(format!(
                "there is no interface `{unknown}` with an address; there are: {names}"
            )));
        }
        Ok(Policy { wanted: wanted.to_vec(), listen })
    }

    /// Looks at the interfaces as they are now: some system calls, no waiting.
    ///
    /// # Errors
    /// The system does not say.
    pub(crate) fn survey(&self) -> io::Result<Survey> {
        Ok(self.judge(if_addrs::get_if_addrs()?))
    }

    fn judge(&self, mut all: Vec<if_addrs::Interface>) -> Survey {
        all.sort_by_key(|interface| (interface.index, interface.ip()));
        // Loopback only where nothing else is, unless somebody asked for it or listens nowhere else.
        let asked = !self.wanted.is_empty() || self.listen.ip().is_loopback();
        let others = all.iter().any(|one| !one.is_loopback() && self.objection(one).is_none());
        let mut interfaces = Vec::<Interface>::new();
        let mut used = Vec::new();
        for one in all {
            let objection = self.objection(&one);
            let objection =
                objection.or((one.is_loopback() && others && !asked).then_some("loopback, and others are up"));
            match interfaces.iter_mut().find(|interface| interface.name == one.name) {
                // One usable address makes the interface used; of many reasons against it the first is told.
                Some(interface) if objection.is_none() => interface.skipped = None,
                Some(_) => {}
                None => interfaces.push(Interface { name: one.name.clone(), skipped: objection }),
            }
            if objection.is_none() {
                used.push(Used { name: one.name, index: one.index, address: one.addr });
            }
        }
        Survey { interfaces, used, listen: self.listen }
    }

    /// Why this address of an interface is not used, loopback's place aside.
    fn objection(&self, one: &if_addrs::Interface) -> Option<&'static str> {
        let wanted = self.wanted.iter().any(|wanted| is_meant(wanted, one));
        if !self.wanted.is_empty() && !wanted {
            Some("not asked for")
        } else if !wanted && VIRTUAL.iter().any(|virtual_| one.name.starts_with(virtual_)) {
            Some("virtual")
        } else if !one.is_oper_up() {
            Some("down")
        } else if !self.is_reached_at(one) {
            Some("the node does not listen on its addresses")
        } else {
            None
        }
    }

    fn is_reached_at(&self, one: &if_addrs::Interface) -> bool {
        let (ip, listen) = (one.ip(), self.listen.ip());
        match ip {
            // It is no address without a scope, which is another one on every machine.
            IpAddr::V6(_) if one.is_link_local() => false,
            // `[::]` takes IPv4 as well.
            _ if listen.is_unspecified() => listen.is_ipv6() || ip.is_ipv4(),
            // All of 127.0.0.0/8 is on loopback, one address of it is listed.
            _ if listen.is_loopback() => one.is_loopback() && ip.is_ipv4() == listen.is_ipv4(),
            _ => ip == listen,
        }
    }
}

impl Survey {
    /// The interfaces that have an address, used or passed over.
    pub(crate) fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// Where peers reach a node that listens at the address given to [`Policy::new`].
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        if !self.listen.ip().is_unspecified() {
            return vec![self.listen];
        }
        self.used.iter().map(|used| SocketAddr::new(used.address.ip(), self.listen.port())).collect()
    }

    /// Whether `ip` is on a subnet to which a used interface is attached.
    #[cfg(any(test, feature = "mdns"))]
    pub(crate) fn is_attached(&self, ip: IpAddr) -> bool {
        self.used.iter().any(|used| match (&used.address, ip) {
            (IfAddr::V4(own), IpAddr::V4(ip)) => {
                let mask = own.netmask.to_bits();
                own.ip.to_bits() & mask == ip.to_bits() & mask
            }
            (IfAddr::V6(own), IpAddr::V6(ip)) => {
                let mask = own.netmask.to_bits();
                own.ip.to_bits() & mask == ip.to_bits() & mask
            }
            _ => false,
        })
    }

    /// Whether this address of the interface of that name is used.
    #[cfg(feature = "mdns")]
    pub(crate) fn uses(&self, name: &str, ip: IpAddr) -> bool {
        self.used.iter().any(|used| used.name == name && used.address.ip() == ip)
    }
}

/// Whether `wanted`, a name or an address, means this interface.
fn is_meant(wanted: &str, interface: &if_addrs::Interface) -> bool {
    interface.name == wanted || wanted.parse() == Ok(interface.ip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use if_addrs::{IfOperStatus, Ifv4Addr, Ifv6Addr, Interface as Listed};

    fn listed(name: &str, address: &str, prefixlen: u8, up: bool) -> Listed {
        let addr = match address.parse().unwrap() {
            IpAddr::V4(ip) => {
                let netmask = u32::MAX.checked_shl(32 - u32::from(prefixlen)).unwrap_or(0).into();
                IfAddr::V4(Ifv4Addr { ip, netmask, prefixlen, broadcast: None })
            }
            IpAddr::V6(ip) => {
                let netmask = u128::MAX.checked_shl(128 - u32::from(prefixlen)).unwrap_or(0).into();
                IfAddr::V6(Ifv6Addr { ip, netmask, prefixlen, broadcast: None })
            }
        };
        let oper_status = if up { IfOperStatus::Up } else { IfOperStatus::Unknown };
        Listed { name: name.into(), addr, index: Some(1), oper_status, is_p2p: false }
    }

    fn machine() -> Vec<Listed> {
        vec![
            listed("lo", "127.0.0.1", 8, true),
            listed("lo", "::1", 128, true),
            listed("eth0", "10.1.2.3", 24, true),
            listed("eth0", "fd00::3", 64, true),
            listed("eth0", "fe80::3", 64, true),
            listed("eth1", "10.9.0.1", 24, false),
            listed("docker0", "172.17.0.1", 16, true),
        ]
    }

    fn survey(wanted: &[&str], listen: &str, machine: Vec<Listed>) -> Survey {
        let wanted: Vec<String> = wanted.iter().map(|wanted| wanted.to_string()).collect();
        Policy::check(&wanted, listen.parse().unwrap(), &machine).unwrap().judge(machine)
    }

    fn reached(survey: &Survey) -> Vec<String> {
        survey.addresses().iter().map(SocketAddr::to_string).collect()
    }

    fn skipped(survey: &Survey, name: &str) -> Option<&'static str> {
        survey.interfaces().iter().find(|interface| interface.name == name).unwrap().skipped
    }

    #[test]
    fn real_interfaces_are_used_and_the_others_say_why_not() {
        let survey = survey(&[], "0.0.0.0:5", machine());
        assert_eq!(reached(&survey), ["10.1.2.3:5"]);
        assert_eq!(skipped(&survey, "eth0"), None);
        assert_eq!(skipped(&survey, "eth1"), Some("down"));
        assert_eq!(skipped(&survey, "docker0"), Some("virtual"));
        assert_eq!(skipped(&survey, "lo"), Some("loopback, and others are up"));
        assert_eq!(survey.interfaces().len(), 4);
    }

    #[test]
    fn loopback_serves_where_nothing_else_is_up() {
        let only = machine().into_iter().filter(|one| !one.name.starts_with("eth0")).collect();
        let survey = survey(&[], "0.0.0.0:5", only);
        assert_eq!(reached(&survey), ["127.0.0.1:5"]);
        assert_eq!(skipped(&survey, "lo"), None);
        assert!(survey.is_attached("127.9.9.9".parse().unwrap()));
    }

    #[test]
    fn an_interface_that_is_asked_for_is_used_whatever_it_is() {
        for wanted in ["docker0", "172.17.0.1"] {
            let survey = survey(&[wanted], "0.0.0.0:5", machine());
            assert_eq!(reached(&survey), ["172.17.0.1:5"]);
            assert_eq!(skipped(&survey, "eth0"), Some("not asked for"));
        }
        assert_eq!(reached(&survey(&["lo", "eth0"], "0.0.0.0:5", machine())), ["10.1.2.3:5", "127.0.0.1:5"]);
    }

    #[test]
    fn an_unknown_interface_is_refused_by_naming_those_that_exist() {
        let error = Policy::check(&["wlan7".into()], "0.0.0.0:5".parse().unwrap(), &machine()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no interface `wlan7` with an address; there are: docker0, eth0, eth1, lo"
        );
    }

    #[test]
    fn a_node_is_reached_only_where_it_listens() {
        assert_eq!(reached(&survey(&[], "[::]:5", machine())), ["10.1.2.3:5", "[fd00::3]:5"]);
        let local = survey(&[], "127.0.0.2:5", machine());
        assert_eq!((reached(&local), skipped(&local, "lo")), (vec!["127.0.0.2:5".into()], None));
        assert!(skipped(&local, "eth0").is_some());
        let docker = survey(&["docker0"], "172.17.0.1:5", machine());
        assert_eq!(reached(&docker), ["172.17.0.1:5"]);
    }

    #[test]
    fn only_subnets_of_used_interfaces_are_attached() {
        let survey = survey(&[], "[::]:5", machine());
        for (address, attached) in [
            ("10.1.2.99", true),
            ("10.1.3.1", false),
            ("172.17.0.2", false),
            ("127.0.0.1", false),
            ("fd00::99", true),
            ("fd01::1", false),
        ] {
            assert_eq!(survey.is_attached(address.parse().unwrap()), attached, "{address}");
        }
    }

    #[test]
    fn this_machine_has_interfaces() {
        let survey = Policy::new(&[], "0.0.0.0:5".parse().unwrap()).unwrap().survey().unwrap();
        assert!(!survey.interfaces().is_empty());
    }
}
