//! Which graphics processors a host has, and which worker computes on which.
//!
//! Invariants
//! - **D1** with `model.device = "cuda"` every learner rank and rollout worker of a host sees one device, and keeps it over
//!   restarts; nobody shares one while another is free.
//! - **D2** more workers than devices are refused before anything is begun, unless the run says that they share
//!   (`cluster.colocate`).
//! - **D3** a host without NVIDIA's library is no error: then nobody knows its devices, and workers find the first one themselves.
//!
//! Files: `nvml` asks the driver. Everything else is pure.
mod nvml;

pub use nvml::look;

use crate::config::Config;
use cohort_model::DeviceKind;
use cohort_protocol::{Role, WorkerId};
use serde::Serialize;
use std::collections::BTreeMap;
use thiserror::Error;

/// The variable by which a process is shown some devices only.
pub const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// A graphics processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// `GPU-..`: the same in every program, whatever order it counts in.
    pub uuid: String,
    /// As the maker calls it.
    pub name: String,
    /// Its memory, in bytes.
    pub memory_bytes: u64,
}

/// The graphics processors of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Inventory {
    /// In the driver's order, by which numbers count.
    pub gpus: Vec<Gpu>,
    /// Why nobody knows (D3).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
}

/// Devices that do not fit.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// One that the host does not have, or that this process may not use.
    #[error("device {device:?}: this host offers {offered}; name those by cluster.devices or --devices, or leave it out")]
    Absent {
        /// As it was named.
        device: String,
        /// What there is, as text.
        offered: String,
    },
    /// One that was named twice.
    #[error("device {device:?} is named twice; a device is shared by cluster.colocate = true instead")]
    Twice {
        /// As it was named.
        device: String,
    },
    /// D2.
    #[error(
        "{workers} learner and rollout workers are to compute on {devices} devices of this host: offer fewer workers, name more devices \
         by cluster.devices or --devices, or set cluster.colocate = true for workers that share one"
    )]
    TooFew {
        /// Workers that compute.
        workers: u32,
        /// Devices.
        devices: usize,
    },
}

/// The devices that a host offers, as [`VISIBLE`] takes them: those that were named, else those that this process may use
/// (`visible`, the value of [`VISIBLE`]), else all that there are. Empty where nobody knows.
///
/// # Errors
/// [`DeviceError::Absent`], [`DeviceError::Twice`].
pub fn offered(named: &[String], visible: Option<&str>, inventory: &Inventory) -> Result<Vec<String>, DeviceError> {
    let visible: Option<Vec<String>> = visible.map(|list| list.split(',').map(|id| id.trim().to_owned()).collect());
    // CUDA itself stops reading at what is no device.
    let visible = visible.map(|ids| ids.into_iter().take_while(|id| !id.is_empty() && id != "-1").collect::<Vec<_>>());
    let all: Vec<String> = visible.unwrap_or_else(|| inventory.gpus.iter().map(|gpu| gpu.uuid.clone()).collect());
    if named.is_empty() {
        return Ok(all);
    }
    let known = inventory.unknown.is_none();
    let by_number = |id: &str| id.parse::<usize>().ok().and_then(|n| inventory.gpus.get(n)).map(|gpu| gpu.uuid.clone());
    let mut out: Vec<String> = Vec::new();
    for device in named {
        let found = all.iter().find(|id| *id == device).cloned().or_else(|| by_number(device).filter(|uuid| all.contains(uuid)));
        let found = found.or_else(|| (!known && all.is_empty()).then(|| device.clone()));
        let found = found.ok_or_else(|| DeviceError::Absent {
            device: device.clone(),
            offered: if all.is_empty() { "none".to_owned() } else { all.join(", ") },
        })?;
        if out.contains(&found) {
            return Err(DeviceError::Twice { device: device.clone() });
        }
        out.push(found);
    }
    Ok(out)
}

/// Whether a worker of a role computes the model.
fn computes(role: Role) -> bool {
    matches!(role, Role::Learner | Role::Rollout)
}

/// Which worker has which device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assignment {
    devices: Vec<String>,
    held: BTreeMap<WorkerId, usize>,
}

impl Assignment {
    /// Of devices as [`VISIBLE`] takes them; without any, workers see what their host's agent sees.
    #[must_use]
    pub fn new(devices: Vec<String>) -> Self {
        Self { devices, held: BTreeMap::new() }
    }

    /// The devices of this host for a run of this configuration, of which `named` were named, with so many workers that compute.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn of_run(config: &Config, named: &[String], workers: u32) -> Result<Self, DeviceError> {
        if config.model.device != DeviceKind::Cuda {
            return Ok(Self::default());
        }
        let visible = std::env::var(VISIBLE).ok();
        let assignment = Self::new(offered(named, visible.as_deref(), &look())?);
        assignment.check(workers, config.cluster.colocate)?;
        Ok(assignment)
    }

    /// D2.
    ///
    /// # Errors
    /// [`DeviceError::TooFew`].
    pub fn check(&self, workers: u32, colocate: bool) -> Result<(), DeviceError> {
        let devices = self.devices.len();
        let enough = devices == 0 || colocate || workers as usize <= devices;
        if enough { Ok(()) } else { Err(DeviceError::TooFew { workers, devices }) }
    }

    /// The device of a worker from now on: the one it has, or the one that the fewest have, the first of those (D1).
    pub fn take(&mut self, worker: WorkerId) -> Option<&str> {
        if !computes(worker.role) || self.devices.is_empty() {
            return None;
        }
        let shared = |device: usize| self.held.values().filter(|held| **held == device).count();
        let free = (0..self.devices.len()).min_by_key(|&device| shared(device));
        let device = *self.held.entry(worker).or_insert(free.unwrap_or(0));
        self.devices.get(device).map(String::as_str)
    }

    /// A worker is gone for good.
    pub fn release(&mut self, worker: WorkerId) {
        self.held.remove(&worker);
    }

    /// The device that a worker has, by the worker's name.
    #[must_use]
    pub fn of(&self, name: &str) -> Option<&str> {
        let (_, device) = self.held.iter().find(|(worker, _)| worker.to_string() == name)?;
        self.devices.get(*device).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(count: usize) -> Inventory {
        let gpu = |n| Gpu { uuid: format!("GPU-{n}"), name: "H100".into(), memory_bytes: 80 << 30 };
        Inventory { gpus: (0..count).map(gpu).collect(), unknown: None }
    }

    fn named(devices: &[&str]) -> Vec<String> {
        devices.iter().map(|device| (*device).to_owned()).collect()
    }

    #[test]
    fn devices_are_those_named_else_those_allowed_else_all() {
        let (host, nobody) = (inventory(3), Inventory { gpus: Vec::new(), unknown: Some("no library".into()) });
        assert_eq!(offered(&[], None, &host).unwrap(), ["GPU-0", "GPU-1", "GPU-2"]);
        assert_eq!(offered(&named(&["2", "GPU-0"]), None, &host).unwrap(), ["GPU-2", "GPU-0"]);
        assert_eq!(offered(&[], Some("3, MIG-x,-1,4"), &host).unwrap(), ["3", "MIG-x"], "as a scheduler allows");
        assert_eq!(offered(&[], Some(""), &host).unwrap(), [""; 0]);
        assert_eq!(offered(&named(&["5"]), Some("3,5"), &host).unwrap(), ["5"]);
        assert_eq!(offered(&named(&["7"]), None, &nobody).unwrap(), ["7"], "D3: what the user says is believed");
        assert_eq!(offered(&[], None, &nobody).unwrap(), [""; 0]);
        for (devices, visible, why) in
            [(&["3"][..], None, "GPU-0, GPU-1, GPU-2"), (&["1"], Some("3,5"), "3, 5"), (&["0", "GPU-0"], None, "named twice")]
        {
            let error = offered(&named(devices), visible, &host).unwrap_err().to_string();
            assert!(error.contains(why), "{devices:?}: {error}");
        }
    }

    #[test]
    fn more_workers_than_devices_are_refused_unless_they_share() {
        let two = Assignment::new(named(&["a", "b"]));
        assert_eq!(two.check(2, false), Ok(()));
        let why = two.check(3, false).unwrap_err().to_string();
        assert!(why.contains("3 learner and rollout workers") && why.contains("2 devices") && why.contains("colocate"), "{why}");
        assert_eq!(two.check(3, true), Ok(()));
        assert_eq!(Assignment::default().check(9, false), Ok(()), "D3");
        assert_eq!(
            Assignment::of_run(&Config::default(), &named(&["no such"]), 9),
            Ok(Assignment::default()),
            "on the processor"
        );
    }

    /// D1 over random comings and goings.
    #[test]
    fn nobody_shares_while_another_is_free_and_everybody_keeps_its_own() {
        for seed in 0..50 {
            let mut draw = fastrand::Rng::with_seed(seed);
            let mut devices = Assignment::new((0..4).map(|n| n.to_string()).collect());
            let mut here: BTreeMap<WorkerId, String> = BTreeMap::new();
            for _ in 0..200 {
                let role = [Role::Rollout, Role::Learner, Role::Reward][draw.usize(..3)];
                let worker = WorkerId { role, index: draw.u16(..4) };
                if draw.bool() {
                    let count = |id: &str| here.values().filter(|held| *held == id).count();
                    let least = (0..4).map(|n| count(&n.to_string())).min().unwrap_or(0);
                    let had = here.get(&worker).cloned();
                    let given = devices.take(worker).map(str::to_owned);
                    assert_eq!(given.is_some(), role != Role::Reward, "graders see no device of their own");
                    let Some(given) = given else { continue };
                    assert!(had.as_ref().is_none_or(|had| *had == given), "seed {seed}: {worker} moved");
                    assert!(had.is_some() || count(&given) == least, "seed {seed}: {worker} shares {given}");
                    assert_eq!(devices.of(&worker.to_string()), Some(given.as_str()));
                    here.insert(worker, given);
                } else {
                    devices.release(worker);
                    here.remove(&worker);
                }
            }
        }
    }
}
