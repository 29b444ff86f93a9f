//! A fake backend whose logits are a hash of all tokens before them, and sequences that come and go.
use cohort_engine::{
    AdamW, Backend, Completion, Constraint, Decoding, DrawKey, EngineError, EngineHandle, EngineOptions, Extend, Forward, KvId,
    PackedBatch, Penalties, Truncation, Upstream,
};
use cohort_model::{DecoderSpec, Tensor, WeightSet};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

pub(crate) const VOCAB: usize = 11;
pub(crate) const CONTEXT: usize = 48;
pub(crate) const STOP: u32 = 7;

/// Logits by hash of every token and the weights it was fed under, memory for so many tokens in so many sequences.
pub(crate) struct Hashed {
    pub(crate) spec: DecoderSpec,
    pub(crate) memories: BTreeMap<u32, Vec<(u32, u64)>>,
    opened: u32,
    tokens: usize,
    salt: u64,
}

impl Hashed {
    fn new(tokens: usize) -> Self {
        let spec = DecoderSpec {
            family: cohort_model::Family::Llama,
            hidden: 1,
            layers: 0,
            heads: 1,
            kv_heads: 1,
            head_dim: 2,
            intermediate: 1,
            vocab: VOCAB,
            max_context: CONTEXT,
            norm_eps: 1e-5,
            rope_theta: 1e4,
            tied_embeddings: true,
        };
        Self { spec, memories: BTreeMap::new(), opened: 0, tokens, salt: 0 }
    }
}

pub(crate) fn unsupported<T>() -> Result<T, EngineError> {
    Err(EngineError::Input("not part of this fake".into()))
}

impl Backend for Hashed {
    fn spec(&self) -> &DecoderSpec {
        &self.spec
    }
    fn numerics(&self) -> String {
        "hash".into()
    }
    fn import(&mut self, weights: &WeightSet) -> Result<(), EngineError> {
        self.salt = u64::from(weights.0["salt"].data[0].to_bits());
        Ok(())
    }
    fn export(&self) -> Result<WeightSet, EngineError> {
        Ok(salt(f32::from_bits(self.salt as u32)))
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
        self.memories[&kv.0].len()
    }
    fn kv_truncate(&mut self, kv: KvId, len: usize) {
        self.memories.get_mut(&kv.0).unwrap().truncate(len);
    }
    fn kv_close(&mut self, kv: KvId) {
        self.memories.remove(&kv.0).unwrap();
    }
    fn extend(&mut self, work: &[Extend<'_>], logits: &mut [f32]) -> Result<(), EngineError> {
        let held: usize = self.memories.values().map(Vec::len).sum();
        let more: usize = work.iter().map(|w| w.tokens.len()).sum();
        if held + more > self.tokens {
            return Err(EngineError::Capacity(format!("{held} + {more} of {}", self.tokens)));
        }
        for (item, row) in work.iter().zip(logits.chunks_exact_mut(VOCAB)) {
            let memory = self.memories.get_mut(&item.kv.0).unwrap();
            assert!(!item.tokens.is_empty());
            memory.extend(item.tokens.iter().map(|t| (*t, self.salt)));
            let hash = memory.iter().fold(self.salt, |h, (t, salt)| {
                let x = (h ^ u64::from(*t + 1) ^ (salt << 8)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                x ^ (x >> 31)
            });
            for (v, logit) in row.iter_mut().enumerate() {
                *logit = ((hash >> (v * 5)) & 31) as f32 / 8.0;
            }
        }
        Ok(())
    }
    fn forward(&mut self, _: &PackedBatch, _: bool) -> Result<Forward, EngineError> {
        unsupported()
    }
    fn backward(&mut self, _: Upstream<'_>) -> Result<(), EngineError> {
        unsupported()
    }
    fn zero_grad(&mut self) {}
    fn grad_norm(&mut self) -> Result<f64, EngineError> {
        unsupported()
    }
    fn update(&mut self, _: &AdamW, _: f64, _: f64) -> Result<(), EngineError> {
        unsupported()
    }
    fn updates(&self) -> u64 {
        0
    }
    fn each_gradient(&mut self, _: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>) -> Result<(), EngineError> {
        unsupported()
    }
    fn gradients(&self) -> Result<WeightSet, EngineError> {
        unsupported()
    }
    fn optimizer_export(&self) -> Result<(WeightSet, WeightSet, u64), EngineError> {
        unsupported()
    }
    fn optimizer_import(&mut self, _: &WeightSet, _: &WeightSet, _: u64) -> Result<(), EngineError> {
        unsupported()
    }
}

pub(crate) fn salt(value: f32) -> WeightSet {
    WeightSet([("salt".to_owned(), Tensor { shape: vec![1], data: vec![value] })].into())
}

pub(crate) fn engine(tokens: usize, options: EngineOptions) -> EngineHandle {
    EngineHandle::start(move || Ok(Box::new(Hashed::new(tokens))), options).unwrap()
}

/// Ways to draw, by sample.
pub(crate) const NARROW: [(Penalties, Truncation); 4] = [
    (Penalties { repetition: 1.5, presence: 0.5, frequency: 0.25 }, Truncation::OFF),
    (Penalties::OFF, Truncation::OFF),
    (Penalties::OFF, Truncation { top_k: 5, top_p: 0.8, min_p: 0.05 }),
    (Penalties { repetition: 0.8, presence: -0.5, frequency: 1.0 }, Truncation { top_k: 0, top_p: 0.6, min_p: 0.0 }),
];

/// A grammar of sorts: two tokens of one kind never stand side by side, and the end comes only after an even number.
#[derive(Default)]
pub(crate) struct Changing {
    last: Option<u32>,
    made: u32,
}

impl Constraint for Changing {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), EngineError> {
        for (token, logit) in logits.iter_mut().enumerate() {
            let same = self.last.is_some_and(|last| last % 3 == token as u32 % 3);
            if same || (token as u32 == STOP && self.made % 2 == 1) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }
    fn push(&mut self, token: u32) -> Result<(), EngineError> {
        assert!(self.last.is_none_or(|last| last % 3 != token % 3), "a token that was not allowed");
        (self.last, self.made) = (Some(token), self.made + 1);
        Ok(())
    }
}

pub(crate) fn decoding(sample: u16, max_new_tokens: u32) -> Decoding {
    let key = DrawKey { seed: 5, group: 3, sample };
    let (penalties, truncation) = NARROW[usize::from(sample) % NARROW.len()];
    let greedy = sample.is_multiple_of(3);
    let constraint = (sample % 5 < 2).then(|| Box::new(Changing::default()) as Box<dyn Constraint>);
    Decoding { greedy, constraint, penalties, truncation, stop_ids: vec![STOP], ..Decoding::plain(1.0, max_new_tokens, key) }
}

/// What sequences may begin with: as long as a prompt that is shared.
pub(crate) const BEGINNING: [u32; 20] = [3, 1, 4, 1, 5, 2, 0, 5, 3, 5, 2, 5, 0, 1, 2, 3, 4, 5, 0, 2];

/// One sequence: turns of (tokens to append, budget), and after how many yields to give up, if ever.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) turns: Vec<(Vec<u32>, u32)>,
    pub(crate) delay: usize,
    pub(crate) patience: Option<usize>,
}

pub(crate) async fn run(engine: &EngineHandle, plan: &Plan, decoding: impl Fn(u32) -> Decoding) -> Vec<Completion> {
    let mut session = engine.session();
    let mut out = Vec::new();
    for (tokens, budget) in &plan.turns {
        match session.generate(tokens, decoding(*budget)).await {
            Ok(completion) => out.push(completion),
            Err(EngineError::Input(why)) if why.contains("context") => break,
            Err(other) => panic!("{other}"),
        }
    }
    out
}

pub(crate) fn plan() -> impl Strategy<Value = Plan> {
    let turn = (prop::collection::vec(0..VOCAB as u32, 1..9), 1u32..9);
    let beginning = prop_oneof![Just(0), Just(20), 0usize..=20];
    (prop::collection::vec(turn, 1..4), beginning, 0usize..40, prop::option::weighted(0.2, 0usize..60)).prop_map(
        |(mut turns, beginning, delay, patience)| {
            turns[0].0.splice(0..0, BEGINNING[..beginning].iter().copied());
            Plan { turns, delay, patience }
        },
    )
}
