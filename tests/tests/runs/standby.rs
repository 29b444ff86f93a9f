//! A run that three hosts keep: three keepers on loopback, each with its own run directory. Nothing passes between them but what they
//! send each other.
use super::bench;
use anyhow::{Context, Result, ensure};
use cohort_tests::hosts::{join, step, token, with_weights};
use cohort_tests::launch::{Bench, Ended, GROUPS, PATIENCE, Running, finish, processes_of, signal, start, until, wait};
use cohort_tests::netns::Network;
use serde_json::Value;
use std::net::{TcpListener, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

const STEPS: &str = "100";
const CONSUMED: u64 = 100 * GROUPS;
const HOSTS: [&str; 3] = ["host-0", "host-1", "host-2"];
/// From the death of the host that led to a coordinator on another.
const FAILOVER: Duration = Duration::from_secs(10);
/// From there to the first step of which a host that joined generated all groups.
const FOLLOWED: Duration = Duration::from_secs(30);
/// From the moment at which a host is cut off to the end of what it runs: its keeper notices, and its workers that their agent is gone.
const ENDED: Duration = Duration::from_secs(20);

/// Ports of loopback that nobody listens on, UDP and TCP.
fn ports() -> Result<Vec<u16>> {
    let mut held = Vec::new();
    while held.len() < HOSTS.len() {
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        let port = tcp.local_addr()?.port();
        // Taken for UDP: another one.
        if let Ok(udp) = UdpSocket::bind(("127.0.0.1", port)) {
            held.push((tcp, udp, port));
        }
    }
    Ok(held.into_iter().map(|(_, _, port)| port).collect())
}

/// Makes the run and gives every host its copy.
fn prepare(bench: &Bench, further: &[&str]) -> Result<()> {
    prepare_at(bench, &ports()?.into_iter().map(|port| format!("127.0.0.1:{port}")).collect::<Vec<_>>(), further)
}

/// As [`prepare`], with the keepers at these addresses.
fn prepare_at(bench: &Bench, keepers: &[String], further: &[&str]) -> Result<()> {
    let keepers: Vec<String> = keepers.iter().map(|at| format!("\"{at}\"")).collect();
    let keepers = format!("cluster.standby.keepers=[{}]", keepers.join(","));
    let options = [&["--processes", "--steps", STEPS, "--set", &keepers], further].concat();
    let refused = finish(&mut bench.launch(HOSTS[0], &options))?;
    ensure!(refused.code == Some(2) && refused.stderr.contains("cluster keep"), "{refused:?}");
    let made = finish(&mut bench.launch(HOSTS[0], &[&options[..], &["--prepare"]].concat()))?;
    ensure!(made.code == Some(0), "{made:?}");
    for host in &HOSTS[1..] {
        let copied = Command::new("cp").arg("-a").arg(bench.run_dir(HOSTS[0])).arg(bench.run_dir(host)).status()?;
        ensure!(copied.success(), "{copied}");
    }
    Ok(())
}

fn keep(bench: &Bench, host: usize) -> Result<Running> {
    start(&mut keeping(bench, host))
}

fn keeping(bench: &Bench, host: usize) -> Command {
    let mut command = bench.command("keep");
    command.arg(bench.run_dir(HOSTS[host])).arg("--as").arg(host.to_string()).arg("--json");
    command
}

/// What a host's status says of its coordinator: the epoch.
fn epoch(bench: &Bench, host: &str) -> Result<u64> {
    Ok(bench.status(host)?.and_then(|status| status["epoch"].as_u64()).unwrap_or(0))
}

/// The host that runs the run, once it has made so many steps.
fn leader(bench: &Bench, steps: u64) -> Result<usize> {
    until("a host that runs the run", PATIENCE, || {
        for (host, name) in HOSTS.iter().enumerate() {
            if step(bench, name)? >= steps {
                return Ok(Some(host));
            }
        }
        Ok(None)
    })
}

/// Kills a whole host: its keeper, its agent by it, every worker.
fn lose(bench: &Bench, hosts: &mut Vec<Running>, host: usize) -> Result<()> {
    let workers = processes_of(&bench.run_dir(HOSTS[host]))?;
    signal(hosts[host].pid(), "KILL")?;
    // Those that died with the keeper are gone already.
    workers.into_iter().for_each(|pid| drop(signal(pid, "KILL")));
    drop(hosts.remove(host));
    Ok(())
}

/// Which of these hosts has a coordinator after the first.
fn successor(bench: &Bench, others: &[usize]) -> Result<usize> {
    until("a coordinator on another host", PATIENCE, || {
        for &host in others {
            if epoch(bench, HOSTS[host])? > 1 {
                return Ok(Some(host));
            }
        }
        Ok(None)
    })
}

/// Every keeper ends well; the report of the one that led.
fn ends(hosts: Vec<Running>) -> Result<Ended> {
    let mut led = None;
    for host in hosts {
        let ended = wait(host, PATIENCE)?;
        ensure!(ended.code == Some(0), "{ended:?}");
        let followed = ended.report.as_ref().is_some_and(|report| report["led"] == Value::Bool(false));
        led = if followed { led } else { Some(ended) };
    }
    led.context("no report of the run")
}

#[test]
fn a_run_outlives_the_host_that_runs_it_and_no_bit_changes() -> Result<()> {
    let (_folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("calm", &["--steps", STEPS]))?.weights()?;
    prepare(&bench, &[])?;
    let mut hosts = (0..3).map(|host| keep(&bench, host)).collect::<Result<Vec<_>>>()?;
    let first = leader(&bench, 21)?;
    let workers = processes_of(&bench.run_dir(HOSTS[first]))?;
    ensure!(workers.len() >= 4, "{workers:?}");
    let begun = Instant::now();
    lose(&bench, &mut hosts, first)?;
    let others: Vec<usize> = (0..3).filter(|host| *host != first).collect();
    let second = successor(&bench, &others)?;
    let after = begun.elapsed();
    eprintln!("failover: a coordinator on another host {:.1} s after the first one's death", after.as_secs_f64());
    ensure!(after < FAILOVER, "{after:?}");
    assert_eq!(ends(hosts)?.weights()?, reference);
    for host in others {
        bench.balanced(HOSTS[host], CONSUMED)?;
    }
    ensure!(processes_of(&bench.run_dir(HOSTS[second]))?.is_empty(), "its processes have left");
    Ok(())
}

/// The keepers generate nothing: without the host that joined the run stands still, before and after.
#[test]
fn a_joined_host_follows_the_run_to_its_next_head_node_with_its_workers() -> Result<()> {
    let (folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("calm", &["--steps", STEPS]))?.weights()?;
    prepare(&bench, &["--workers", "rollout=0", "--set", "cluster.listen=127.0.0.1:0"])?;
    let mut hosts = (0..3).map(|host| keep(&bench, host)).collect::<Result<Vec<_>>>()?;
    let first = until("a host that leads", PATIENCE, || {
        Ok((0..3).find(|host| bench.run_dir(HOSTS[*host]).join("control.json").exists()))
    })?;
    let secret = folder.path().join("token");
    token(&bench, HOSTS[first], &secret)?;
    let joined = join(&bench, HOSTS[first], "joined", &secret, "rollout=2")?;
    leader(&bench, 21)?;
    until("both of its workers", PATIENCE, || Ok((with_weights(&bench, HOSTS[first])?.len() == 2).then_some(())))?;
    let workers = processes_of(&bench.run_dir("joined"))?;
    ensure!(workers.len() == 2, "{workers:?}");
    let begun = Instant::now();
    lose(&bench, &mut hosts, first)?;
    let others: Vec<usize> = (0..3).filter(|host| *host != first).collect();
    let second = successor(&bench, &others)?;
    let committed = step(&bench, HOSTS[second])?;
    let generated = until("a step of its groups", PATIENCE, || {
        // Two more: one may have had all its groups already.
        Ok((step(&bench, HOSTS[second])? > committed + 2).then(|| begun.elapsed()))
    })?;
    eprintln!("failover: groups of the host that joined {:.1} s after the head node's death", generated.as_secs_f64());
    ensure!(generated < FOLLOWED, "{generated:?}");
    assert_eq!(processes_of(&bench.run_dir("joined"))?, workers, "its workers went with it, and none was started anew");
    assert_eq!(ends(hosts)?.weights()?, reference);
    for host in others {
        bench.balanced(HOSTS[host], CONSUMED)?;
    }
    let left = wait(joined, PATIENCE)?;
    ensure!(left.code == Some(0), "{left:?}");
    ensure!(processes_of(&bench.run_dir("joined"))?.is_empty(), "its workers have left");
    Ok(())
}

/// The host that leads is not killed, it is cut off: what it runs must end by itself, before it can hear that another one leads.
#[test]
fn a_host_that_leads_and_is_cut_off_ends_what_it_runs_and_no_bit_changes() -> Result<()> {
    let Some(network) = Network::new(3)? else { return Ok(()) };
    let (_folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("calm", &["--steps", STEPS]))?.weights()?;
    let addresses: Vec<String> = (0..3).map(|host| format!("{}:7404", Network::address(host))).collect();
    prepare_at(&bench, &addresses, &[])?;
    let on = |host: usize, command: &Command| start(&mut network.on(host, command));
    let hosts = (0..3).map(|host| on(host, &keeping(&bench, host))).collect::<Result<Vec<_>>>()?;
    let first = leader(&bench, 21)?;
    let (before, begun) = (epoch(&bench, HOSTS[first])?, Instant::now());
    network.plug(first, false)?;
    let others: Vec<usize> = (0..3).filter(|host| *host != first).collect();
    let second = successor(&bench, &others)?;
    eprintln!("cut off: a coordinator on another host after {:.1} s", begun.elapsed().as_secs_f64());
    ensure!(begun.elapsed() < FAILOVER, "{:?}", begun.elapsed());
    // The run must not be over before the host is back.
    let tell = |subcommand: &str| -> Result<()> {
        let mut command = bench.command(subcommand);
        let told = wait(on(second, command.arg(bench.run_dir(HOSTS[second])))?, PATIENCE)?;
        ensure!(told.code == Some(0), "{told:?}");
        Ok(())
    };
    tell("pause")?;
    let old = || processes_of(&bench.run_dir(HOSTS[first]));
    until("the end of what the host ran that is cut off", PATIENCE, || Ok(old()?.is_empty().then_some(())))?;
    eprintln!("cut off: what it ran has ended after {:.1} s", begun.elapsed().as_secs_f64());
    ensure!(begun.elapsed() < ENDED, "{:?}", begun.elapsed());
    // Each coordinator has an epoch of its own, and the first one's is over.
    ensure!(epoch(&bench, HOSTS[first])? == before && epoch(&bench, HOSTS[second])? > before);
    network.plug(first, true)?;
    tell("resume")?;
    assert_eq!(ends(hosts)?.weights()?, reference);
    HOSTS.iter().try_for_each(|host| bench.balanced(host, CONSUMED))
}
