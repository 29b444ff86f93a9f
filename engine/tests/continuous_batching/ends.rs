//! Stops, refusals, versions and a thread that dies.
use crate::world::*;
use cohort_engine::{Decoding, EngineError, EngineOptions, Finish, LocalRing, Penalties, Span, Truncation, WeightRing};
use std::sync::Arc;

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
