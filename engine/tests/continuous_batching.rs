//! Whatever else is in the engine, however little memory it has and whoever goes away: a sequence gets the tokens that it
//! gets alone. The backend here is a fake whose logits are a hash of all tokens before them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
use cohort_engine::{
    AdamW, Backend, Completion, Constraint, Decoding, DrawKey, EngineError, EngineHandle, EngineOptions, Extend, Finish, Forward,
    KvId, LocalRing, PackedBatch, Penalties, Span, Truncation, Upstream, WeightRing,
};
use cohort_model::{DecoderSpec, Tensor, WeightSet};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const VOCAB: usize = 11;
const CONTEXT: usize = 48;
const STOP: u32 = 7;

/// Logits by hash of every token and the weights it was fed under, memory for so many tokens in so many sequences.
struct Hashed {
    spec: DecoderSpec,
    memories: BTreeMap<u32, Vec<(u32, u64)>>,
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

fn unsupported<T>() -> Result<T, EngineError> {
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

fn salt(value: f32) -> WeightSet {
    WeightSet([("salt".to_owned(), Tensor { shape: vec![1], data: vec![value] })].into())
}

fn engine(tokens: usize, options: EngineOptions) -> EngineHandle {
    EngineHandle::start(move || Ok(Box::new(Hashed::new(tokens))), options).unwrap()
}

/// Ways to draw, by sample.
const NARROW: [(Penalties, Truncation); 4] = [
    (Penalties { repetition: 1.5, presence: 0.5, frequency: 0.25 }, Truncation::OFF),
    (Penalties::OFF, Truncation::OFF),
    (Penalties::OFF, Truncation { top_k: 5, top_p: 0.8, min_p: 0.05 }),
    (Penalties { repetition: 0.8, presence: -0.5, frequency: 1.0 }, Truncation { top_k: 0, top_p: 0.6, min_p: 0.0 }),
];

/// A grammar of sorts: two tokens of one kind never stand side by side, and the end comes only after an even number.
#[derive(Default)]
struct Changing {
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

fn decoding(sample: u16, max_new_tokens: u32) -> Decoding {
    let key = DrawKey { seed: 5, group: 3, sample };
    let (penalties, truncation) = NARROW[usize::from(sample) % NARROW.len()];
    let greedy = sample.is_multiple_of(3);
    let constraint = (sample % 5 < 2).then(|| Box::new(Changing::default()) as Box<dyn Constraint>);
    Decoding { greedy, constraint, penalties, truncation, stop_ids: vec![STOP], ..Decoding::plain(1.0, max_new_tokens, key) }
}

/// What sequences may begin with: as long as a prompt that is shared.
const BEGINNING: [u32; 20] = [3, 1, 4, 1, 5, 2, 0, 5, 3, 5, 2, 5, 0, 1, 2, 3, 4, 5, 0, 2];

/// One sequence: turns of (tokens to append, budget), and after how many yields to give up, if ever.
#[derive(Debug, Clone)]
struct Plan {
    turns: Vec<(Vec<u32>, u32)>,
    delay: usize,
    patience: Option<usize>,
}

async fn run(engine: &EngineHandle, plan: &Plan, decoding: impl Fn(u32) -> Decoding) -> Vec<Completion> {
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

fn plan() -> impl Strategy<Value = Plan> {
    let turn = (prop::collection::vec(0..VOCAB as u32, 1..9), 1u32..9);
    let beginning = prop_oneof![Just(0), Just(20), 0usize..=20];
    (prop::collection::vec(turn, 1..4), beginning, 0usize..40, prop::option::weighted(0.2, 0usize..60)).prop_map(
        |(mut turns, beginning, delay, patience)| {
            turns[0].0.splice(0..0, BEGINNING[..beginning].iter().copied());
            Plan { turns, delay, patience }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn company_changes_no_token(
        plans in prop::collection::vec(plan(), 1..12),
        tokens in CONTEXT..4 * CONTEXT,
        max_running in 1usize..8,
        max_step_tokens in 1usize..20,
        max_jobs in 1usize..12,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let crowded = engine(tokens, EngineOptions { queue: 2, max_jobs, max_running, max_step_tokens, keep_stale_kv: false, nice: 0 });
        let alone = engine(usize::MAX, EngineOptions::default());
        runtime.block_on(async {
            let tasks: Vec<_> = plans.iter().cloned().enumerate().map(|(i, plan)| {
                let engine = crowded.clone();
                tokio::task::spawn(async move {
                    for _ in 0..plan.delay {
                        tokio::task::yield_now().await;
                    }
                    let patience = async {
                        let Some(yields) = plan.patience else { return std::future::pending().await };
                        for _ in 0..yields {
                            tokio::task::yield_now().await;
                        }
                    };
                    tokio::select! {
                        done = run(&engine, &plan, |new| decoding(i as u16, new)) => Some(done),
                        () = patience => None,
                    }
                })
            }).collect();
            for (i, task) in tasks.into_iter().enumerate() {
                if let Some(got) = task.await.unwrap() {
                    prop_assert_eq!(got, run(&alone, &plans[i], |new| decoding(i as u16, new)).await);
                }
            }
            Ok(())
        })?;
    }
}

/// Weights of a version.
fn version(v: u64) -> WeightSet {
    salt(1.0 + v as f32)
}

/// The state of a turn in its middle, as a constraint: the first token of a generation under it is the turn's next one.
struct Resumed {
    constraint: Option<Box<dyn Constraint>>,
    penalties: Penalties,
    context: Vec<u32>,
    made: usize,
}

impl Constraint for Resumed {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), EngineError> {
        if let Some(constraint) = &mut self.constraint {
            constraint.mask(logits)?;
        }
        self.penalties.apply(logits, &self.context, self.made);
        Ok(())
    }
    fn push(&mut self, _: u32) -> Result<(), EngineError> {
        Ok(())
    }
}

/// What an engine that only ever had this version's weights draws after a context, one token, in a turn that made the last
/// `made` tokens of it.
async fn alone_under(v: u64, context: &[u32], made: usize, sample: u16) -> Completion {
    let engine = engine(usize::MAX, EngineOptions::default());
    engine.load(v, version(v)).await.unwrap();
    let Decoding { mut constraint, penalties, .. } = decoding(sample, 1);
    if let Some(constraint) = &mut constraint {
        context[context.len() - made..].iter().for_each(|token| constraint.push(*token).unwrap());
    }
    let resumed = Resumed { constraint, penalties, context: context.to_vec(), made };
    let decoding = Decoding { constraint: Some(Box::new(resumed)), penalties: Penalties::OFF, ..decoding(sample, 1) };
    engine.session().generate(context, decoding).await.unwrap()
}

/// A sampled token: its context, of which its turn made so many, both log-probs, version and exactness.
type Token = (Vec<u32>, usize, (u32, f32, f32), Span);

fn drawn(completion: &Completion, i: usize) -> (u32, f32, f32) {
    (completion.tokens[i], completion.logp[i], completion.logp_sampled[i])
}

/// Every token of a sequence's turns.
fn by_token(plan: &Plan, done: &[Completion]) -> Vec<Token> {
    let (mut context, mut out) = (Vec::new(), Vec::new());
    for ((append, _), completion) in plan.turns.iter().zip(done) {
        context.extend_from_slice(append);
        let spans = completion.spans.iter().flat_map(|span| (0..span.tokens).map(|_| *span));
        for (made, span) in spans.enumerate() {
            out.push((context.clone(), made, drawn(completion, made), span));
            context.push(completion.tokens[made]);
        }
    }
    out
}

/// Sequences that live through swaps of weights at whatever moment, with company that comes and goes.
async fn through_swaps(engine: &EngineHandle, plans: &[Plan], swaps: &[usize]) -> Vec<Option<Vec<Completion>>> {
    engine.load(0, version(0)).await.unwrap();
    let yields = |n: usize| async move {
        for _ in 0..n {
            tokio::task::yield_now().await;
        }
    };
    let swapper = tokio::task::spawn({
        let (engine, swaps) = (engine.clone(), swaps.to_vec());
        async move {
            for (v, pause) in swaps.into_iter().enumerate() {
                yields(pause).await;
                engine.load(v as u64 + 1, version(v as u64 + 1)).await.unwrap();
            }
        }
    });
    let tasks: Vec<_> = plans
        .iter()
        .cloned()
        .enumerate()
        .map(|(i, plan)| {
            let engine = engine.clone();
            tokio::task::spawn(async move {
                yields(plan.delay).await;
                let patience = async {
                    match plan.patience {
                        Some(n) => yields(n).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    done = run(&engine, &plan, |new| decoding(i as u16, new)) => Some(done),
                    () = patience => None,
                }
            })
        })
        .collect();
    let mut out = Vec::new();
    for task in tasks {
        out.push(task.await.unwrap());
    }
    swapper.await.unwrap();
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// S6: over any arrivals, cancellations and swaps, each token is the one that its version alone would have drawn after
    /// what was there before; with kept memory those that are not say so.
    #[test]
    fn a_token_is_its_own_versions(
        plans in prop::collection::vec(plan(), 1..8),
        swaps in prop::collection::vec(0usize..30, 0..5),
        tokens in CONTEXT..4 * CONTEXT,
        max_running in 1usize..8,
        max_step_tokens in 1usize..20,
        keep_stale_kv in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let engine = engine(tokens, EngineOptions { max_running, max_step_tokens, keep_stale_kv, nice: 0, ..EngineOptions::default() });
        runtime.block_on(async {
            let done = through_swaps(&engine, &plans, &swaps).await;
            for (i, done) in done.iter().enumerate().filter_map(|(i, done)| Some((i, done.as_ref()?))) {
                let mut last = 0;
                for (context, made, token, span) in by_token(&plans[i], done) {
                    prop_assert!(span.version >= last && (span.exact || keep_stale_kv));
                    last = span.version;
                    if span.exact {
                        let want = alone_under(span.version, &context, made, i as u16).await;
                        prop_assert_eq!(token, drawn(&want, 0), "after {:?} under {:?}", context, span);
                    }
                }
            }
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn a_swap_in_the_middle_of_a_generation_makes_two_spans_each_exact() {
    let engine = engine(1000, EngineOptions::default());
    engine.load(0, version(0)).await.unwrap();
    // The engine's thread waits at the third token until the swap is in its queue.
    let (reached, at_third) = tokio::sync::oneshot::channel();
    let (go, may_go) = std::sync::mpsc::channel();
    let (mut reached, mut seen) = (Some(reached), 0);
    let watch = move |_token: u32| {
        seen += 1;
        if seen == 3 {
            reached.take().unwrap().send(()).unwrap();
            may_go.recv().unwrap();
        }
        false
    };
    let decoding = Decoding { watch: Some(Box::new(watch)), stop_ids: vec![], ..decoding(1, 7) };
    let mut session = engine.session();
    let generating = tokio::spawn(async move { session.generate(&[1, 2], decoding).await.unwrap() });
    at_third.await.unwrap();
    let swap = engine.load(1, version(1));
    tokio::pin!(swap);
    assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(swap.as_mut().poll(cx))).await.is_pending());
    go.send(()).unwrap();
    swap.await.unwrap();
    let done = generating.await.unwrap();
    let span = |tokens, version| Span { tokens, version, exact: true };
    assert_eq!(done.spans, [span(3, 0), span(4, 1)]);
    let plan = Plan { turns: vec![(vec![1, 2], 7)], delay: 0, patience: None };
    for (context, made, token, span) in by_token(&plan, &[done]) {
        let want = alone_under(span.version, &context, made, 1).await;
        assert_eq!(token, drawn(&want, 0), "after {context:?} under {span:?}");
    }
}

#[tokio::test]
async fn kept_memory_is_marked_never_shared_and_gone_with_its_session() {
    let engine = engine(1000, EngineOptions { keep_stale_kv: true, ..EngineOptions::default() });
    engine.load(0, version(0)).await.unwrap();
    let mut old = engine.session();
    old.generate(&BEGINNING, Decoding { stop_ids: vec![], ..decoding(1, 2) }).await.unwrap();
    engine.load(1, version(1)).await.unwrap();
    let kept = old.generate(&[4], Decoding { stop_ids: vec![], ..decoding(1, 2) }).await.unwrap();
    assert_eq!(kept.spans, [Span { tokens: 2, version: 1, exact: false }]);
    // Another that begins alike takes nothing over from it.
    let fresh = engine.session().generate(&BEGINNING, decoding(2, 1)).await.unwrap();
    assert!(fresh.spans[0].exact);
    assert_eq!(fresh, alone_under(1, &BEGINNING, 0, 2).await);
}

#[tokio::test]
async fn a_sequence_that_cannot_fit_fails_and_the_engine_goes_on() {
    let engine = engine(10, EngineOptions::default());
    let error = engine.session().generate(&[0; 12], decoding(1, 4)).await.unwrap_err();
    assert!(matches!(error, EngineError::Capacity(_)), "{error}");
    let done = engine.session().generate(&[1, 2], decoding(1, 4)).await.unwrap();
    assert!(!done.tokens.is_empty());
}

#[tokio::test]
async fn stops_and_refusals_say_why() {
    let engine = engine(1000, EngineOptions::default());
    let mut session = engine.session();
    let mut seen = 0;
    let watched = Decoding {
        watch: Some(Box::new(move |_token: u32| {
            seen += 1;
            seen == 2
        })),
        stop_ids: vec![],
        ..decoding(1, 9)
    };
    let done = session.generate(&[1], watched).await.unwrap();
    assert_eq!((done.tokens.len(), done.finish), (2, Finish::Stop));
    assert_eq!(done.spans, [Span { tokens: 2, version: 0, exact: true }]);
    let done = session.generate(&[2], Decoding { stop_ids: vec![], ..decoding(1, 3) }).await.unwrap();
    assert_eq!((done.tokens.len(), done.finish), (3, Finish::Length));
    for (tokens, decoding) in [
        (vec![VOCAB as u32], decoding(1, 3)),
        (vec![0; CONTEXT], decoding(1, 3)),
        (vec![0], Decoding { temperature: 0.0, ..decoding(1, 3) }),
        (vec![0], decoding(1, 0)),
        (vec![0], Decoding { truncation: Truncation { top_p: 0.0, ..Truncation::OFF }, ..decoding(1, 3) }),
        (vec![0], Decoding { penalties: Penalties { repetition: 0.0, ..Penalties::OFF }, ..decoding(1, 3) }),
    ] {
        let error = engine.session().generate(&tokens, decoding).await.unwrap_err();
        assert!(matches!(error, EngineError::Input(_)), "{error}");
    }
}

#[tokio::test]
async fn weights_carry_their_version_and_stale_memory_is_not_decoded_from() {
    let ring: Arc<dyn WeightRing> = Arc::new(LocalRing::new(2));
    let (teacher, student) = (engine(1000, EngineOptions::default()), engine(1000, EngineOptions::default()));
    let mut open = student.session();
    let first = open.generate(&[1, 2, 3], decoding(1, 2)).await.unwrap();
    let second = open.generate(&[4], decoding(1, 2)).await.unwrap();

    teacher.with_backend(|b| b.import(&salt(9.5))).await.unwrap().unwrap();
    assert_eq!(teacher.label().await.unwrap(), None, "changed weights have no name");
    assert!(matches!(teacher.session().generate(&[1], decoding(1, 1)).await, Err(EngineError::Input(_))));
    let (weights, label) = teacher.snapshot(4).await.unwrap();
    assert_eq!((label.version, label.digest), (4, weights.digest()));
    assert!(teacher.publish(ring.clone(), 1, 3).await.is_err(), "it is not version 3");
    teacher.publish(ring.clone(), 1, 4).await.unwrap();

    assert!(student.swap(ring.clone(), 1, 4, label.digest ^ 1).await.is_err());
    student.swap(ring.clone(), 1, 4, label.digest).await.unwrap();
    student.swap(ring.clone(), 0, 4, label.digest).await.unwrap(); // already there: no slot is read
    assert!(student.swap(ring, 1, 4, label.digest ^ 1).await.is_err());

    // A session that lived through the swap goes on as one that begins with the same tokens under the new weights.
    let through = open.generate(&[5], decoding(1, 4)).await.unwrap();
    assert_eq!(through.spans, [Span { tokens: through.tokens.len() as u32, version: 4, exact: true }]);
    let context = [&[1, 2, 3], &first.tokens[..], &[4], &second.tokens[..], &[5]].concat();
    assert_eq!(student.session().generate(&context, decoding(1, 4)).await.unwrap(), through);

    student.flip_weight_bit("salt", 0, 3).await.unwrap();
    assert_eq!(student.label().await.unwrap(), Some(label), "a fault does not tell");
    assert_ne!(student.snapshot(4).await.unwrap().1.digest, label.digest);
}

#[tokio::test]
async fn a_dead_thread_is_reported() {
    let engine = engine(1000, EngineOptions::default());
    // As a panic, without its report on standard error.
    let gone = engine.with_backend(|_| std::panic::resume_unwind(Box::new("a bug"))).await;
    let _: Result<(), EngineError> = gone;
    let error = engine.session().generate(&[1], decoding(1, 1)).await.unwrap_err();
    assert!(matches!(error, EngineError::Stopped(_)), "{error}");
}
