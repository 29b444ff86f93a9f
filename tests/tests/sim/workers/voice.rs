//! What the policy says in one sample: two turns of three tokens, each a hash of all that it follows from. So a sample that two have
//! spoken without hearing each other is none that anybody could have spoken.
use crate::chance::hash;
use cohort_engine::{Finish, Sampled};
use cohort_protocol::{FinishReason, GroupLease, LeasePurpose, PolicyVersion, SampleIx, Trajectory, VersionSpan};
use cohort_rollout::tape::{NextTurn, Tapes};
use tokio::sync::mpsc;

/// Turns of a sample.
const TURNS: usize = 2;
/// Tokens of a turn.
const TOKENS: usize = 3;

/// One sample, as far as it has come.
#[derive(Debug)]
pub(crate) struct Voice {
    sample: SampleIx,
    turns: Vec<Vec<(u32, PolicyVersion)>>,
    /// Where the tokens of the turn that it is in go.
    open: Option<mpsc::Sender<Sampled>>,
}

impl Voice {
    pub(crate) fn new(sample: u16) -> Self {
        Self { sample: SampleIx(sample), turns: Vec::new(), open: None }
    }

    fn said(&self) -> usize {
        self.turns.iter().map(Vec::len).sum()
    }

    /// Goes on to this part of its whole length; gives how many tokens are new.
    pub(crate) fn speak(&mut self, lease: &GroupLease, tapes: &Tapes, part: f64, (version, digest): (PolicyVersion, u64)) -> u64 {
        let due = (part * (TURNS * TOKENS) as f64) as usize;
        let mut spoken = 0;
        loop {
            if self.open.is_none() {
                if self.turns.len() == TURNS {
                    return spoken;
                }
                match tapes.next_turn(self.sample) {
                    NextTurn::Said(turn) => {
                        let versions = turn.spans.iter().flat_map(|span| std::iter::repeat_n(span.version, span.tokens as usize));
                        self.turns.push(turn.tokens.iter().copied().zip(versions.map(PolicyVersion)).collect());
                        continue;
                    }
                    NextTurn::Begun(begun) => {
                        self.turns.push(begun.iter().map(|token| (token.token, PolicyVersion(token.version))).collect());
                    }
                    NextTurn::Anew => self.turns.push(Vec::new()),
                }
                self.open = Some(tapes.listen(self.sample, TOKENS));
            }
            if self.turns.last().is_some_and(|turn| turn.len() >= TOKENS) {
                tapes.ended(self.sample, Finish::Stop);
                self.open = None;
                continue;
            }
            if self.said() >= due {
                return spoken;
            }
            let before: Vec<u32> = self.turns.concat().iter().map(|(token, _)| *token).collect();
            let token = next_token(lease.item.row, lease.purpose, self.sample, &before, digest);
            if let (Some(turn), Some(open)) = (self.turns.last_mut(), &self.open) {
                turn.push((token, version));
                // There is a place for each.
                let sampled = Sampled { token, logp: -0.5, logp_sampled: -0.5, version: version.0, exact: true };
                open.try_send(sampled).expect("a place for every token");
            }
            spoken += 1;
        }
    }
}

/// What weights with this digest say in a sample after these tokens.
pub(crate) fn next_token(row: u64, purpose: LeasePurpose, sample: SampleIx, before: &[u32], digest: u64) -> u32 {
    let purpose = match purpose {
        LeasePurpose::Train => 0,
        LeasePurpose::Eval { step, greedy } => 2 + 2 * step + u64::from(greedy),
    };
    let numbers = [row, purpose, sample.0.into(), digest];
    let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    let heard: Vec<u8> = before.iter().flat_map(|token| token.to_le_bytes()).collect();
    (hash(&[&bytes, &heard]) % 50_000) as u32
}

/// Tokens of a whole sample, without its prompt.
pub(crate) const WHOLE: usize = TURNS * TOKENS;

/// The sample as it is delivered: one token of a prompt, then what was said.
pub(crate) fn trajectory(lease: &GroupLease, voice: &Voice) -> Trajectory {
    let said = voice.turns.concat();
    let prompt = (hash(&[&lease.item.row.to_le_bytes(), &lease.seed.to_le_bytes()]) % 50_000) as u32;
    let mut spans: Vec<VersionSpan> = Vec::new();
    for (start, (_, version)) in (1..).zip(&said) {
        match spans.last_mut() {
            Some(span) if span.version == *version => span.len += 1,
            _ => spans.push(VersionSpan { start, len: 1, version: *version, exact: true }),
        }
    }
    let logp: Vec<f32> = std::iter::once(0.0).chain(said.iter().map(|_| -0.5)).collect();
    Trajectory {
        group: lease.group,
        sample: voice.sample,
        token_ids: std::iter::once(prompt).chain(said.iter().map(|(token, _)| *token)).collect::<Vec<_>>().into(),
        mask: std::iter::once(0).chain(said.iter().map(|_| 1)).collect(),
        logp: logp.clone().into(),
        logp_sampled: logp.into(),
        spans,
        temperature: 1.0,
        turns: Vec::new(),
        finish: FinishReason::Stop,
        generate_us: 0,
        context_json: "{}".into(),
    }
}
