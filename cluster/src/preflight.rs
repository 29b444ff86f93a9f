//! What a run will need of this machine, said before it starts: memory by part, and what there is.
use crate::config::Config;
use crate::run::source::RING_SLOTS;
use cohort_learner::training::Training;
use cohort_model::config::EngineKind;
use cohort_model::family::{Mlp, Positions};
use cohort_model::{DecoderSpec, DtypeKind, Lora, Quantization};
use serde::Serialize;
use std::path::Path;

/// Bytes that a run needs, by part. An estimate from shapes: one host, all parameters trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Need {
    /// The weights of the engine that learns: f32, and with bf16 the rounded ones beside them; where it samples in int8, those too.
    pub parameters: u64,
    /// Their gradients.
    pub gradients: u64,
    /// AdamW's two moments, or a rank's part of them.
    pub moments: u64,
    /// What the forward pass of one micro-batch keeps for its backward pass.
    pub activations: u64,
    /// What sampling computes and keeps for the learner.
    pub recorded: u64,
    /// Keys and values of the sequences that are generated at once.
    pub kv: u64,
    /// The frozen model that a KL term compares with.
    pub reference: u64,
    /// The weights of rollout workers in processes of their own.
    pub workers: u64,
    /// The buffers through which new weights reach them.
    pub ring: u64,
    /// The other learner ranks, and what every rank keeps of shards whose neighbour is not there yet.
    pub ranks: u64,
}

/// Tokens of a prompt, with what tools and users say, that are planned for.
const PROMPT_TOKENS: u64 = 512;

impl Need {
    /// For micro-batches of that many tokens and that many tokens of keys and values.
    #[must_use]
    pub fn of(spec: &DecoderSpec, micro_batch_tokens: u64, kv_tokens: u64) -> Self {
        let parameters = 4 * spec.parameters() as u64;
        let moments = 2 * parameters;
        Self {
            parameters,
            gradients: parameters,
            moments,
            activations: 4 * activation_values(spec) * micro_batch_tokens,
            recorded: 0,
            kv: 4 * 2 * (spec.layers * spec.kv_heads * spec.head_dim) as u64 * kv_tokens,
            reference: 0,
            workers: 0,
            ring: 0,
            ranks: 0,
        }
    }

    /// For a run: one engine that both generates and learns, or, with processes, one that learns and one a rollout worker.
    #[must_use]
    pub fn of_run(spec: &DecoderSpec, config: &Config) -> Self {
        let mut one = Self::of_lone_learner(spec, config);
        let world = u64::from(config.cluster.learner.get());
        if config.training.shard_optimizer {
            // They are gathered for a checkpoint in the memory of the gradients.
            one.moments = one.moments.div_ceil(world);
        }
        let shards = u64::from(config.training.logical_shards) / world;
        let ranks = u64::from(config.cluster.ranks_here());
        let waiting = u64::from(shards.max(1).ilog2()) * one.gradients;
        let rank = one.parameters + one.gradients + one.moments + one.activations + one.reference;
        Self { ranks: ranks * waiting + (ranks - 1) * rank, ..one }
    }

    fn of_lone_learner(spec: &DecoderSpec, config: &Config) -> Self {
        let mut engine = Self::of(spec, config.training.micro_batch_tokens.into(), 0);
        let dtype = config.model.dtype;
        let quantization = config.rollout.quantization;
        let (full, plain) = (engine.parameters, Self::weights_of_sampler(spec, (dtype, Quantization::None)));
        let sampler = Self::weights_of_sampler(spec, (dtype, quantization));
        let quantized = if quantization == Quantization::Int8 { quantized(spec) } else { 0 };
        let referenced = Training::try_from(&config.training).is_ok_and(|training| training.loss.needs_reference());
        let apart = config.cluster.processes;
        let (workers, ring) = if apart { (u64::from(config.cluster.rollout), u64::from(RING_SLOTS)) } else { (0, 0) };
        let samplers = if apart { workers } else { 1 };
        // Settings that do not fit this model are named where the model is opened.
        if let Some(lora) = config.model.lora.as_ref().and_then(|lora| Lora::of(lora, spec, "model.lora").ok()) {
            let (trained, frozen) = Self::of_adapters(spec, &lora);
            let own = full + frozen + trained + if dtype == DtypeKind::Bf16 { plain } else { 0 };
            (engine.gradients, engine.moments) = (trained, 2 * trained);
            return Self {
                recorded: Self::recorded(spec, config),
                kv: Self::kv_of_engine(spec, config) * samplers,
                parameters: if apart { own } else { own + quantized },
                reference: if referenced { plain } else { 0 },
                workers: workers * (own + quantized),
                ring: ring * trained,
                ..engine
            };
        }
        Self {
            recorded: Self::recorded(spec, config),
            kv: Self::kv_of_engine(spec, config) * samplers,
            activations: if config.training.recompute_activations {
                // What goes into every block, and one block's own.
                let one = activation_values(&DecoderSpec { layers: 1, ..spec.clone() });
                4 * (one + (spec.layers * spec.hidden) as u64) * u64::from(config.training.micro_batch_tokens)
            } else {
                engine.activations
            },
            parameters: full + if dtype == DtypeKind::Bf16 { plain } else { 0 } + if apart { 0 } else { quantized },
            reference: if referenced { plain } else { 0 },
            workers: workers * sampler,
            ring: ring * full,
            ..engine
        }
    }

    /// Bytes of adapters, and of the frozen matrices that are kept below the merged ones.
    #[must_use]
    pub fn of_adapters(spec: &DecoderSpec, lora: &Lora) -> (u64, u64) {
        let trained: usize = lora.tensors(spec).iter().map(|t| t.shape.iter().product::<usize>()).sum();
        let frozen: usize = lora.targets.iter().map(|target| target.shape(spec)).map(|(out, inner)| out * inner).sum();
        (4 * trained as u64, 4 * (spec.layers * frozen) as u64)
    }

    /// The weights of an engine that does not learn: with int8 also the embeddings that are looked up in the other format.
    #[must_use]
    pub fn weights_of_sampler(spec: &DecoderSpec, (dtype, quantization): (DtypeKind, Quantization)) -> u64 {
        let bytes = match dtype {
            DtypeKind::F32 => 4,
            DtypeKind::Bf16 => 2,
        };
        match quantization {
            Quantization::None => bytes * spec.parameters() as u64,
            Quantization::Int8 => quantized(spec) + bytes * looked_up(spec),
        }
    }

    /// Keys and values of one generating engine of a run: its budget. Prompts are not read for it; where they are longer than
    /// 512 tokens the engine runs fewer sequences at once, and one always fits.
    #[must_use]
    pub fn kv_of_engine(spec: &DecoderSpec, config: &Config) -> u64 {
        let c = &config.cluster;
        let sharing = if c.processes { 1 } else { u64::from(c.rollout) };
        let sequences = sharing * u64::from(c.capacity.get()) * u64::from(config.training.group_size);
        // No more sequences run at once than a step has, nor than the engine takes.
        let step = u64::from(config.training.groups_per_step) * u64::from(config.training.group_size);
        let running = sequences.min(step).min(cohort_engine::EngineOptions::default().max_running as u64);
        let context = spec.max_context as u64;
        let turns = u64::from(config.environment.max_turns) * u64::from(config.agent.max_new_tokens);
        let tokens = (running * (PROMPT_TOKENS + turns).min(context)).max(context);
        Self::of(spec, 0, tokens).kv
    }

    /// Bytes that an engine which samples and learns may take for what its sampling computed; 0 where no training pass could
    /// use it.
    #[must_use]
    pub fn recording_budget(config: &Config) -> u64 {
        let c = &config.training;
        let drops = config.model.lora.as_ref().is_some_and(|lora| lora.dropout > 0.0);
        let one_engine = !config.cluster.processes && config.model.engine == EngineKind::Native;
        let exact = config.rollout.quantization == Quantization::None && c.max_staleness == 0 && !drops;
        if one_engine && exact { u64::from(c.reuse_sampling_mb) << 20 } else { 0 }
    }

    /// What of that a step can fill.
    fn recorded(spec: &DecoderSpec, config: &Config) -> u64 {
        let c = &config.training;
        let turns = u64::from(config.environment.max_turns) * u64::from(config.agent.max_new_tokens);
        let tokens = (PROMPT_TOKENS + turns).min(spec.max_context as u64);
        let step = u64::from(c.groups_per_step) * u64::from(c.group_size) * tokens;
        Self::recording_budget(config).min(step.saturating_mul(4 * activation_values(spec)))
    }

    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// The parts with their names, in order.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, u64); 10] {
        [
            ("parameters", self.parameters),
            ("gradients", self.gradients),
            ("moments", self.moments),
            ("activations", self.activations),
            ("kept of sampling", self.recorded),
            ("keys and values", self.kv),
            ("reference model", self.reference),
            ("rollout processes", self.workers),
            ("weight ring", self.ring),
            ("learner ranks and shards", self.ranks),
        ]
    }
}

/// Bytes of the int8 copies: 32 values and a scale take 36.
fn quantized(spec: &DecoderSpec) -> u64 {
    let only_looked_up = if spec.tied_embeddings { looked_up(spec) - (spec.vocab * spec.hidden) as u64 } else { looked_up(spec) };
    (spec.parameters() as u64 - only_looked_up) * 36 / 32
}

/// Values of the embeddings of tokens and positions.
fn looked_up(spec: &DecoderSpec) -> u64 {
    let positions = if spec.family.traits().positions == Positions::Learned { spec.max_context } else { 0 };
    ((spec.vocab + positions) * spec.hidden) as u64
}

/// Values that the backward pass of one token needs: each block's two norms in and out, queries, keys, values, the
/// attention's output, gate, up and their product, with norms of heads what goes into them; then the last norm.
fn activation_values(spec: &DecoderSpec) -> u64 {
    let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    let raw = if spec.family.traits().head_norms { q + kv } else { 0 };
    let mlp = if spec.family.traits().mlp == Mlp::SwiGlu { 3 } else { 2 };
    let block = 4 * spec.hidden + 2 * q + 2 * kv + mlp * spec.intermediate + raw;
    (spec.layers * block + 2 * spec.hidden) as u64
}

/// Memory in words.
#[must_use]
pub fn memory_text(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib >= 1024.0 { format!("{:.1} GiB", mib / 1024.0) } else { format!("{mib:.1} MiB") }
}

/// What a run needs and what this machine has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Needed, by part.
    pub need: Need,
    /// Sum of the parts.
    pub needed_bytes: u64,
    /// Free for this process: of the machine or of its memory cgroup, whichever is less. `None` where neither tells.
    pub available_bytes: Option<u64>,
}

impl Memory {
    /// Compares.
    #[must_use]
    pub fn check(need: Need) -> Self {
        Self { need, needed_bytes: need.total(), available_bytes: available_memory() }
    }

    /// Whether it fits; unknown counts as yes.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.available_bytes.is_none_or(|available| self.needed_bytes <= available)
    }

    /// One line: `learner needs 2.1 GiB (parameters 0.5 GiB, ..), has 20.1 GiB`.
    #[must_use]
    pub fn line(&self) -> String {
        let parts = self.need.parts();
        let parts: Vec<String> = parts
            .iter()
            .filter(|(name, bytes)| *bytes > 0 || *name == "parameters")
            .map(|(name, bytes)| format!("{name} {}", memory_text(*bytes)))
            .collect();
        let has = self.available_bytes.map_or("an unknown amount".to_owned(), memory_text);
        let who = if self.need.workers > 0 { "learner and rollout workers need" } else { "learner needs" };
        format!("{who} {} ({}), has {has}", memory_text(self.needed_bytes), parts.join(", "))
    }

    /// What to do where it does not fit.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        let n = &self.need;
        if n.workers + n.ring > n.parameters + n.gradients + n.moments && n.workers + n.ring > n.kv.max(n.activations) {
            "run fewer rollout workers, or leave --processes out: in one process all share one copy of the weights"
        } else if n.activations >= n.kv && n.activations > n.parameters {
            "lower training.micro_batch_tokens, or set training.recompute_activations = true"
        } else if n.recorded >= n.kv && n.recorded > n.parameters {
            "lower training.reuse_sampling_mb: what is not kept is computed again, to the same bits"
        } else if n.kv > n.parameters {
            "lower cluster.capacity or training.group_size"
        } else {
            "full training takes 16 bytes a parameter in f32, 18 in bf16; train adapters (model.lora), share the optimizer's state among learner \
             ranks on several hosts (training.shard_optimizer), or choose a smaller model or a machine with more memory"
        }
    }
}

/// Bytes that this process may still take.
#[must_use]
pub fn available_memory() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| meminfo_available(&text));
    match (machine, cgroup_available(Path::new("/sys/fs/cgroup"))) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn meminfo_available(text: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// What is left of the limits of this process's memory cgroup (version 2) and of the groups above it.
fn cgroup_available(root: &Path) -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|l| l.strip_prefix("0::"))?;
    let number = |file: &Path| std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let mut least = None;
    let mut group = root.join(path.trim_start_matches('/'));
    while group.starts_with(root) {
        if let (Some(max), Some(used)) = (number(&group.join("memory.max")), number(&group.join("memory.current"))) {
            // The page cache counts as used and gives way; what is left is at least this.
            let left = max.saturating_sub(used);
            least = Some(least.map_or(left, |l: u64| l.min(left)));
        }
        if !group.pop() {
            break;
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    fn smollm2() -> DecoderSpec {
        DecoderSpec {
            family: cohort_model::Family::Llama,
            hidden: 576,
            layers: 30,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            intermediate: 1536,
            vocab: 49_152,
            max_context: 2048,
            norm_eps: 1e-5,
            rope_theta: 100_000.0,
            tied_embeddings: true,
        }
    }

    #[test]
    fn full_training_takes_16_bytes_a_parameter() {
        let need = Need::of(&smollm2(), 0, 0);
        assert_eq!(need.total(), 16 * 134_515_008);
        assert_eq!(Need::of(&smollm2(), 0, 1).kv, 4 * 2 * 30 * 3 * 64);
        assert_eq!(Need::of(&smollm2(), 1, 0).activations, 4 * (30 * (4 * 576 + 2 * 576 + 2 * 192 + 3 * 1536) + 2 * 576));
    }

    #[test]
    fn every_process_and_the_reference_model_are_counted() {
        let (spec, mut config) = (smollm2(), Config::default());
        let one = Need::of_run(&spec, &config);
        assert_eq!((one.workers, one.ring, one.reference), (0, 0, 0));
        config.training.loss = serde_json::from_str(r#"{ "type": "grpo", "beta": 0.04 }"#).unwrap();
        config.cluster.processes = true;
        config.cluster.rollout = 3;
        let many = Need::of_run(&spec, &config);
        assert_eq!((many.workers, many.ring, many.reference), (3 * one.parameters, 3 * one.parameters, one.parameters));
        assert_eq!(many.kv, 3 * Need::kv_of_engine(&spec, &config));
        config.cluster.rollout = 0;
        let elsewhere = Need::of_run(&spec, &config);
        assert_eq!((elsewhere.workers, elsewhere.kv, elsewhere.ring), (0, 0, many.ring), "other hosts generate");
        config.cluster.rollout = 3;
        assert_eq!(many.total(), many.parts().iter().map(|(_, bytes)| bytes).sum::<u64>());
        assert!(many.total() > one.total() + 7 * one.parameters);
        config.model.dtype = DtypeKind::Bf16;
        let half = Need::of_run(&spec, &config);
        assert_eq!((2 * half.workers, 2 * half.reference, half.ring), (many.workers, many.reference, many.ring));
        assert_eq!(2 * half.parameters, 3 * many.parameters);
        // In int8 a worker has nine eighths of a byte a weight and an embedding in bf16; learner and reference model have none.
        config.rollout.quantization = Quantization::Int8;
        let int8 = Need::of_run(&spec, &config);
        assert_eq!(int8.workers, 3 * (134_515_008 * 9 / 8 + 2 * 49_152 * 576));
        assert_eq!(Need { workers: half.workers, ..int8 }, half);
        config.cluster.processes = false;
        assert_eq!(Need::of_run(&spec, &config).parameters, half.parameters + 134_515_008 * 9 / 8);
        let memory = Memory { available_bytes: Some(1), ..Memory::check(many) };
        assert!(
            memory.line().starts_with("learner and rollout workers need ")
                && memory.line().contains("rollout processes")
                && memory.line().contains("reference model"),
            "{}",
            memory.line()
        );
    }

    #[test]
    fn every_learner_rank_and_what_it_keeps_of_shards_is_counted() {
        let (spec, mut config) = (smollm2(), Config::default());
        let one = Need::of_run(&spec, &config);
        assert_eq!(one.ranks, 0);
        config.training.logical_shards = 4;
        let waiting = one.gradients;
        assert_eq!(Need::of_run(&spec, &config).ranks, 2 * waiting, "one rank keeps two sums of the tree over four shards");
        config.cluster.learner = std::num::NonZeroU16::new(2).unwrap();
        let rank = one.parameters + one.gradients + one.moments + one.activations;
        let two = Need::of_run(&spec, &config);
        assert_eq!(two.ranks, rank + 2 * waiting);
        assert_eq!(two.total(), one.total() + two.ranks);
        config.training.shard_optimizer = true;
        let parted = Need::of_run(&spec, &config);
        assert_eq!(parted.moments, one.moments / 2);
        assert_eq!(parted.total(), two.total() - one.moments, "both ranks together keep them once");
        let per_rank = parted.parameters + parted.gradients + parted.moments;
        assert_eq!(per_rank, (8 + 8 / 2) * 134_515_008);
    }

    #[test]
    fn of_adapters_only_what_is_trained_has_gradients_and_moments() {
        let (spec, mut config) = (smollm2(), Config::default());
        let whole = Need::of_run(&spec, &config);
        config.model.lora = Some(cohort_model::LoraConfig { rank: 8, ..Default::default() });
        let adapted = Need::of_run(&spec, &config);
        // Queries and values of 30 blocks: A and B of each, and the frozen matrices below.
        let trained = 4 * 30 * (8 * (576 + 576) + 8 * (576 + 192));
        let frozen = 4 * 30 * (576 * 576 + 192 * 576);
        assert_eq!((adapted.gradients, adapted.moments), (trained, 2 * trained));
        assert_eq!(adapted.parameters, whole.parameters + frozen + trained);
        assert_eq!(adapted.kv, whole.kv);
        config.cluster.processes = true;
        assert_eq!(Need::of_run(&spec, &config).ring, 3 * trained, "only adapters travel");
    }

    #[test]
    fn memory_is_read_and_compared() {
        assert_eq!(meminfo_available("MemTotal: 9 kB\nMemAvailable:   1024 kB\n"), Some(1 << 20));
        let memory = Memory { available_bytes: Some(1 << 20), ..Memory::check(Need::of(&smollm2(), 4096, 0)) };
        assert!(!memory.fits());
        assert!(memory.line().starts_with("learner needs 5.9 GiB (parameters 513.1 MiB,"), "{}", memory.line());
        assert!(memory.remedy().starts_with("lower training.micro_batch_tokens"));
        let config = |recompute_activations| {
            let mut config = Config::default();
            config.training.recompute_activations = recompute_activations;
            Need::of_run(&smollm2(), &config).activations
        };
        assert!(9 * config(true) < config(false), "{} and {}", config(true), config(false));
    }
}
