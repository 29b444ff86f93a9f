//! Company, shortage of memory and cancellations change no token.
use crate::world::*;
use cohort_engine::EngineOptions;
use proptest::prelude::*;

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
