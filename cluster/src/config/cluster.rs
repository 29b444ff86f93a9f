//! What `[cluster]` says, and asks, of its values together.
use super::sections::{ClusterConfig, NodeConfig, StandbyConfig, TransportChoice};
use std::num::NonZeroU16;

/// The path of a bad value, and why it is bad.
type Problem = (String, String);

fn problem(key: &str, why: impl Into<String>) -> Problem {
    (format!("cluster.{key}"), why.into())
}

impl ClusterConfig {
    /// Learner ranks on the head node, the lead among them.
    #[must_use]
    pub fn ranks_here(&self) -> u16 {
        let offered = self.nodes.iter().map(|node| node.learner).fold(0, u16::saturating_add);
        self.learner_here.map_or_else(|| self.learner.get().saturating_sub(offered).max(1), NonZeroU16::get)
    }

    /// Learner ranks besides the lead.
    #[must_use]
    pub fn followers(&self) -> u16 {
        self.learner.get() - 1
    }

    /// The first bad value.
    pub(super) fn check(&self) -> Result<(), Problem> {
        self.check_hosts()?;
        self.check_workers()?;
        self.check_ranks()?;
        if self.launcher.first().is_none_or(String::is_empty) {
            return Err(problem("launcher", "is no command: its first word is the program"));
        }
        if !self.processes && (!self.devices.is_empty() || self.colocate) {
            let key = if self.colocate { "colocate" } else { "devices" };
            let why = "says which worker computes where, and a run in one process has one engine: set cluster.processes = true, or \
                       launch with --processes";
            return Err(problem(key, why));
        }
        if let Some(bounds) = self.autoscale {
            if bounds.rollout_min > bounds.rollout_max {
                let why =
                    format!("is {} and rollout_max {}: the least is more than the most", bounds.rollout_min, bounds.rollout_max);
                return Err(problem("autoscale.rollout_min", why));
            }
            if !self.processes {
                let why = "a run in one process cannot be scaled: set cluster.processes = true, or launch with --processes";
                return Err(problem("autoscale", why));
            }
        }
        if let Some(standby) = &self.standby {
            self.check_standby(standby)?;
        }
        if self.transport != TransportChoice::Auto && !self.processes {
            let why = "carries nothing in a run in one process: set cluster.processes = true, or launch with --processes";
            return Err(problem("transport", why));
        }
        if self.http.is_some_and(|http| !http.ip().is_loopback()) && self.http_token_file.is_none() {
            let why = "is not a loopback address: set cluster.http_token_file to a file with a token, or serve on 127.0.0.1";
            return Err(problem("http", why));
        }
        Ok(())
    }

    fn check_hosts(&self) -> Result<(), Problem> {
        if self.listen.is_none() && !self.nodes.is_empty() {
            return Err(problem("nodes", "other hosts need cluster.listen, as \"0.0.0.0:7400\", to join"));
        }
        for (index, NodeConfig { address, rollout, reward, learner, .. }) in self.nodes.iter().enumerate() {
            if address.trim().is_empty() || *rollout == 0 && *reward == 0 && *learner == 0 {
                let why = "needs an address, and at least one rollout, reward or learner worker";
                return Err(problem(&format!("nodes[{index}]"), why));
            }
        }
        if self.listen.is_some() && !self.processes {
            let why = "other hosts can only join a run of processes: set cluster.processes = true, or launch with --processes";
            return Err(problem("listen", why));
        }
        Ok(())
    }

    /// Whether the loss of one host is survived by most keepers.
    fn check_standby(&self, StandbyConfig { keepers }: &StandbyConfig) -> Result<(), Problem> {
        if !self.processes {
            let why = "a run in one process cannot move to another host: set cluster.processes = true";
            return Err(problem("standby", why));
        }
        if !matches!(keepers.len(), 3 | 5 | 7) {
            let why = format!("names {} hosts: three, five or seven can lose one and still agree", keepers.len());
            return Err(problem("standby.keepers", why));
        }
        for (index, keeper) in keepers.iter().enumerate() {
            let why = if keeper.port() == 0 || keeper.ip().is_unspecified() {
                format!("is {keeper}: the others need the address and port at which they reach it")
            } else if keepers[..index].contains(keeper) {
                format!("is {keeper}, like one before it: every keeper needs an address of its own")
            } else if keepers[..index].iter().any(|other| other.ip() == keeper.ip() && !keeper.ip().is_loopback()) {
                format!("is {keeper}, on the host of one before it: both would be lost together; name another host")
            } else {
                continue;
            };
            return Err(problem(&format!("standby.keepers[{index}]"), why));
        }
        Ok(())
    }

    /// Whether every learner rank can have a place.
    fn check_ranks(&self) -> Result<(), Problem> {
        let (ranks, here) = (self.learner.get(), self.ranks_here());
        if here > ranks {
            let why = format!("is {here}, and cluster.learner, the ranks of the whole run, {ranks}: set it to {ranks} or fewer");
            return Err(problem("learner_here", why));
        }
        if here < ranks && self.listen.is_none() {
            let why = format!(
                "leaves {} of {ranks} learner ranks to other hosts, which need cluster.listen, as \"0.0.0.0:7400\", to join",
                ranks - here
            );
            return Err(problem("learner_here", why));
        }
        for (index, node) in self.nodes.iter().enumerate() {
            if node.learner > self.followers() {
                let why = format!(
                    "offers places for {} learner ranks; the lead is on the head node, and cluster.learner = {ranks} leaves {}",
                    node.learner,
                    self.followers()
                );
                return Err(problem(&format!("nodes[{index}].learner"), why));
            }
        }
        Ok(())
    }

    /// Somebody must be able to generate, and somebody to grade: this host, or others that can come.
    fn check_workers(&self) -> Result<(), Problem> {
        for (key, count, does) in [("rollout", self.rollout, "generate"), ("reward", self.reward, "grade")] {
            if count == 0 && self.listen.is_none() {
                let why = format!(
                    "is 0 and no other host can join: nobody could ever {does}; set it to 1 or more, or cluster.listen, as \
                     \"0.0.0.0:7400\", for hosts that bring {key} workers"
                );
                return Err(problem(key, why));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_workers_needs_others_that_can_come() {
        let alone = |rollout, reward| ClusterConfig { rollout, reward, processes: true, ..ClusterConfig::default() };
        for (config, key, named) in [(alone(0, 1), "rollout", "nobody could ever generate"), (alone(1, 0), "reward", "grade")] {
            let (path, why) = config.check().unwrap_err();
            assert!(path == format!("cluster.{key}") && why.contains(named) && why.contains("cluster.listen"), "{path} {why}");
            let joined = ClusterConfig { listen: Some(([0, 0, 0, 0], 7400).into()), ..config };
            assert_eq!(joined.check(), Ok(()));
            assert_eq!(ClusterConfig { processes: false, ..joined }.check().unwrap_err().0, "cluster.listen");
        }
        assert_eq!(ClusterConfig::default().check(), Ok(()));
    }

    #[test]
    fn keepers_are_an_odd_number_of_hosts_that_can_be_reached() {
        let kept = |keepers: &[&str]| {
            let keepers = keepers.iter().map(|at| at.parse().unwrap()).collect();
            ClusterConfig { standby: Some(StandbyConfig { keepers }), processes: true, ..ClusterConfig::default() }
        };
        let sound = ["10.0.0.1:7404", "10.0.0.2:7404", "10.0.0.3:7404"];
        assert_eq!(kept(&sound).check(), Ok(()));
        assert_eq!(kept(&["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]).check(), Ok(()), "on one host for a trial");
        assert_eq!(ClusterConfig { processes: false, ..kept(&sound) }.check().unwrap_err().0, "cluster.standby");
        for (keepers, key, named) in [
            (&sound[..2], "", "names 2 hosts"),
            (&["10.0.0.1:7404", "10.0.0.2:7404", "10.0.0.1:7405"], "[2]", "lost together"),
            (&["10.0.0.1:7404", "10.0.0.1:7404", "10.0.0.3:7404"], "[1]", "of its own"),
            (&["10.0.0.1:0", "10.0.0.2:7404", "10.0.0.3:7404"], "[0]", "address and port"),
            (&["10.0.0.1:1", "0.0.0.0:7404", "10.0.0.3:7404"], "[1]", "address and port"),
        ] {
            let (path, why) = kept(keepers).check().unwrap_err();
            assert!(path == format!("cluster.standby.keepers{key}") && why.contains(named), "{path}: {why}");
        }
    }

    #[test]
    fn devices_are_for_workers_that_are_processes() {
        let named = ClusterConfig { devices: vec!["0".into()], ..ClusterConfig::default() };
        assert_eq!(named.check().unwrap_err().0, "cluster.devices");
        let shared = ClusterConfig { colocate: true, ..ClusterConfig::default() };
        assert_eq!(shared.check().unwrap_err().0, "cluster.colocate");
        assert_eq!(ClusterConfig { processes: true, ..named }.check(), Ok(()));
    }
}
