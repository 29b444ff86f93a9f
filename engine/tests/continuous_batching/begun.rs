//! Generations that go on from tokens that were sampled before.
use crate::world::*;
use cohort_engine::{Completion, Decoding, EngineError, EngineOptions, Finish, Sampled};

/// The first tokens of a completion, as they came.
fn first(whole: &Completion, count: usize) -> Vec<Sampled> {
    let versions = whole.spans.iter().flat_map(|span| std::iter::repeat_n((span.version, span.exact), span.tokens as usize));
    let sampled = |(i, (version, exact))| Sampled {
        token: whole.tokens[i],
        logp: whole.logp[i],
        logp_sampled: whole.logp_sampled[i],
        version,
        exact,
    };
    versions.take(count).enumerate().map(sampled).collect()
}

#[tokio::test]
async fn wherever_it_was_cut_a_generation_ends_as_it_would_have() {
    let (engine, elsewhere) = (engine(1000, EngineOptions::default()), engine(1000, EngineOptions::default()));
    let mut cuts = 0;
    // Every way to draw, with and without a grammar.
    for sample in 0..20 {
        let mut session = engine.session();
        let whole = session.generate(&BEGINNING, decoding(sample, 9)).await.unwrap();
        let after = session.generate(&[3], decoding(sample, 4)).await.unwrap();
        for count in 1..whole.tokens.len() {
            let drawn = elsewhere.tokens_sampled();
            let mut session = elsewhere.session();
            let begun = first(&whole, count);
            let got = session.generate(&BEGINNING, Decoding { begun, ..decoding(sample, 9) }).await.unwrap();
            assert_eq!(got, whole, "sample {sample}, cut after {count}");
            assert_eq!(elsewhere.tokens_sampled() - drawn, (whole.tokens.len() - count) as u64, "nothing is drawn twice");
            assert_eq!(session.generate(&[3], decoding(sample, 4)).await.unwrap(), after);
            cuts += 1;
        }
    }
    assert!(cuts > 60, "{cuts}");
}

#[tokio::test]
async fn a_generation_that_is_over_cannot_go_on() {
    let engine = engine(1000, EngineOptions::default());
    let whole = engine.session().generate(&BEGINNING, Decoding { stop_ids: vec![], ..decoding(1, 4) }).await.unwrap();
    assert_eq!((whole.tokens.len(), whole.finish), (4, Finish::Length));
    let again = |decoding: Decoding| {
        let mut session = engine.session();
        async move { session.generate(&BEGINNING, decoding).await }
    };
    let begun = first(&whole, 4);
    let error = again(Decoding { stop_ids: vec![], begun: begun.clone(), ..decoding(1, 4) }).await.unwrap_err();
    assert!(matches!(&error, EngineError::Input(why) if why.contains("nothing is left")), "{error}");
    let stop_ids = vec![begun[1].token];
    let error = again(Decoding { stop_ids, begun: begun.clone(), ..decoding(1, 9) }).await.unwrap_err();
    assert!(matches!(&error, EngineError::Input(why) if why.contains("ends the generation")), "{error}");
    let outside = Sampled { token: VOCAB as u32, ..begun[0] };
    assert!(again(Decoding { stop_ids: vec![], begun: vec![outside], ..decoding(1, 9) }).await.is_err());
}
