//! Ranks whose sums a fabric carries: the same bits, and what is done when it breaks.
use super::lost::lose_a_follower;
use super::{Session, commits, config, engine, in_parts, native, requests, toy};
use crate::loom::Loom;
use cohort_learner::config::TrainingConfig;
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[tokio::test(flavor = "multi_thread")]
async fn sums_on_a_fabric_have_the_same_bits() {
    let training = config(4);
    let alone = commits(1, &training, native).await;
    for count in [2, 4] {
        let loom = Arc::new(Loom::default());
        let mut session = Session::on(Some(&loom), count, training.clone(), native).await;
        for index in 1..count {
            session.join(index, engine(native)).await;
        }
        for (request, want) in requests(3, &training).iter().zip(&alone) {
            assert_eq!(session.step(request).await, *want, "{count} ranks");
        }
        assert_eq!(loom.made.load(Ordering::Relaxed), 1, "one outlasts the steps");
        assert!(loom.sums.load(Ordering::Relaxed) >= 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_lost_while_the_others_wait_on_the_fabric_is_named_and_another_fabric_is_made() {
    let training = config(2);
    let alone = commits(1, &training, toy).await;
    let requests = requests(2, &training);
    let loom = Arc::new(Loom::default());
    let mut session = Session::on(Some(&loom), 2, training, toy).await;
    lose_a_follower(&mut session, &requests, &alone).await;
    assert_eq!(loom.made.load(Ordering::Relaxed), 2, "of the same process");
    assert!(loom.sums.load(Ordering::Relaxed) > 0);
}

/// Breaks once: made anew. Breaks in two steps in a row, or no rank but the lead has one: the lines carry the sums.
#[tokio::test(flavor = "multi_thread")]
async fn a_fabric_that_does_not_work_is_left_alone_and_no_bit_changes() {
    let training = config(2);
    let alone = commits(1, &training, toy).await;
    let requests = requests(3, &training);
    let run = async |training: TrainingConfig, (breaks, lead_only, made, used): (u32, bool, u32, bool)| {
        let loom = Arc::new(Loom { breaks: breaks.into(), lead_only, ..Loom::default() });
        let mut session = Session::on(Some(&loom), 2, training, toy).await;
        session.join(1, engine(toy)).await;
        for (request, want) in requests.iter().zip(&alone) {
            // Where the optimizer's state is in parts, none is lost: both ranks are still there.
            assert_eq!(session.step(request).await, *want, "{breaks} {lead_only}");
        }
        let counts = (loom.made.load(Ordering::Relaxed), loom.sums.load(Ordering::Relaxed) > 0);
        assert_eq!(counts, (made, used), "{breaks} {lead_only}");
    };
    for training in [in_parts(&training), training.clone()] {
        let run = |how| run(training.clone(), how);
        tokio::join!(run((1, false, 2, true)), run((9, false, 2, false)), run((0, true, 1, false)));
    }
}
