//! A backend without a model behind `stub://`: canned replies through the real path of sessions, log-probs and updates.
//!
//! The next token of a reply gets a large logit; a bias per token, column 0 of `model.embed_tokens.weight`, is added. The
//! bias is all that trains, with its true gradient, so plumbing tests see weights that change, digests that differ and
//! log-probs that agree or, after a flipped bit, do not. Text never improves: this is no model.
use crate::backend::divided;
use crate::{AdamW, Backend, EngineError, Extend, Forward, KvId, PackedBatch, Partition, Upstream};
use cohort_kernels::Path;
use cohort_model::{DecoderSpec, Tensor, WeightSet};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Logit of the canned token; every other token has 0 plus its bias.
const CERTAIN: f32 = 12.0;
/// The tensor whose first column is the bias.
const BIAS: &str = "model.embed_tokens.weight";

/// What the stub says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Replies as tokens, taken in turn over the assistant turns of a sequence; at least one.
    pub replies: Vec<Vec<u32>>,
    /// Tokens that open an assistant turn in the chat template.
    pub opening: Vec<u32>,
    /// Said when a reply is over.
    pub end: u32,
}

impl Script {
    /// The token after a context: the reply's next one, or the end. Depends on the tokens alone, never on how they came.
    fn next(&self, context: &[u32]) -> u32 {
        let width = self.opening.len().max(1);
        let mut turns = 0;
        let mut start = None;
        for (i, window) in context.windows(width).enumerate() {
            if window == self.opening {
                turns += 1;
                start = Some(i + width);
            }
        }
        let said = start.map_or(context.len(), |start| context.len() - start);
        let reply = self.replies.get((turns.max(1) - 1) % self.replies.len().max(1));
        reply.and_then(|reply| reply.get(said)).copied().unwrap_or(self.end)
    }
}

/// See the module.
#[derive(Debug)]
pub struct StubBackend {
    spec: DecoderSpec,
    script: Script,
    weights: WeightSet,
    moments: [WeightSet; 2],
    partition: Partition,
    gradient: Vec<f32>,
    updates: u64,
    memories: BTreeMap<u32, Vec<u32>>,
    opened: u32,
    /// Per target of the last training forward: its token and the softmax it came from.
    trained: Vec<(u32, f32, Vec<f32>)>,
}

impl StubBackend {
    /// A stub of this shape. `weights` are the base, in the canonical layout.
    pub fn new(spec: DecoderSpec, script: Script, weights: WeightSet) -> Result<Self, EngineError> {
        weights.check(&spec).map_err(|e| EngineError::Input(e.to_string()))?;
        let vocab = spec.vocab;
        let known = |t: &u32| (*t as usize) < vocab;
        if script.replies.is_empty() || !script.replies.iter().flatten().chain([&script.end]).all(known) {
            return Err(EngineError::Input(format!("a stub needs replies, of tokens below its vocabulary of {vocab}")));
        }
        let zeros = |w: &WeightSet| {
            let zero = |t: &Tensor| Tensor { shape: t.shape.clone(), data: vec![0.0; t.data.len()] };
            WeightSet(w.0.iter().map(|(n, t)| (n.clone(), zero(t))).collect())
        };
        Ok(Self {
            gradient: vec![0.0; vocab],
            moments: [zeros(&weights), zeros(&weights)],
            partition: Partition::WHOLE,
            spec,
            script,
            weights,
            updates: 0,
            memories: BTreeMap::new(),
            opened: 0,
            trained: Vec::new(),
        })
    }

    fn logits(&self, context: &[u32], logits: &mut [f32]) {
        let bias = self.weights.0.get(BIAS).map_or(&[][..], |t| &t.data);
        for (logit, row) in logits.iter_mut().zip(bias.chunks_exact(self.spec.hidden)) {
            *logit = row[0];
        }
        if let Some(logit) = logits.get_mut(self.script.next(context) as usize) {
            *logit += CERTAIN;
        }
    }

    fn scattered(&self, column: &[f32], like: &WeightSet) -> WeightSet {
        let mut out = like.clone();
        for tensor in out.0.values_mut() {
            tensor.data.fill(0.0);
        }
        if let Some(tensor) = out.0.get_mut(BIAS) {
            for (row, value) in tensor.data.chunks_exact_mut(self.spec.hidden).zip(column) {
                row[0] = *value;
            }
        }
        out
    }
}

impl Backend for StubBackend {
    fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    fn numerics(&self) -> String {
        "stub f32".into()
    }

    fn import(&mut self, weights: &WeightSet) -> Result<(), EngineError> {
        weights.check(&self.spec).map_err(|e| EngineError::Input(e.to_string()))?;
        self.weights = weights.clone();
        Ok(())
    }

    fn export(&self) -> Result<WeightSet, EngineError> {
        Ok(self.weights.clone())
    }

    fn kv_open(&mut self) -> Result<KvId, EngineError> {
        self.opened += 1;
        self.memories.insert(self.opened, Vec::new());
        Ok(KvId(self.opened))
    }

    fn kv_fork(&mut self, from: KvId, len: usize) -> Result<KvId, EngineError> {
        let tokens = self.memories.get(&from.0).and_then(|tokens| tokens.get(..len)).map(<[_]>::to_vec);
        let tokens = tokens.ok_or_else(|| EngineError::Input(format!("memory {} holds fewer than {len} tokens", from.0)))?;
        let kv = self.kv_open()?;
        self.memories.insert(kv.0, tokens);
        Ok(kv)
    }

    fn kv_len(&self, kv: KvId) -> usize {
        self.memories.get(&kv.0).map_or(0, Vec::len)
    }

    fn kv_truncate(&mut self, kv: KvId, len: usize) {
        if let Some(memory) = self.memories.get_mut(&kv.0) {
            memory.truncate(len);
        }
    }

    fn kv_close(&mut self, kv: KvId) {
        self.memories.remove(&kv.0);
    }

    fn extend(&mut self, work: &[Extend<'_>], logits: &mut [f32]) -> Result<(), EngineError> {
        for item in work {
            if self.kv_len(item.kv) + item.tokens.len() > self.spec.max_context {
                return Err(EngineError::Capacity(format!("past the context of {} tokens", self.spec.max_context)));
            }
        }
        for (item, row) in work.iter().zip(logits.chunks_exact_mut(self.spec.vocab)) {
            let memory = self.memories.get_mut(&item.kv.0).ok_or_else(|| EngineError::Input("a closed memory".into()))?;
            memory.extend_from_slice(item.tokens);
            let context = std::mem::take(memory);
            self.logits(&context, row);
            self.memories.insert(item.kv.0, context);
        }
        Ok(())
    }

    fn forward(&mut self, batch: &PackedBatch, train: bool) -> Result<Forward, EngineError> {
        let mut out = Forward::default();
        let mut trained = Vec::new();
        let mut logits = vec![0.0; self.spec.vocab];
        for sequence in &batch.sequences {
            for &position in &sequence.targets {
                let Some((context, [target, ..])) = sequence.tokens.split_at_checked(position as usize) else {
                    return Err(EngineError::Input(format!("target {position} of {} tokens", sequence.tokens.len())));
                };
                self.logits(context, &mut logits);
                let row = cohort_kernels::logprob::row(Path::detect(), &logits, sequence.temperature);
                let logp = row.logp(logits[*target as usize]);
                out.logp.push(logp);
                out.entropy.push(row.entropy);
                if train {
                    let log_total = logits[*target as usize] / sequence.temperature - logp;
                    let p = logits.iter().map(|l| (l / sequence.temperature - log_total).exp()).collect();
                    trained.push((*target, sequence.temperature, p));
                }
            }
        }
        if train {
            self.trained = trained;
        }
        Ok(out)
    }

    fn backward(&mut self, upstream: Upstream<'_>) -> Result<(), EngineError> {
        if upstream.d_logp.len() != self.trained.len() {
            return Err(EngineError::Input(format!(
                "{} gradients for {} targets of the last training forward",
                upstream.d_logp.len(),
                self.trained.len()
            )));
        }
        // d logp(target) / d bias(v) = ([v = target] - p(v)) / temperature
        for ((target, temperature, p), d) in self.trained.drain(..).zip(upstream.d_logp) {
            for (v, (gradient, p)) in self.gradient.iter_mut().zip(&p).enumerate() {
                let hit = f32::from(u8::from(v == target as usize));
                *gradient += d * (hit - p) / temperature;
            }
        }
        Ok(())
    }

    fn zero_grad(&mut self) {
        self.gradient.fill(0.0);
    }

    fn grad_norm(&mut self) -> Result<f64, EngineError> {
        Ok(self.gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt())
    }

    /// Plain gradient descent: a stub has nothing to gain from moments.
    fn update(&mut self, optimizer: &AdamW, lr: f64, grad_scale: f64) -> Result<(), EngineError> {
        divided(self.partition, "an update")?;
        self.update_partition(optimizer, lr, grad_scale, &mut |_| ControlFlow::Continue(()))
    }

    fn update_partition(
        &mut self,
        _optimizer: &AdamW,
        lr: f64,
        grad_scale: f64,
        exchange: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        let norm = self.grad_norm()?;
        if !norm.is_finite() {
            return Err(EngineError::NonFinite(format!("gradient norm {norm}")));
        }
        let own = self.partition.range(self.spec.vocab);
        if let Some(tensor) = self.weights.0.get_mut(BIAS) {
            let mut biases: Vec<f32> = tensor.data.chunks_exact(self.spec.hidden).map(|row| row[0]).collect();
            for (bias, gradient) in biases[own.clone()].iter_mut().zip(&self.gradient[own]) {
                *bias -= (f64::from(*gradient) * grad_scale * lr) as f32;
            }
            // One bucket: whether it is the last does not matter.
            let _ = exchange(&mut biases);
            tensor.data.chunks_exact_mut(self.spec.hidden).zip(biases).for_each(|(row, bias)| row[0] = bias);
        }
        self.updates += 1;
        self.zero_grad();
        Ok(())
    }

    fn updates(&self) -> u64 {
        self.updates
    }

    fn partition(&self) -> Partition {
        self.partition
    }

    fn keep_partition(&mut self, part: Partition) -> Result<(), EngineError> {
        if self.partition != part {
            divided(self.partition, "another part")?;
            self.partition = part;
        }
        Ok(())
    }

    /// There are no moments to take.
    fn take_partition(
        &mut self,
        part: Partition,
        updates: u64,
        _fill: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        (self.partition, self.updates) = (part, updates);
        Ok(())
    }

    /// Nor to show.
    fn each_moment(
        &mut self,
        _part: Partition,
        _visit: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        Ok(())
    }

    fn optimizer_gather(
        &mut self,
        _fill: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>,
    ) -> Result<(WeightSet, WeightSet, u64), EngineError> {
        let [first, second] = self.moments.clone();
        Ok((first, second, self.updates))
    }

    fn each_gradient(&mut self, visit: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>) -> Result<(), EngineError> {
        // One bucket: whether it is the last does not matter.
        let _ = visit(&mut self.gradient);
        Ok(())
    }

    fn gradients(&self) -> Result<WeightSet, EngineError> {
        Ok(self.scattered(&self.gradient, &self.weights))
    }

    fn optimizer_export(&self) -> Result<(WeightSet, WeightSet, u64), EngineError> {
        divided(self.partition, "the export")?;
        let [first, second] = self.moments.clone();
        Ok((first, second, self.updates))
    }

    fn optimizer_import(&mut self, first: &WeightSet, second: &WeightSet, updates: u64) -> Result<(), EngineError> {
        for moments in [first, second] {
            moments.check(&self.spec).map_err(|e| EngineError::Input(e.to_string()))?;
        }
        self.moments = [first.clone(), second.clone()];
        (self.partition, self.updates) = (Partition::WHOLE, updates);
        Ok(())
    }
}
