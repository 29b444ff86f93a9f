//! A host that reaches its head node through a relay only.
use super::endless::Endless;
use anyhow::{Result, ensure};
use cohort_tests::hosts::{join_at, listens, token, with_weights};
use cohort_tests::launch::{Bench, PATIENCE, Running, until, wait};
use cohort_tests::relay::{Relay, Weather};
use rusqlite::Connection;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, Ordering};

/// Ports of a head node: agents, workers, weights.
pub(crate) const PORTS: [u16; 3] = [7400, 7401, 7402];

/// Loopback has room for networks: addresses that no other test has.
fn address() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [_, _, b, c] = std::process::id().to_be_bytes();
    IpAddr::from([127, 64 + b % 128, c, NEXT.fetch_add(1, Ordering::Relaxed)])
}

/// A run that listens on an address of its own.
pub(crate) struct Head<'a> {
    pub(crate) run: Endless<'a>,
    bench: &'a Bench,
    name: &'a str,
    pub(crate) at: IpAddr,
}

/// A host behind a relay.
pub(crate) struct Remote {
    pub(crate) relay: Relay,
    agent: Running,
}

impl<'a> Head<'a> {
    pub(crate) fn start(bench: &'a Bench, name: &'a str, options: &[&str]) -> Result<Self> {
        let at = address();
        let listen = format!("cluster.listen={at}:{}", PORTS[0]);
        let run = Endless::start(bench, name, &[&["--set", &listen], options].concat())?;
        listens(bench, name)?;
        Ok(Self { run, bench, name, at })
    }

    /// One more host, `roles` on it, which joins in that weather.
    pub(crate) fn join(&self, host: &str, roles: &str, seed: u64, weather: Weather) -> Result<Remote> {
        let front = address();
        let relay = Relay::start(seed, weather, front, self.at, &PORTS)?;
        let secret = self.bench.run_dir(&format!("{host}.token"));
        token(self.bench, self.name, &secret)?;
        let agent = join_at(self.bench, &format!("{front}:{}", PORTS[0]), host, &secret, roles)?;
        Ok(Remote { relay, agent })
    }

    /// Waits until so many rollout workers, the head node's included, have weights.
    pub(crate) fn workers(&self, count: usize) -> Result<()> {
        until("workers with weights", PATIENCE, || Ok((with_weights(self.bench, self.name)?.len() >= count).then_some(())))
    }

    /// Groups that each of those rollout workers has delivered.
    pub(crate) fn generated_by(&self, workers: &[&str]) -> Result<Vec<u64>> {
        workers.iter().map(|worker| delivered(self.bench, self.name, "trajectories", worker)).collect()
    }

    /// Groups that a reward worker has graded.
    pub(crate) fn graded_by(&self, worker: &str) -> Result<u64> {
        delivered(self.bench, self.name, "scores", worker)
    }

    /// See [`Endless::end_as_if_undisturbed`]. The hosts leave when the run ends, in fair weather.
    pub(crate) fn end_as_if_undisturbed(self, remotes: Vec<Remote>) -> Result<u64> {
        for remote in &remotes {
            remote.relay.change(|weather| *weather = Weather::default());
        }
        let steps = self.run.end_as_if_undisturbed(&[])?;
        for Remote { agent, relay } in remotes {
            let left = wait(agent, PATIENCE)?;
            ensure!(left.code == Some(0), "{left:?}");
            drop(relay);
        }
        Ok(steps)
    }
}

fn delivered(bench: &Bench, name: &str, table: &str, worker: &str) -> Result<u64> {
    let ledger = Connection::open(bench.run_dir(name).join("ledger.sqlite"))?;
    let count = format!("SELECT count(*) FROM {table} WHERE worker = ?");
    let rows: i64 = ledger.query_row(&count, [worker], |row| row.get(0))?;
    Ok(rows.unsigned_abs())
}
