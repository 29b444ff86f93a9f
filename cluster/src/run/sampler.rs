//! How a host samples where it cannot offer the run's numerics: what `cluster join --sample-with` says, and what comes of it.
//! Its workers then name other numerics than the run has; whether they are let in is the run's decision
//! (`rollout.other_numerics`).
use crate::config::Config;
use cohort_model::Quantization;
use cohort_model::config::{DeviceKind, DtypeKind, EngineKind};
use std::fmt;
use std::str::FromStr;

/// Keys of the configuration that a host sets otherwise for its rollout workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SampleWith {
    engine: Option<EngineKind>,
    device: Option<DeviceKind>,
    dtype: Option<DtypeKind>,
    quantization: Option<Quantization>,
}

impl SampleWith {
    /// Puts it over a run's configuration.
    ///
    /// # Errors
    /// A sentence for the user: settings that exclude each other.
    pub fn apply(&self, config: &mut Config) -> Result<(), String> {
        let model = &mut config.model;
        model.engine = self.engine.unwrap_or(model.engine);
        model.device = self.device.unwrap_or(model.device);
        model.dtype = self.dtype.unwrap_or(model.dtype);
        config.rollout.quantization = self.quantization.unwrap_or(config.rollout.quantization);
        config.check_engine().map_err(|(key, why)| format!("--sample-with {self}: {key} {why}"))
    }
}

impl FromStr for SampleWith {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut with = Self::default();
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or_else(|| format!("{part:?} is not KEY=VALUE, as dtype=bf16"))?;
            match (key.trim(), value.trim()) {
                ("engine", name) => with.engine = Some(engine(name)?),
                ("device", name) => with.device = Some(device(name)?),
                ("dtype", name) => with.dtype = Some(name.parse()?),
                ("quantization", name) => with.quantization = Some(name.parse()?),
                (other, _) => return Err(format!("no key {other:?}; there are engine, device, dtype and quantization")),
            }
        }
        Ok(with)
    }
}

impl fmt::Display for SampleWith {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = [
            ("engine", self.engine.map(EngineKind::name)),
            ("device", self.device.map(DeviceKind::name)),
            ("dtype", self.dtype.map(DtypeKind::name)),
            ("quantization", self.quantization.map(Quantization::name)),
        ];
        let said: Vec<String> = said.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value?))).collect();
        f.write_str(&said.join(","))
    }
}

fn engine(name: &str) -> Result<EngineKind, String> {
    let all = [EngineKind::Native, EngineKind::Candle];
    all.into_iter().find(|kind| kind.name() == name).ok_or_else(|| format!("no engine {name:?}; there are native and candle"))
}

fn device(name: &str) -> Result<DeviceKind, String> {
    let all = [DeviceKind::Cpu, DeviceKind::Cuda];
    all.into_iter().find(|kind| kind.name() == name).ok_or_else(|| format!("no device {name:?}; there are cpu and cuda"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_put_over_the_runs_own_and_nothing_else() {
        let with: SampleWith = "engine=native,device=cpu,dtype=bf16,quantization=int8".parse().unwrap();
        assert_eq!(with.to_string().parse(), Ok(with), "it is handed to workers as text");
        let mut config = Config::default();
        config.model.engine = EngineKind::Candle;
        let before = config.clone();
        with.apply(&mut config).unwrap();
        assert_eq!((config.model.engine, config.model.dtype), (EngineKind::Native, DtypeKind::Bf16));
        assert_eq!(config.rollout.quantization, Quantization::Int8);
        assert_eq!(Config { model: before.model.clone(), rollout: before.rollout.clone(), ..config }, before);
    }

    #[test]
    fn what_is_none_or_excludes_each_other_is_refused_by_name() {
        for (text, named) in [
            ("bf16", "KEY=VALUE"),
            ("dtyp=bf16", "no key \"dtyp\""),
            ("dtype=f16", "no dtype \"f16\""),
            ("engine=torch", "native and candle"),
            ("device=tpu", "cpu and cuda"),
        ] {
            let why = text.parse::<SampleWith>().unwrap_err();
            assert!(why.contains(named), "{text}: {why}");
        }
        let with: SampleWith = "device=cuda".parse().unwrap();
        let why = with.apply(&mut Config::default()).unwrap_err();
        assert!(why.contains("--sample-with device=cuda") && why.contains("candle"), "{why}");
    }
}
