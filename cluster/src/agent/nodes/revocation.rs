//! Hosts that were let go: every other one is told that their certificates are worth nothing.
use super::event::Command;
use super::state::HostsState;
use crate::agent::weights::spread::Host;
use cohort_protocol::messages::node::HeadToNode;
use cohort_protocol::version::REVOCATIONS;
use std::collections::BTreeSet;

impl HostsState {
    /// H4.
    pub(super) fn revoked(&mut self, hosts: BTreeSet<Host>, out: &mut Vec<Command>) {
        if self.revoked == hosts {
            return;
        }
        self.revoked = hosts;
        let others: Vec<Host> = self.members.keys().copied().collect();
        others.into_iter().for_each(|host| self.tell_revoked(host, out));
    }

    pub(super) fn tell_revoked(&self, host: Host, out: &mut Vec<Command>) {
        let knows = self.members.get(&host).is_some_and(|member| member.protocol >= REVOCATIONS);
        if knows && !self.revoked.is_empty() && !self.revoked.contains(&host) {
            self.tell(host, HeadToNode::Revoked(self.revoked.iter().copied().collect()), out);
        }
    }
}
