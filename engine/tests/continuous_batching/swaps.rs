//! Weights change in the middle: every token is its own version's.
use crate::world::*;
use cohort_engine::{Completion, Constraint, Decoding, EngineError, EngineHandle, EngineOptions, Penalties, Span};
use cohort_model::WeightSet;
use proptest::prelude::*;

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
