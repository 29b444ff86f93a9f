//! `cluster launch` on every host of an allocation: one of them launches the run, the others take part in it.
use super::{CliError, Exit, join};
use crate::agent::{self, Invitation, Invites, JoinOptions};
use crate::allocation::Allocation;
use crate::config::tree::Value;
use crate::config::{Config, Resolved};
use cohort_model::DeviceKind;
use cohort_protocol::Role;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two looks for the invitation: the folder may be on a file system that tells nobody of changes.
const LOOK: Duration = Duration::from_millis(250);

/// The allocation that this process belongs to, unless it is told to stand alone.
pub(super) fn allocation(alone: bool) -> Result<Option<Allocation>, CliError> {
    let found = if alone { Ok(None) } else { Allocation::recognise(|name| std::env::var(name).ok()) };
    found.map_err(|error| CliError::new(Exit::Usage, error))
}

/// Settings that follow from an allocation, under everything that the user said: path, value, and who said it.
pub(super) fn settings(allocation: &Allocation) -> Vec<(String, Value, String)> {
    let origin = format!("allocation of {} processes", allocation.size);
    let port = allocation.master.1.map_or(0, u16::from);
    let mut out = vec![
        ("cluster.processes".to_owned(), Value::Bool(true), origin.clone()),
        ("cluster.listen".to_owned(), Value::String(format!("0.0.0.0:{port}")), origin),
    ];
    if let Some(cpus) = allocation.cpus {
        let threads = Value::Integer(i64::from(cpus.get()));
        out.push(("cluster.threads".to_owned(), threads, format!("SLURM_CPUS_PER_TASK={cpus}")));
    }
    out
}

/// Checks that others can join, and says whom the head node invites.
pub(super) fn invites(allocation: &Allocation, folder: &Path, resolved: &Resolved) -> Result<Invites, CliError> {
    let cluster = &resolved.config.cluster;
    if !cluster.processes || cluster.listen.is_none() {
        let why = format!(
            "one of {} processes that were started together, and cluster.processes = false keeps the run to this one: leave it out, \
             or start with --alone",
            allocation.size
        );
        return Err(CliError::new(Exit::Usage, why));
    }
    Ok(Invites {
        folder: folder.to_owned(),
        allocation: allocation.name.clone(),
        hosts: allocation.size - 1,
        head: allocation.master.0.clone().filter(|_| cluster.advertise.is_none()),
    })
}

/// The folder in which the hosts of an allocation meet.
pub(super) fn folder(meet: Option<&PathBuf>, run: Option<&PathBuf>) -> Result<PathBuf, CliError> {
    meet.or(run).cloned().ok_or_else(|| {
        let why = "processes that were started together meet in a folder that all of them see: name one by --run-dir, or by --meet where \
                   the run directory is on a disk of its host; --alone launches without the others";
        CliError::new(Exit::Usage, why)
    })
}

/// Waits for the head node's invitation and takes part until the run is over.
pub(super) fn take_part(
    allocation: &Allocation,
    folder: &Path,
    resolved: &Resolved,
    out: &mut dyn Write,
) -> Result<Exit, CliError> {
    let config = &resolved.config;
    crate::logging::to_stderr(&config.logging);
    for line in &allocation.recognised {
        tracing::info!(target: "cohort::allocation", text = line, "recognised");
    }
    let patience = Duration::from_secs(config.cluster.join_patience_s.get().into());
    let begun = Instant::now();
    let mut last: Option<(Invitation, CliError)> = None;
    loop {
        let invitation = Invitation::look(folder, &allocation.name).map_err(|why| CliError::new(Exit::Io, why))?;
        // One that was tried in vain was of an earlier launch; the head node of this one leaves another.
        if let Some(invitation) = invitation.filter(|found| last.as_ref().is_none_or(|(tried, _)| tried != found)) {
            match join::stay(options(allocation, folder, config, &invitation)?, out) {
                Err(error) if error.exit == Exit::Usage || error.exit == Exit::Io => last = Some((invitation, error)),
                ended => return ended,
            }
        }
        if begun.elapsed() > patience {
            return Err(in_vain(folder, patience, last.map(|(_, error)| error)));
        }
        std::thread::sleep(LOOK);
    }
}

fn in_vain(folder: &Path, patience: Duration, last: Option<CliError>) -> CliError {
    let waited = patience.as_secs();
    let why = match last {
        Some(error) => format!("; the one that was there failed: {}", error.message),
        None => String::new(),
    };
    let text = format!(
        "the head node (rank 0) has left no invitation in {} within {waited} s (cluster.join_patience_s): it has failed, or does not see \
         this folder{why}",
        folder.display()
    );
    CliError::new(Exit::WorkerGaveUp, text)
}

fn options(allocation: &Allocation, folder: &Path, config: &Config, invitation: &Invitation) -> Result<JoinOptions, CliError> {
    let (run, _) = invitation.token.parse().map_err(|why| CliError::new(Exit::Usage, format!("the invitation: {why}")))?;
    Ok(JoinOptions {
        head: join::resolve(&invitation.head)?,
        token: Some(invitation.token.clone()),
        dir: folder.join("hosts").join(format!("{:016x}-{}", run.0, allocation.rank)),
        offers: offers(allocation, config),
        sample_with: None,
        devices: Vec::new(),
        host: agent::host_name(),
        http: None,
    })
}

/// As many workers as the head node has; one a graphics processor where they compute there.
fn offers(allocation: &Allocation, config: &Config) -> Vec<(Role, u16)> {
    let cluster = &config.cluster;
    let gpus = allocation.gpus.filter(|gpus| *gpus > 0 && config.model.device == DeviceKind::Cuda);
    let rollout = gpus.unwrap_or(cluster.rollout.max(1));
    // Grading is the head node's, where it has graders.
    let reward = u16::from(cluster.reward == 0);
    [(Role::Rollout, rollout), (Role::Reward, reward)].into_iter().filter(|(_, count)| *count > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocation(variables: &[(&str, &str)]) -> Allocation {
        let get = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        Allocation::recognise(get).unwrap().unwrap()
    }

    #[test]
    fn a_host_offers_what_the_allocation_gives_it() {
        let four = [("SLURM_PROCID", "1"), ("SLURM_NTASKS", "2"), ("SLURM_GPUS_ON_NODE", "4")];
        let mut config = Config::default();
        config.cluster.rollout = 3;
        assert_eq!(offers(&allocation(&four), &config), [(Role::Rollout, 3)], "the model computes on the processor");
        config.model.device = DeviceKind::Cuda;
        assert_eq!(offers(&allocation(&four), &config), [(Role::Rollout, 4)]);
        (config.cluster.rollout, config.cluster.reward) = (0, 0);
        assert_eq!(offers(&allocation(&four[..2]), &config), [(Role::Rollout, 1), (Role::Reward, 1)]);
    }

    #[test]
    fn what_follows_from_an_allocation_stands_under_what_the_user_said() {
        let said = allocation(&[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_PORT", "29500"), ("MASTER_ADDR", "gpu-1")]);
        let resolve = |sets: &[&str]| {
            let sets = sets.iter().map(|s| (*s).to_owned()).collect();
            Resolved::load(&crate::config::Inputs { sets, given: settings(&said), ..Default::default() })
        };
        let plain = resolve(&[]).unwrap();
        assert_eq!(plain.config.cluster.listen, Some(([0, 0, 0, 0], 29500).into()));
        assert_eq!(plain.origin("cluster.listen").to_string(), "allocation of 2 processes");
        let invites = invites(&said, Path::new("x"), &plain).unwrap();
        assert_eq!((invites.hosts, invites.head.as_deref()), (1, Some("gpu-1")));
        let own = resolve(&["cluster.listen=10.0.0.1:7400", "cluster.advertise=head"]).unwrap();
        assert_eq!(own.config.cluster.listen, Some(([10, 0, 0, 1], 7400).into()));
        assert_eq!(super::invites(&said, Path::new("x"), &own).unwrap().head, None, "as cluster.advertise says");
        let error = resolve(&["cluster.processes=false"]).unwrap_err().to_string();
        assert!(error.contains("cluster.listen") && error.contains("--processes"), "{error}");
        assert!(folder(None, None).unwrap_err().message.contains("--meet"));
    }
}
