//! What messages are made of.
use cohort_protocol::codec::Column;
use cohort_protocol::{
    AttemptId, Epoch, FinishReason, GroupId, GroupPayload, LeasePurpose, PolicyVersion, SampleIx, Score, ScoredTrajectory,
    StepId, StepIntent, ToolCall, ToolResult, Trajectory, Turn, TurnEnd, TurnPart, TurnRole, VersionSpan,
};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

/// Any text, with the characters that tempt a codec.
pub(crate) fn text() -> impl Strategy<Value = String> {
    "[a-z{}\"\\\\\u{0}\u{7f}é語\u{1f375}]{0,12}"
}

pub(crate) fn f64s() -> impl Strategy<Value = f64> {
    any::<u64>().prop_map(f64::from_bits)
}

pub(crate) fn f32s() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(f32::from_bits)
}

pub(crate) fn version() -> impl Strategy<Value = PolicyVersion> {
    any::<u64>().prop_map(PolicyVersion)
}

pub(crate) fn purpose() -> impl Strategy<Value = LeasePurpose> {
    prop_oneof![Just(LeasePurpose::Train), any::<(u64, bool)>().prop_map(|(step, greedy)| LeasePurpose::Eval { step, greedy })]
}

/// What every answer is fenced by.
pub(crate) fn fence() -> impl Strategy<Value = (Epoch, LeasePurpose, GroupId, AttemptId)> {
    (any::<(u64, u64, u32)>(), purpose()).prop_map(|((e, g, a), purpose)| (Epoch(e), purpose, GroupId(g), AttemptId(a)))
}

pub(crate) fn turn() -> impl Strategy<Value = Turn> {
    let role = prop_oneof![Just(TurnRole::System), Just(TurnRole::User), Just(TurnRole::Assistant), Just(TurnRole::Tool)];
    let call = (text(), text()).prop_map(|(name, arguments)| ToolCall { name, arguments });
    let result = (text(), text(), any::<bool>()).prop_map(|(name, content, is_error)| ToolResult { name, content, is_error });
    (role, text(), any::<(u32, u32)>(), of(f64s()), vec(call, 0..2), vec(result, 0..2)).prop_map(
        |(role, content, (start, len), reward, tool_calls, tool_results)| Turn {
            role,
            content,
            start,
            len,
            reward,
            tool_calls,
            tool_results,
        },
    )
}

pub(crate) fn span() -> impl Strategy<Value = VersionSpan> {
    let all = any::<(u32, u32, u64, bool)>();
    all.prop_map(|(start, len, v, exact)| VersionSpan { start, len, version: PolicyVersion(v), exact })
}

pub(crate) fn part() -> impl Strategy<Value = TurnPart> {
    let ended = of(prop_oneof![Just(TurnEnd::Stop), Just(TurnEnd::Length), Just(TurnEnd::Context)]);
    let columns = (vec(any::<u32>(), 0..20), vec(f32s(), 0..20), vec(f32s(), 0..20));
    (any::<(u16, u32, u32)>(), columns, vec(span(), 0..3), ended).prop_map(
        |((sample, turn, start), (ids, logp, sampled), spans, ended)| TurnPart {
            sample: SampleIx(sample),
            turn,
            start,
            token_ids: Column(ids),
            logp: Column(logp),
            logp_sampled: Column(sampled),
            spans,
            ended,
        },
    )
}

pub(crate) fn trajectory() -> impl Strategy<Value = Trajectory> {
    let finish = prop_oneof![
        Just(FinishReason::Stop),
        Just(FinishReason::Length),
        Just(FinishReason::Context),
        Just(FinishReason::MaxTurns)
    ];
    let columns = (vec(any::<u32>(), 0..20), vec(any::<u8>(), 0..20), vec(f32s(), 0..20), vec(f32s(), 0..20));
    (any::<(u64, u16, u64)>(), columns, vec(span(), 0..3), f32s(), vec(turn(), 0..3), finish, text()).prop_map(
        |((group, sample, generate_us), (ids, mask, logp, sampled), spans, temperature, turns, finish, context_json)| {
            Trajectory {
                group: GroupId(group),
                sample: SampleIx(sample),
                token_ids: Column(ids),
                mask,
                logp: Column(logp),
                logp_sampled: Column(sampled),
                spans,
                temperature,
                turns,
                finish,
                generate_us,
                context_json,
            }
        },
    )
}

pub(crate) fn score() -> impl Strategy<Value = Score> {
    (f64s(), vec((text(), f64s()), 0..3), text()).prop_map(|(score, breakdown, metadata_json)| Score {
        score,
        breakdown,
        metadata_json,
    })
}

pub(crate) fn group() -> impl Strategy<Value = GroupPayload> {
    let scored = (trajectory(), score()).prop_map(|(trajectory, score)| ScoredTrajectory { trajectory, score });
    (any::<u64>(), vec(scored, 0..3), vec(f64s(), 0..3)).prop_map(|(g, samples, advantages)| GroupPayload {
        group: GroupId(g),
        samples,
        advantages,
    })
}

pub(crate) fn intent() -> impl Strategy<Value = StepIntent> {
    (any::<(u64, u64)>(), vec(any::<u64>(), 0..4), vec(text(), 0..4)).prop_map(|((step, base), groups, digests)| {
        let groups = groups.into_iter().map(GroupId).collect();
        StepIntent { step: StepId(step), base: PolicyVersion(base), groups, digests }
    })
}
