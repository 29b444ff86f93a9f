//! Checks of a trajectory against itself, and the JSON that people and scripts see.
use cohort_protocol::codec::Column;
use cohort_protocol::export::TrajectoryJson;
use cohort_protocol::{
    FinishReason, GroupId, PolicyVersion, SampleIx, Score, ScoredTrajectory, Trajectory, Turn, TurnRole, VersionSpan,
};

fn trajectory() -> Trajectory {
    let span = |start, len, version| VersionSpan { start, len, version: PolicyVersion(version), exact: true };
    Trajectory {
        group: GroupId(7),
        sample: SampleIx(2),
        token_ids: Column(vec![1, 2, 3, 4, 5]),
        mask: vec![0, 1, 1, 0, 1],
        logp: Column(vec![0.0, -0.5, -1.25, 0.0, 0.0]),
        logp_sampled: Column(vec![0.0, -0.5, -1.25, 0.0, -0.0]),
        spans: vec![span(1, 2, 4), span(4, 1, 3)],
        temperature: 1.0,
        turns: vec![Turn::text(TurnRole::User, "hi"), Turn { reward: Some(0.5), ..Turn::text(TurnRole::Assistant, "ho") }],
        finish: FinishReason::Stop,
        generate_us: 1,
        context_json: "{\"order\":4711}".into(),
    }
}

#[test]
fn a_sound_trajectory_passes() {
    let trajectory = trajectory();
    trajectory.validate().unwrap();
    assert_eq!((trajectory.len(), trajectory.completion_len()), (5, 3));
    assert_eq!(trajectory.oldest_version(), Some(PolicyVersion(3)));
}

#[test]
fn every_contradiction_is_named() {
    type Spoil = fn(&mut Trajectory);
    let wrong: [(Spoil, &str); 14] = [
        (|t| t.token_ids.0.clear(), "0 tokens"),
        (|t| t.mask.truncate(4), "mask has 4 entries for 5 tokens"),
        (|t| t.logp.0.truncate(1), "logp has 1 entries"),
        (|t| t.logp_sampled.0.push(0.0), "logp_sampled has 6 entries"),
        (|t| t.mask[1] = 2, "mask[1] = 2"),
        (|t| t.mask[0] = 1, "sampled token 0"),
        (|t| t.spans[0].start = 0, "sampled token 2 has no policy version"),
        (|t| t.spans.clear(), "sampled token 1 has no policy version"),
        (|t| t.spans[1].len = 2, "past the end"),
        (|t| (t.spans[1].start, t.spans[1].len) = (u32::MAX, u32::MAX), "past the end"),
        (|t| t.logp.0[1] = f32::NAN, "logp[1] = NaN"),
        (|t| t.logp_sampled.0[2] = 0.1, "logp_sampled[2] = 0.1"),
        (|t| t.logp.0[4] = f32::NEG_INFINITY, "logp[4] = -inf"),
        (|t| t.temperature = 0.0, "temperature = 0"),
    ];
    for (spoil, named) in wrong {
        let mut spoilt = trajectory();
        spoil(&mut spoilt);
        let error = spoilt.validate().unwrap_err().to_string();
        assert!(error.starts_with("trajectory 7/2: ") && error.contains(named), "{error} names {named:?}");
    }
    let mut first = trajectory();
    first.mask[0] = 1;
    first.spans[0].start = 0;
    first.spans[0].len = 3;
    assert!(first.validate().unwrap_err().to_string().contains("the first token cannot be a sampled one"));
}

#[test]
fn json_keeps_its_shape() {
    let score = Score { score: 0.75, breakdown: vec![("exact".into(), 1.0)], metadata_json: "{}".into() };
    let scored = ScoredTrajectory { trajectory: trajectory(), score };
    let json = serde_json::to_value(TrajectoryJson::new(&scored, Some(-1.5))).unwrap();
    assert_eq!(json["trajectory_id"], "7-2");
    assert_eq!(json["turn_rewards"], serde_json::json!([null, 0.5]));
    assert_eq!((&json["total_reward"], &json["advantage"]), (&serde_json::json!(0.75), &serde_json::json!(-1.5)));
    assert_eq!(json["breakdown"], serde_json::json!({"exact": 1.0}));
    assert_eq!(json["token_ids"], serde_json::json!([1, 2, 3, 4, 5]));
    assert_eq!(json["mask"], serde_json::json!([0, 1, 1, 0, 1]));
    assert_eq!(json["spans"][1], serde_json::json!({"start": 4, "len": 1, "version": 3, "exact": true}));
    assert_eq!((&json["finish_reason"], &json["episode_length"]), (&"stop".into(), &2.into()));
    assert_eq!(json["metadata"]["order"], 4711);
    let back: TrajectoryJson = serde_json::from_value(json).unwrap();
    let again = back.clone().into_scored(GroupId(7), SampleIx(2));
    assert_eq!(again.trajectory, Trajectory { generate_us: 0, ..scored.trajectory.clone() });
    assert_eq!((again.score.score, &again.score.breakdown), (scored.score.score, &scored.score.breakdown));
    assert_eq!(
        back.logp.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
        trajectory().logp.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    );
}

#[test]
fn scenario_names_of_fields_are_read() {
    let turn: Turn = serde_json::from_str(r#"{"speaker": "agent", "message": "hello"}"#).unwrap();
    assert_eq!(turn, Turn::text(TurnRole::Assistant, "hello"));
    assert_eq!(serde_json::to_value(&turn).unwrap()["role"], "assistant");
}
