//! Generations that go on from tokens that were sampled before.
use crate::world::*;
use cohort_engine::{Completion, Decoding, EngineError, EngineOptions, Sampled};

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
async fn a_generation_that_was_over_is_given_back_as_it_was() {
    let engine = engine(1000, EngineOptions::default());
    for sample in 0..20 {
        let mut session = engine.session();
        let whole = session.generate(&BEGINNING, decoding(sample, 9)).await.unwrap();
        let after = session.generate(&[3], decoding(sample, 4)).await.unwrap();
        let (drawn, mut session) = (engine.tokens_sampled(), engine.session());
        let begun = first(&whole, whole.tokens.len());
        assert_eq!(session.generate(&BEGINNING, Decoding { begun, ..decoding(sample, 9) }).await.unwrap(), whole);
        assert_eq!(engine.tokens_sampled(), drawn, "nothing is drawn");
        assert_eq!(session.generate(&[3], decoding(sample, 4)).await.unwrap(), after, "and the session goes on");
    }
    let endless = Decoding { stop_ids: vec![], ..decoding(1, 4) };
    let whole = engine.session().generate(&BEGINNING, endless).await.unwrap();
    let (begun, mut session) = (first(&whole, 4), engine.session());
    let stop_ids = vec![begun[1].token];
    let late = Decoding { stop_ids, begun: begun.clone(), ..decoding(1, 9) };
    let error = session.generate(&BEGINNING, late).await.unwrap_err();
    assert!(matches!(&error, EngineError::Input(why) if why.contains("ends the generation")), "{error}");
    let outside = vec![Sampled { token: VOCAB as u32, ..begun[0] }];
    let outside = Decoding { stop_ids: vec![], begun: outside, ..decoding(1, 9) };
    assert!(engine.session().generate(&BEGINNING, outside).await.is_err());
}
