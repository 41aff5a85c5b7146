//! Which of the nodes that offer a bridge leads it.
//!
//! Whoever leads stays until it is down, cut off from its target, or leaving. Among those that stand the lowest run is next.
//! Of two that lead, which a healed split leaves behind, the lower run stays.

use std::collections::HashMap;

use crate::id::Run;
use crate::replica::control::Role;

/// Nodes that are remembered; one more than that is not.
const NODES_MAX: usize = 1_024;

/// Who does what for one bridge, as far as it was heard.
#[derive(Debug)]
pub struct Election {
    me: Run,
    roles: HashMap<Run, Role>,
}

impl Election {
    /// Nobody does anything yet.
    pub fn new(me: Run) -> Election {
        Election { me, roles: HashMap::new() }
    }

    /// What this node does.
    pub fn role(&self) -> Role {
        self.roles.get(&self.me).copied().unwrap_or(Role::Gone)
    }

    /// A node says what it does; answers whether it is one that has to be told what we do.
    pub fn hear(&mut self, run: Run, role: Role) -> bool {
        if role == Role::Gone {
            self.roles.remove(&run);
            return false;
        }
        if self.roles.len() >= NODES_MAX && !self.roles.contains_key(&run) {
            return false;
        }
        self.roles.insert(run, role).is_none() && run != self.me
    }

    /// Forgets those that are not `live`: when they come back they say what they do.
    pub fn keep(&mut self, live: impl Fn(&Run) -> bool) {
        let me = self.me;
        self.roles.retain(|run, _| *run == me || live(run));
    }

    /// Whether this node is the one to lead.
    pub fn leads(&self) -> bool {
        let lowest = |wanted| self.roles.iter().filter(|(_, role)| **role == wanted).map(|(run, _)| *run).min();
        lowest(Role::Leading).or_else(|| lowest(Role::Standing)) == Some(self.me)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Epoch, NodeId};

    fn run(number: u8) -> Run {
        Run { node: NodeId([number; 32]), epoch: Epoch(1) }
    }

    #[test]
    fn the_lowest_of_those_that_stand_leads_and_stays() {
        let mut election = Election::new(run(2));
        assert!(!election.leads(), "it does not stand");
        election.hear(run(2), Role::Standing);
        assert!(election.leads());
        assert!(election.hear(run(1), Role::Standing), "a new one is told");
        assert!(!election.hear(run(1), Role::Standing), "once");
        assert!(!election.leads(), "a lower run stands");
        election.hear(run(2), Role::Leading);
        assert!(election.leads(), "who leads stays");
        election.hear(run(1), Role::Leading);
        assert!(!election.leads(), "of two the lower one stays");
        election.hear(run(1), Role::Gone);
        assert!(election.leads());
        election.hear(run(1), Role::Leading);
        election.hear(run(2), Role::Standing);
        assert!(!election.leads());
        election.keep(|_| false);
        assert!(election.leads(), "the other one is down");
    }
}
