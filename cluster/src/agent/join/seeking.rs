//! Where a host looks for its head node. Pure.
//!
//! A round goes over every address there is: where the head node was last, then each keeper in turn, who is asked who leads. The first
//! address that a keeper names ends it. How long to wait between rounds, and for how many, is the link's to decide.
//!
//! Invariants
//! - **S1** an address that has failed is tried again only where nobody that was asked answers, or somebody names it anew: a host that
//!   is gone costs its deadline once, not every round.
//! - **S2** an answer of a term before one that was heard of is not believed: a keeper that is cut off may think that it leads.
use cohort_protocol::messages::seeking::WhoLeads;
use std::collections::VecDeque;
use std::net::SocketAddr;

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Try {
    /// Dial the head node.
    Head(SocketAddr),
    /// Ask a keeper who leads.
    Ask(usize, SocketAddr),
}

/// A host's knowledge of the run's hosts.
#[derive(Debug)]
pub(super) struct Seeking {
    head: SocketAddr,
    /// The head node was there when it was last heard of.
    fresh: bool,
    keepers: Vec<SocketAddr>,
    /// The highest term that was heard of.
    term: u64,
    /// The keeper that is asked first.
    first: usize,
    round: VecDeque<Try>,
    /// Somebody has answered in this round.
    answered: bool,
}

impl Seeking {
    pub(super) fn new(head: SocketAddr, keepers: Vec<SocketAddr>) -> Self {
        Self { head, fresh: true, keepers, term: 0, first: 0, round: VecDeque::new(), answered: false }
    }

    /// Where the head node is, as far as that is known.
    pub(super) fn head(&self) -> SocketAddr {
        self.head
    }

    /// The run is kept by these.
    pub(super) fn kept_by(&mut self, keepers: Vec<SocketAddr>) {
        self.keepers = keepers;
    }

    /// A round begins.
    pub(super) fn begin(&mut self) {
        let count = self.keepers.len();
        let asks = (0..count).map(|n| (self.first + n) % count).map(|n| Try::Ask(n, self.keepers[n]));
        let head = self.fresh.then_some(Try::Head(self.head));
        self.round = head.into_iter().chain(asks).collect();
        self.answered = false;
        // The next round begins with another one: the first may be the one that is gone.
        self.first = if count == 0 { 0 } else { (self.first + 1) % count };
        if !self.fresh && count == 0 {
            self.round.push_back(Try::Head(self.head));
        }
    }

    /// The next try of the round; none: it has been in vain.
    pub(super) fn next(&mut self) -> Option<Try> {
        self.round.pop_front()
    }

    /// The head node is there.
    pub(super) fn reached(&mut self) {
        self.fresh = true;
    }

    /// A try has come to nothing.
    pub(super) fn failed(&mut self, what: Try) {
        if matches!(what, Try::Head(at) if at == self.head) {
            self.fresh = false;
        }
        // S1.
        let tried = matches!(what, Try::Head(_));
        if self.round.is_empty() && !self.answered && !tried {
            self.round.push_back(Try::Head(self.head));
        }
    }

    /// A keeper has answered.
    pub(super) fn heard(&mut self, said: &WhoLeads) {
        self.answered = true;
        // S2.
        if said.term < self.term {
            return;
        }
        self.term = said.term;
        let leader = said.keeper.and_then(|n| usize::try_from(n).ok()).filter(|n| *n < self.keepers.len());
        let Some(leader) = leader else { return };
        let address = said.listens.as_ref().and_then(|at| at.parse::<SocketAddr>().ok());
        if let Some(mut at) = address {
            if at.ip().is_unspecified() {
                at.set_ip(self.keepers[leader].ip());
            }
            (self.head, self.fresh) = (at, true);
            self.round = VecDeque::from([Try::Head(at)]);
        } else if let Some(place) = self.round.iter().position(|next| matches!(next, Try::Ask(n, _) if *n == leader)) {
            // Who leads is asked next.
            self.round.swap(0, place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, host], port))
    }

    fn keepers() -> Vec<SocketAddr> {
        (1..4).map(|host| at(host, 7404)).collect()
    }

    fn says(term: u64, keeper: Option<u64>, listens: Option<&str>) -> WhoLeads {
        WhoLeads { id: 1, term, keeper, listens: listens.map(str::to_owned) }
    }

    /// A round in which nobody answers.
    fn in_vain(seeking: &mut Seeking) -> Vec<Try> {
        seeking.begin();
        let mut tried = Vec::new();
        while let Some(next) = seeking.next() {
            seeking.failed(next);
            tried.push(next);
        }
        tried
    }

    #[test]
    fn a_run_without_keepers_is_looked_for_where_it_was() {
        let mut seeking = Seeking::new(at(1, 7400), Vec::new());
        for _ in 0..3 {
            assert_eq!(in_vain(&mut seeking), [Try::Head(at(1, 7400))]);
        }
    }

    #[test]
    fn every_address_has_its_turn_and_the_old_one_comes_last() {
        let mut seeking = Seeking::new(at(1, 7400), keepers());
        let ask = |n: usize| Try::Ask(n, keepers()[n]);
        let head = Try::Head(at(1, 7400));
        assert_eq!(in_vain(&mut seeking), [head, ask(0), ask(1), ask(2), head]);
        assert_eq!(in_vain(&mut seeking), [ask(1), ask(2), ask(0), head]);
        // Somebody answers, and knows nothing: the old head node is not waited for (S1).
        seeking.begin();
        assert_eq!(seeking.next(), Some(ask(2)));
        seeking.heard(&says(3, None, None));
        for n in [0, 1] {
            assert_eq!(seeking.next(), Some(ask(n)));
            seeking.failed(ask(n));
        }
        assert_eq!(seeking.next(), None);
    }

    #[test]
    fn who_leads_is_asked_next_and_what_it_says_is_tried_at_once() {
        let mut seeking = Seeking::new(at(1, 7400), keepers());
        seeking.begin();
        let lost = seeking.next().unwrap();
        seeking.failed(lost);
        assert_eq!(seeking.next(), Some(Try::Ask(0, at(1, 7404))));
        seeking.heard(&says(2, Some(2), None));
        assert_eq!(seeking.next(), Some(Try::Ask(2, at(3, 7404))));
        seeking.heard(&says(2, Some(2), Some("0.0.0.0:7400")));
        assert_eq!(seeking.next(), Some(Try::Head(at(3, 7400))), "an unspecified address is the keeper's own");
        seeking.reached();
        assert_eq!((seeking.head(), seeking.next()), (at(3, 7400), None));
        // It is lost again: first where it was.
        seeking.begin();
        assert_eq!(seeking.next(), Some(Try::Head(at(3, 7400))));
    }

    #[test]
    fn a_keeper_that_was_overtaken_is_not_believed() {
        let mut seeking = Seeking::new(at(1, 7400), keepers());
        let lost = Try::Head(at(1, 7400));
        seeking.begin();
        assert_eq!(seeking.next(), Some(lost));
        seeking.failed(lost);
        seeking.next();
        seeking.heard(&says(5, Some(1), None));
        seeking.next();
        // Cut off, it thinks that it leads, in a term that is over.
        seeking.heard(&says(4, Some(0), Some("10.0.0.1:7400")));
        assert_eq!(seeking.head(), at(1, 7400));
        assert!(!matches!(seeking.next(), Some(Try::Head(_))));
        // A number that is none, and an address that is none, lead nowhere.
        seeking.heard(&says(6, Some(9), Some("10.0.0.9:1")));
        seeking.heard(&says(6, Some(1), Some("elsewhere")));
        assert_eq!(seeking.head(), at(1, 7400));
    }
}
