//! Asks NVIDIA's management library, which is looked for when it is needed: a host without it has no devices that we know of.
use super::{Gpu, Inventory};
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

/// The graphics processors of this host.
#[must_use]
pub fn look() -> Inventory {
    match gpus() {
        Ok(gpus) => Inventory { gpus, unknown: None },
        Err(error) => Inventory { gpus: Vec::new(), unknown: Some(error.to_string()) },
    }
}

fn gpus() -> Result<Vec<Gpu>, NvmlError> {
    // The name of the library that drivers bring; the other one comes with a toolkit for compiling.
    let nvml = Nvml::builder().lib_path("libnvidia-ml.so.1".as_ref()).init()?;
    let one = |index| {
        let device = nvml.device_by_index(index)?;
        Ok(Gpu { uuid: device.uuid()?, name: device.name()?, memory_bytes: device.memory_info()?.total })
    };
    (0..nvml.device_count()?).map(one).collect()
}
