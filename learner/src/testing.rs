//! Small samples for this crate's tests.
use cohort_protocol::{FinishReason, GroupId, PolicyVersion, SampleIx, Score, ScoredTrajectory, Trajectory, VersionSpan};

/// Two prompt tokens, a sampled one, a tool's, two sampled ones.
pub(crate) fn scored(group: u64, sample: u16, reward: f64) -> ScoredTrajectory {
    let token = |i: u64| u32::try_from((group * 31 + u64::from(sample) * 7 + i * 3) % 11).unwrap();
    let mask = vec![0, 0, 1, 0, 1, 1];
    let logp: Vec<f32> = mask.iter().map(|&m| if m == 1 { -1.5 } else { 0.0 }).collect();
    ScoredTrajectory {
        trajectory: Trajectory {
            group: GroupId(group),
            sample: SampleIx(sample),
            token_ids: (0..6).map(token).collect::<Vec<_>>().into(),
            mask,
            logp: logp.clone().into(),
            logp_sampled: logp.into(),
            spans: [(2, 1), (4, 2)].map(|(start, len)| VersionSpan { start, len, version: PolicyVersion(0), exact: true }).into(),
            temperature: 1.0,
            turns: Vec::new(),
            finish: FinishReason::Stop,
            generate_us: 0,
            context_json: "{}".into(),
        },
        score: Score { score: reward, breakdown: vec![("exact".into(), reward)], metadata_json: "{}".into() },
    }
}
