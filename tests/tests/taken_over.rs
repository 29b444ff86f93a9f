//! A group that is lost with its worker goes on elsewhere, from what was handed in of it: token for token, bit for bit.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
use anyhow::Result;
use cohort_engine::native::NativeEngine;
use cohort_engine::{Backend, EngineHandle, EngineOptions};
use cohort_model::ModelFiles;
use cohort_protocol::{
    AttemptId, Epoch, GroupId, GroupLease, LeasePurpose, PolicyVersion, SampleIx, SamplingParams, Trajectory, TurnPart,
};
use cohort_rollout::environments::order_desk::Orders;
use cohort_rollout::tape::Tapes;
use cohort_rollout::{AgentConfig, Dataset, EnvironmentConfig, Stage, registry};
use std::sync::Arc;

const SAMPLES: u16 = 4;

fn engine(files: &ModelFiles, threads: usize) -> Result<EngineHandle> {
    let (spec, weights) = (files.spec.clone(), files.weights()?);
    let make = move || {
        let mut engine = NativeEngine::new(spec, threads, 256 << 20)?.for_sampling();
        engine.import(&weights)?;
        Ok(Box::new(engine) as Box<dyn Backend>)
    };
    Ok(EngineHandle::start(make, EngineOptions::default())?)
}

/// The embedded task: several turns of the policy in an episode, with calls of a tool between them.
fn stage(files: &ModelFiles, threads: usize) -> Result<(Stage, Orders)> {
    let agent = AgentConfig { r#type: "tool".into(), max_new_tokens: 16, ..AgentConfig::default() };
    let environment = EnvironmentConfig { max_turns: 5, ..EnvironmentConfig::default() };
    let stage = Stage {
        engine: engine(files, threads)?,
        agent: registry::agent(&agent, files)?,
        environment: registry::environment(&environment)?,
    };
    Ok((stage, Orders::new(&environment, 1)?))
}

async fn play(stage: &Stage, lease: &Arc<GroupLease>, tapes: &Arc<Tapes>) -> Result<Vec<Trajectory>> {
    let tasks: Vec<_> = (0..SAMPLES)
        .map(|sample| {
            let (stage, lease, tapes) = (stage.clone(), lease.clone(), tapes.clone());
            tokio::spawn(async move { stage.run_taped(&lease, SampleIx(sample), None, Some(tapes)).await })
        })
        .collect();
    let mut done = Vec::new();
    for task in tasks {
        done.push(Trajectory { generate_us: 0, ..task.await?? });
    }
    Ok(done)
}

/// What was handed in when `tokens` of each sample had been said.
fn cut(parts: &[TurnPart], tokens: usize) -> Vec<TurnPart> {
    let mut left = [tokens; SAMPLES as usize];
    let mut out = Vec::new();
    for part in parts {
        let left = &mut left[usize::from(part.sample.0)];
        let mut part = part.clone();
        part.truncate(*left);
        *left -= part.len();
        if !part.is_empty() {
            out.push(part);
        }
    }
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_goes_on_elsewhere_with_the_same_bits_wherever_it_was_lost() -> Result<()> {
    let files = ModelFiles::open("builtin://order-desk")?;
    let ((stage, orders), (elsewhere, _)) = (stage(&files, 2)?, stage(&files, 1)?);
    let mut turns = 0;
    for group in (0..3).map(GroupId) {
        let lease = Arc::new(GroupLease {
            epoch: Epoch(1),
            purpose: LeasePurpose::Train,
            group,
            attempt: AttemptId(1),
            version: PolicyVersion(0),
            follows: false,
            samples: SAMPLES,
            item: orders.train(group),
            seed: 1,
            sampling: SamplingParams::plain(1.0, 16),
        });
        let tapes = Arc::new(Tapes::new(SAMPLES, vec![]));
        let whole = play(&stage, &lease, &tapes).await?;
        let parts = tapes.hand_in();
        assert_eq!(tapes.hand_in(), [], "each token is handed in once");
        turns += parts.len();
        let said: usize = parts.iter().map(TurnPart::len).sum();
        assert_eq!(said, whole.iter().map(Trajectory::completion_len).sum::<usize>());
        for tokens in [0, 1, 2, 5, 9, 14, 20, 33, 1000] {
            let begun = cut(&parts, tokens);
            let known: usize = begun.iter().map(TurnPart::len).sum();
            let drawn = elsewhere.engine.tokens_sampled();
            let tapes = Arc::new(Tapes::new(SAMPLES, begun));
            assert_eq!(play(&elsewhere, &lease, &tapes).await?, whole, "{group}, cut after {tokens} tokens of each sample");
            assert_eq!(elsewhere.engine.tokens_sampled() - drawn, (said - known) as u64, "what was said is not drawn again");
            tapes.rewind();
            assert_eq!(tapes.hand_in(), parts, "and the next worker could go on from all of it");
        }
    }
    assert!(turns > 12, "{turns} turns in 12 episodes: they are of several");
    Ok(())
}

#[test]
fn parts_that_do_not_fit_each_other_are_said_anew() {
    let mut part = TurnPart::empty(SampleIx(0), 1, 0);
    part.push(5, (-1.0, -1.0), (PolicyVersion(0), true));
    let tapes = Tapes::new(1, vec![part.clone(), TurnPart { sample: SampleIx(9), ..part }]);
    assert_eq!(tapes.hand_in(), [], "turn 1 without turn 0, and a sample that is not asked for");
}
