//! Which of the nodes that offer a bridge leads it.
//!
//! Whoever leads stays until it is down, cut off from its target, or leaving. Among those that stand the lowest run is next.
//! Of two that lead, which a healed split leaves behind, the lower run stays. A leader that no longer answers those that
//! stand, though its node lives, is one whose disk takes nothing: it could not say that it has gone. Neither could one that
//! should lead next and does not.

use std::collections::HashMap;

use crate::id::{Run, Seq};
use crate::replica::control::Role;

/// Nodes that are remembered; one more than that is not.
const NODES_MAX: usize = 1_024;

/// Who does what for one bridge, as far as it was heard.
#[derive(Debug)]
pub struct Election {
    me: Run,
    mine: Role,
    /// What the others said last, and with which entry.
    roles: HashMap<Run, Said>,
}

#[derive(Clone, Copy, Debug)]
struct Said {
    role: Role,
    seq: Seq,
    /// Whether it was asked whether it still leads, and has said nothing since.
    asked: bool,
}

impl Election {
    /// Nobody does anything yet.
    pub fn new(me: Run) -> Election {
        Election { me, mine: Role::Gone, roles: HashMap::new() }
    }

    /// What this node does.
    pub fn role(&self) -> Role {
        self.mine
    }

    /// This node does something else.
    pub fn be(&mut self, role: Role) {
        self.mine = role;
    }

    /// Another node says in its entry `seq` what it does; answers whether it has to be told what we do.
    pub fn hear(&mut self, run: Run, seq: Seq, role: Role) -> bool {
        let known = self.roles.get(&run).copied();
        // What comes late is no news.
        let old = known.is_some_and(|known| seq < known.seq);
        if old || run == self.me || known.is_none() && self.roles.len() >= NODES_MAX {
            return false;
        }
        self.roles.insert(run, Said { role, seq, asked: false });
        let new = known.is_none_or(|known| known.role == Role::Gone);
        // Whoever would lead, or does, hears of the one that does.
        role != Role::Gone && (new || self.mine == Role::Leading)
    }

    /// Forgets those that are not `live`: when they come back they say what they do.
    pub fn keep(&mut self, live: impl Fn(&Run) -> bool) {
        self.roles.retain(|run, _| live(run));
    }

    /// Who leads is asked, by what this node says of itself; one that did not answer the last time leads no more. Where nobody
    /// leads, those that stood the last time and still do will not.
    pub fn ask(&mut self) {
        let led = self.roles.values().any(|said| said.role == Role::Leading);
        let wanted = if led { Role::Leading } else { Role::Standing };
        for said in self.roles.values_mut().filter(|said| said.role == wanted) {
            if std::mem::replace(&mut said.asked, true) {
                said.role = Role::Gone;
            }
        }
    }

    /// Whether this node is the one to lead.
    pub fn leads(&self) -> bool {
        let others = self.roles.iter().map(|(run, said)| (*run, said.role));
        let all = others.chain([(self.me, self.mine)]);
        let lowest = |wanted| all.clone().filter(|(_, role)| *role == wanted).map(|(run, _)| run).min();
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
        election.be(Role::Standing);
        assert!(election.leads());
        assert!(election.hear(run(1), Seq(1), Role::Standing), "a new one is told");
        assert!(!election.hear(run(1), Seq(2), Role::Standing), "once");
        assert!(!election.leads(), "a lower run stands");
        election.be(Role::Leading);
        assert!(election.leads(), "who leads stays");
        assert!(election.hear(run(1), Seq(3), Role::Standing), "who would lead is told each time");
        election.hear(run(1), Seq(4), Role::Leading);
        assert!(!election.leads(), "of two the lower one stays");
        election.hear(run(1), Seq(6), Role::Gone);
        assert!(election.leads());
        assert!(!election.hear(run(1), Seq(5), Role::Leading));
        assert!(election.leads(), "what comes late is no news");
        election.hear(run(1), Seq(7), Role::Leading);
        election.be(Role::Standing);
        assert!(!election.leads());
        election.keep(|_| false);
        assert!(election.leads(), "the other one is down");
    }

    #[test]
    fn a_leader_that_does_not_answer_leads_no_more() {
        let mut election = Election::new(run(2));
        election.be(Role::Standing);
        election.hear(run(3), Seq(1), Role::Leading);
        election.ask();
        assert!(!election.leads());
        assert!(!election.hear(run(3), Seq(2), Role::Leading));
        election.ask();
        assert!(!election.leads(), "it has answered");
        election.ask();
        assert!(election.leads());
        election.hear(run(3), Seq(3), Role::Leading);
        assert!(!election.leads(), "it does lead");
    }

    #[test]
    fn one_that_stands_and_does_not_lead_holds_nobody_back() {
        let mut election = Election::new(run(2));
        election.be(Role::Standing);
        election.hear(run(1), Seq(1), Role::Standing);
        election.ask();
        assert!(!election.leads());
        election.ask();
        assert!(election.leads());
    }
}
