//! A model small enough to read: logits of the next token = head x (embedding of this token * norm), in f64, with its
//! gradient written out. It uses three tensors of whatever architecture it is given and leaves the others alone.
use cohort_engine::{AdamW, Backend, Done, EngineError, Extend, Forward, KvId, PackedBatch, Partition, Upstream};
use cohort_learner::aggregator::{self, ReadyGroup};
use cohort_model::{DecoderSpec, Tensor, WeightSet};
use cohort_protocol::messages::learner::StepRequest;
use cohort_protocol::{
    Epoch, FinishReason, GroupId, GroupPayload, PolicyVersion, SampleIx, Score, ScoredTrajectory, StepId, StepIntent, Trajectory,
    VersionSpan,
};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

const EMBED: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";

/// The model, its gradients and moments.
#[derive(Debug, Clone)]
pub(crate) struct Toy {
    pub(crate) spec: DecoderSpec,
    pub(crate) weights: WeightSet,
    pub(crate) grads: WeightSet,
    pub(crate) first: WeightSet,
    pub(crate) second: WeightSet,
    pub(crate) updates: u64,
    /// What of the moments counts; the rest is no number.
    pub(crate) partition: Partition,
    pub(crate) kept: Option<PackedBatch>,
    /// Makes `forward` call number n (from 0) give no number.
    pub(crate) poison_forward: Option<usize>,
    pub(crate) forwards: usize,
    pub(crate) backwards: usize,
    pub(crate) on: Option<(Moment, Hook)>,
    /// Where its gradients lie, side by side, in the order in which it says that it is done with them; empty: it does not say.
    pub(crate) order: Vec<Range<usize>>,
}

/// Something that it is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// A backward pass.
    Backward,
    /// Saying that a pass is done with some gradients.
    Done,
    /// Giving its part of the updated weights to others.
    Exchange,
    /// Taking a part of the optimizer's state.
    Take,
    /// Showing one.
    Show,
}

/// Called then.
#[derive(Clone)]
pub(crate) struct Hook(pub(crate) Arc<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hook")
    }
}

/// An untied architecture without blocks: 11 tokens, 4 wide.
pub(crate) fn small_spec() -> DecoderSpec {
    DecoderSpec {
        family: cohort_model::Family::Llama,
        hidden: 4,
        layers: 0,
        heads: 1,
        kv_heads: 1,
        head_dim: 4,
        intermediate: 1,
        vocab: 11,
        max_context: 64,
        norm_eps: 1e-5,
        rope_theta: 1e4,
        tied_embeddings: false,
    }
}

/// Any deterministic weights.
pub(crate) fn weights(spec: &DecoderSpec, seed: u64) -> WeightSet {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let tensor = |t: &cohort_model::spec::TensorSpec, next: &mut dyn FnMut() -> f32| {
        let data = (0..t.shape.iter().product::<usize>()).map(|_| next() * 2.0).collect();
        Tensor { shape: t.shape.clone(), data }
    };
    WeightSet(spec.tensors().iter().map(|t| (t.name.clone(), tensor(t, &mut next))).collect())
}

fn zeros(spec: &DecoderSpec) -> WeightSet {
    let zero = |shape: &[usize]| Tensor { shape: shape.to_vec(), data: vec![0.0; shape.iter().product()] };
    WeightSet(spec.tensors().into_iter().map(|t| (t.name, zero(&t.shape))).collect())
}

impl Toy {
    pub(crate) fn new(spec: DecoderSpec, weights: WeightSet) -> Self {
        weights.check(&spec).unwrap();
        let zero = zeros(&spec);
        Self {
            spec,
            weights,
            grads: zero.clone(),
            first: zero.clone(),
            second: zero,
            updates: 0,
            partition: Partition::WHOLE,
            kept: None,
            poison_forward: None,
            forwards: 0,
            backwards: 0,
            on: None,
            order: Vec::new(),
        }
    }

    pub(crate) fn small(seed: u64) -> Self {
        Self::new(small_spec(), weights(&small_spec(), seed))
    }

    fn about_to(&self, now: Moment) {
        if let Some((moment, Hook(hook))) = &self.on
            && *moment == now
        {
            hook();
        }
    }

    /// All gradients side by side.
    fn flat(&self) -> Vec<f32> {
        self.grads.0.values().flat_map(|tensor| tensor.data.iter().copied()).collect()
    }

    fn set_flat(&mut self, all: &[f32]) {
        let mut rest = all.iter().copied();
        self.grads.0.values_mut().flat_map(|tensor| &mut tensor.data).zip(&mut rest).for_each(|(value, sum)| *value = sum);
    }

    fn head(&self) -> &'static str {
        if self.spec.tied_embeddings { EMBED } else { "lm_head.weight" }
    }

    /// Input vector and probabilities of the token after `previous`.
    fn distribution(&self, previous: u32, temperature: f32) -> (Vec<f64>, Vec<f64>) {
        let h = self.spec.hidden;
        let row = &self.weights.0[EMBED].data[previous as usize * h..][..h];
        let x: Vec<f64> = row.iter().zip(&self.weights.0[NORM].data).map(|(&e, &n)| f64::from(e) * f64::from(n)).collect();
        let head = &self.weights.0[self.head()].data;
        let logit = |v: usize| head[v * h..][..h].iter().zip(&x).map(|(&w, x)| f64::from(w) * x).sum::<f64>();
        let logits: Vec<f64> = (0..self.spec.vocab).map(|v| logit(v) / f64::from(temperature)).collect();
        let max = logits.iter().copied().fold(f64::MIN, f64::max);
        let total: f64 = logits.iter().map(|l| (l - max).exp()).sum();
        (x, logits.iter().map(|l| (l - max).exp() / total).collect())
    }

    /// log-prob of `token` after `previous`.
    pub(crate) fn logp(&self, previous: u32, token: u32, temperature: f32) -> f32 {
        self.distribution(previous, temperature).1[token as usize].ln() as f32
    }

    /// The most likely token after `previous`.
    pub(crate) fn likeliest(&self, previous: u32) -> u32 {
        let p = self.distribution(previous, 1.0).1;
        (0..p.len() as u32).max_by(|&a, &b| p[a as usize].total_cmp(&p[b as usize])).unwrap()
    }
}

/// (tokens, position, temperature) of every target.
fn targets(batch: &PackedBatch) -> impl Iterator<Item = (&[u32], usize, f32)> {
    batch.sequences.iter().flat_map(|s| s.targets.iter().map(move |&t| (&s.tokens[..], t as usize, s.temperature)))
}

impl Backend for Toy {
    fn spec(&self) -> &DecoderSpec {
        &self.spec
    }
    fn numerics(&self) -> String {
        "toy".into()
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
        Err(EngineError::Capacity("a toy does not decode".into()))
    }
    fn kv_fork(&mut self, _from: KvId, _len: usize) -> Result<KvId, EngineError> {
        Err(EngineError::Capacity("a toy does not decode".into()))
    }
    fn kv_len(&self, _kv: KvId) -> usize {
        0
    }
    fn kv_truncate(&mut self, _kv: KvId, _len: usize) {}
    fn kv_close(&mut self, _kv: KvId) {}
    fn extend(&mut self, _work: &[Extend<'_>], _logits: &mut [f32]) -> Result<(), EngineError> {
        Err(EngineError::Capacity("a toy does not decode".into()))
    }
    fn forward(&mut self, batch: &PackedBatch, train: bool) -> Result<Forward, EngineError> {
        let mut out = Forward::default();
        for (tokens, t, temperature) in targets(batch) {
            let p = self.distribution(tokens[t - 1], temperature).1;
            out.logp.push(p[tokens[t] as usize].ln() as f32);
            out.entropy.push(-p.iter().map(|p| p * p.ln()).sum::<f64>() as f32);
        }
        if self.poison_forward == Some(self.forwards) {
            out.logp[0] = f32::NAN;
        }
        self.forwards += 1;
        self.kept = train.then(|| batch.clone());
        Ok(out)
    }
    fn backward(&mut self, upstream: Upstream<'_>) -> Result<(), EngineError> {
        self.about_to(Moment::Backward);
        let batch = self.kept.take().ok_or_else(|| EngineError::Input("backward without a forward".into()))?;
        self.backwards += 1;
        let (h, head) = (self.spec.hidden, self.head());
        for (i, (tokens, t, temperature)) in targets(&batch).enumerate() {
            let (previous, token) = (tokens[t - 1] as usize, tokens[t] as usize);
            let (x, p) = self.distribution(tokens[t - 1], temperature);
            let d = f64::from(upstream.d_logp[i]);
            let d_entropy = upstream.d_entropy.map_or(0.0, |e| f64::from(e[i]));
            let entropy = -p.iter().map(|p| p * p.ln()).sum::<f64>();
            let d_logit = |v: usize| {
                let one = f64::from(u8::from(v == token));
                (d * (one - p[v]) - d_entropy * p[v] * (p[v].ln() + entropy)) / f64::from(temperature)
            };
            for v in 0..self.spec.vocab {
                let g = d_logit(v);
                for (j, x) in x.iter().enumerate() {
                    let w = f64::from(self.weights.0[head].data[v * h + j]);
                    let (e, n) = (self.weights.0[EMBED].data[previous * h + j], self.weights.0[NORM].data[j]);
                    self.grads.0.get_mut(head).unwrap().data[v * h + j] += (g * x) as f32;
                    self.grads.0.get_mut(EMBED).unwrap().data[previous * h + j] += (g * w * f64::from(n)) as f32;
                    self.grads.0.get_mut(NORM).unwrap().data[j] += (g * w * f64::from(e)) as f32;
                }
            }
        }
        Ok(())
    }
    fn gradient_order(&self) -> Vec<Range<usize>> {
        self.order.clone()
    }
    fn backward_in_order(&mut self, upstream: Upstream<'_>, done: Done<'_>) -> Result<(), EngineError> {
        self.backward(upstream)?;
        let mut all = self.flat();
        // Breaks off by itself.
        let _ = self.order.iter().try_for_each(|range| {
            self.about_to(Moment::Done);
            done(&mut all, range.clone())
        });
        self.set_flat(&all);
        Ok(())
    }
    fn zero_grad(&mut self) {
        self.grads = zeros(&self.spec);
    }
    fn grad_norm(&mut self) -> Result<f64, EngineError> {
        Ok(self.grads.0.values().flat_map(|t| &t.data).map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt())
    }
    fn update(&mut self, o: &AdamW, lr: f64, grad_scale: f64) -> Result<(), EngineError> {
        assert_eq!(self.partition, Partition::WHOLE);
        self.update_partition(o, lr, grad_scale, &mut |_| ControlFlow::Continue(()))
    }
    fn updates(&self) -> u64 {
        self.updates
    }
    fn partition(&self) -> Partition {
        self.partition
    }
    fn keep_partition(&mut self, part: Partition) -> Result<(), EngineError> {
        assert!(self.partition == Partition::WHOLE || self.partition == part, "{:?}", self.partition);
        self.partition = part;
        for moment in [&mut self.first, &mut self.second] {
            for values in moment.0.values_mut().map(|tensor| &mut tensor.data) {
                let own = part.range(values.len());
                values[..own.start].fill(f32::NAN);
                values[own.end..].fill(f32::NAN);
            }
        }
        Ok(())
    }
    fn take_partition(
        &mut self,
        part: Partition,
        updates: u64,
        fill: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        self.about_to(Moment::Take);
        (self.first, self.second) = (zeros(&self.spec), zeros(&self.spec));
        (self.partition, self.updates) = (Partition::WHOLE, updates);
        if updates > 0 {
            let moments = self.first.0.values_mut().chain(self.second.0.values_mut());
            // Breaks off by itself.
            let _ = moments.map(|t| &mut t.data).try_for_each(|data| {
                let own = part.range(data.len());
                fill(&mut data[own])
            });
        }
        self.keep_partition(part)
    }
    fn each_moment(&mut self, part: Partition, visit: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>) -> Result<(), EngineError> {
        assert!(self.partition == Partition::WHOLE || self.partition == part, "{:?}", self.partition);
        self.about_to(Moment::Show);
        if self.updates > 0 {
            let moments = self.first.0.values_mut().chain(self.second.0.values_mut());
            // As above.
            let _ = moments.map(|t| &mut t.data).try_for_each(|data| {
                let own = part.range(data.len());
                visit(&mut data[own])
            });
        }
        Ok(())
    }
    fn optimizer_gather(
        &mut self,
        fill: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>,
    ) -> Result<(WeightSet, WeightSet, u64), EngineError> {
        let (mut first, mut second) = (self.first.clone(), self.second.clone());
        if self.updates > 0 {
            // As above.
            let _ = first.0.values_mut().chain(second.0.values_mut()).try_for_each(|tensor| fill(&mut tensor.data));
        }
        Ok((first, second, self.updates))
    }
    fn update_partition(
        &mut self,
        o: &AdamW,
        lr: f64,
        grad_scale: f64,
        exchange: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        self.updates += 1;
        let correct = |beta: f64| 1.0 - beta.powi(self.updates as i32);
        let (c1, c2) = (correct(o.beta1), correct(o.beta2));
        for (name, weight) in &mut self.weights.0 {
            let decay = if weight.shape.len() > 1 { o.weight_decay } else { 0.0 };
            let (grads, first, second) = (&self.grads.0[name], self.first.0.get_mut(name), self.second.0.get_mut(name));
            let (first, second) = (first.unwrap(), second.unwrap());
            for i in self.partition.range(weight.data.len()) {
                let g = f64::from(grads.data[i]) * grad_scale;
                let m = o.beta1 * f64::from(first.data[i]) + (1.0 - o.beta1) * g;
                let v = o.beta2 * f64::from(second.data[i]) + (1.0 - o.beta2) * g * g;
                (first.data[i], second.data[i]) = (m as f32, v as f32);
                let w = f64::from(weight.data[i]);
                weight.data[i] = (w - lr * (m / c1 / ((v / c2).sqrt() + o.eps) + decay * w)) as f32;
            }
        }
        self.zero_grad();
        if self.partition != Partition::WHOLE {
            self.about_to(Moment::Exchange);
            // As above.
            let _ = self.weights.0.values_mut().try_for_each(|tensor| exchange(&mut tensor.data));
        }
        Ok(())
    }
    fn each_gradient(&mut self, visit: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>) -> Result<(), EngineError> {
        if !self.order.is_empty() {
            let mut all = self.flat();
            // One bucket: whether it is the last does not matter.
            let _ = visit(&mut all);
            self.set_flat(&all);
            return Ok(());
        }
        // Breaks off by itself.
        let _ = self.grads.0.values_mut().try_for_each(|tensor| visit(&mut tensor.data));
        Ok(())
    }
    fn gradients(&self) -> Result<WeightSet, EngineError> {
        Ok(self.grads.clone())
    }
    fn optimizer_export(&self) -> Result<(WeightSet, WeightSet, u64), EngineError> {
        assert_eq!(self.partition, Partition::WHOLE);
        Ok((self.first.clone(), self.second.clone(), self.updates))
    }
    fn optimizer_import(&mut self, first: &WeightSet, second: &WeightSet, updates: u64) -> Result<(), EngineError> {
        (self.first, self.second, self.updates) = (first.clone(), second.clone(), updates);
        self.partition = Partition::WHOLE;
        Ok(())
    }
}

/// A sample whose stored log-probs are the toy's own. `reward` is what it earned.
pub(crate) fn scored(
    toy: &Toy,
    group: u64,
    sample: u16,
    tokens: &[u32],
    mask: &[u8],
    reward: f64,
    version: u64,
) -> ScoredTrajectory {
    let logp: Vec<f32> =
        (0..tokens.len()).map(|t| if mask[t] == 1 { toy.logp(tokens[t - 1], tokens[t], 0.9) } else { 0.0 }).collect();
    let span = VersionSpan { start: 0, len: tokens.len() as u32, version: PolicyVersion(version), exact: true };
    ScoredTrajectory {
        trajectory: Trajectory {
            group: GroupId(group),
            sample: SampleIx(sample),
            token_ids: tokens.to_vec().into(),
            mask: mask.to_vec(),
            logp: logp.clone().into(),
            logp_sampled: logp.into(),
            spans: vec![span],
            temperature: 0.9,
            turns: Vec::new(),
            finish: FinishReason::Stop,
            generate_us: 0,
            context_json: "{}".into(),
        },
        score: Score { score: reward, breakdown: vec![("exact".into(), reward)], metadata_json: "{}".into() },
    }
}

/// The request of a step over these groups.
pub(crate) fn request(step: u64, groups: Vec<ReadyGroup>) -> StepRequest {
    let intent = StepIntent {
        step: StepId(step),
        base: PolicyVersion(step - 1),
        groups: groups.iter().map(|g| g.payload.group).collect(),
        digests: groups.iter().map(|g| g.digest.clone()).collect(),
    };
    let groups: Vec<GroupPayload> = groups.into_iter().map(|g| g.payload).collect();
    StepRequest { epoch: Epoch(1), intent, groups, replay: false, hash: false }
}

/// A step of `groups` groups of 4 samples: the policy earns 1 for each token equal to `goal`. Tokens are drawn from a
/// counter, so equal arguments give equal requests.
pub(crate) fn goal_request(toy: &Toy, step: u64, groups: u64, goal: u32) -> StepRequest {
    let vocab = toy.spec.vocab as u64;
    let ready = |g: u64| {
        let group = (step - 1) * groups + g;
        let sample = |s: u64| {
            let draw = |i: u64| ((group * 7919 + s * 104_729 + i * 1_299_709).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % vocab;
            let len = 4 + draw(99) % 6;
            let mut tokens: Vec<u32> = (0..len).map(|i| draw(i) as u32).collect();
            if s == 0 {
                tokens[2] = goal;
            }
            let mask: Vec<u8> = (0..len).map(|i| u8::from(i >= 2 && i != 3)).collect();
            let hits = tokens.iter().zip(&mask).filter(|&(&t, &m)| m == 1 && t == goal).count();
            scored(toy, group, s as u16, &tokens, &mask, hits as f64, step - 1)
        };
        let advantage = cohort_learner::advantage::grpo::Grpo { std: true, bessel: false, eps: 1e-4 };
        aggregator::ready(GroupId(group), (0..4).map(sample).collect(), &advantage).unwrap()
    };
    request(step, (0..groups).map(ready).collect())
}
