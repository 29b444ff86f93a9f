//! Hosts made of network namespaces: each with its own addresses and its own loopback, joined by a bridge. For tests of what
//! crosses a network. Needs root and `ip`; a test that cannot have them says so loudly.
use crate::wrapped::wrapped;
use anyhow::{Context, Result, bail, ensure};
use std::io::Write;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A network of its own, removed when dropped.
#[derive(Debug)]
pub struct Network {
    /// Part of every name.
    tag: String,
    hosts: usize,
}

impl Network {
    /// A network with so many hosts, whose addresses are 10.77.N.1 and up; `None`, said on stderr, where that is not permitted.
    pub fn new(hosts: usize) -> Result<Option<Self>> {
        // Tests of one process run beside each other.
        static NETWORKS: AtomicUsize = AtomicUsize::new(0);
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let network = Self { tag: format!("ct{}-{number}", std::process::id() % 100_000), hosts };
        if let Err(why) = network.wire() {
            // Past the capture of the test's output.
            writeln!(std::io::stderr(), "SKIPPED: hosts on a network: {why:#}; run the tests as root, with iproute2 installed")?;
            return Ok(None);
        }
        Ok(Some(network))
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.tag)
    }

    fn name(&self, host: usize) -> String {
        format!("{}-h{host}", self.tag)
    }

    fn wire(&self) -> Result<()> {
        let switch = self.switch();
        ip(&["netns", "add", &switch])?;
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "br0", "up"])?;
        for host in 0..self.hosts {
            let (name, plug) = (self.name(host), format!("p{host}"));
            ip(&["netns", "add", &name])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
            ip(&["-n", &switch, "link", "add", &plug, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
            ip(&["-n", &switch, "link", "set", &plug, "master", "br0", "up"])?;
            ip(&["-n", &name, "addr", "add", &format!("{}/24", Self::address(host)), "dev", "eth0"])?;
            ip(&["-n", &name, "link", "set", "eth0", "up"])?;
        }
        Ok(())
    }

    /// A host's address.
    #[must_use]
    pub fn address(host: usize) -> String {
        format!("10.77.0.{}", host + 1)
    }

    /// The command, to be run on a host.
    #[must_use]
    pub fn on(&self, host: usize, command: &Command) -> Command {
        let mut there = Command::new("ip");
        there.args(["netns", "exec", &self.name(host)]);
        wrapped(there, command)
    }

    /// From now on no UDP leaves a host, as behind a firewall that drops it; on the host itself it passes.
    pub fn block_udp(&self, host: usize) -> Result<()> {
        ip(&["-n", &self.name(host), "rule", "add", "ipproto", "udp", "blackhole"])
    }

    /// Pulls a host's plug, or puts it back.
    pub fn plug(&self, host: usize, there: bool) -> Result<()> {
        ip(&["-n", &self.switch(), "link", "set", &format!("p{host}"), if there { "up" } else { "down" }])
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The wires go with the namespaces at their ends.
        for host in 0..self.hosts {
            let _ = ip(&["netns", "del", &self.name(host)]);
        }
        let _ = ip(&["netns", "del", &self.switch()]);
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).output().context("ip")?;
    if !output.status.success() {
        bail!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    ensure!(output.stderr.is_empty(), "ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(())
}
