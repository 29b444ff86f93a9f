//! A reward worker: the real decisions, and scores that are a hash of the request.
use super::{Brain, Note};
use crate::chance::hash;
use crate::net::Message;
use crate::world::World;
use cohort_protocol::messages::reward::{CoordinatorToReward, RewardToCoordinator, ScoreReply, ScoreRequest};
use cohort_protocol::score::SampleOutcome;
use cohort_protocol::{Score, ScoreOutcome};
use cohort_reward_workers::state::{Command, Event, ReplyKey, RewardState};

/// Groups at once.
pub(crate) const CAPACITY: u16 = 2;
/// Beats that a grading may take.
const PATIENCE: u64 = 5;

/// A reward worker's memory.
#[derive(Debug)]
pub(crate) struct RewardBrain {
    state: RewardState,
}

impl RewardBrain {
    pub(crate) fn new() -> Self {
        Self { state: RewardState::new(CAPACITY, PATIENCE) }
    }
}

impl World {
    pub(super) fn reward_mail(&mut self, pid: u32, note: Note) {
        let event = match note {
            Note::Connected(epoch) => Event::Connected(epoch),
            Note::Message(Message::ToReward(CoordinatorToReward::Drain(_))) => Event::Drain,
            Note::Graded(reply) => {
                if self.procs.get(&pid).is_some_and(|p| p.spinning) {
                    return;
                }
                Event::Graded(reply)
            }
            _ => return,
        };
        self.reward_event(pid, event);
    }

    /// A request comes on a stream of its own. `false`: no room for it.
    pub(super) fn reward_takes(&mut self, pid: u32, message: Message) -> bool {
        let Message::ToReward(CoordinatorToReward::Score(request)) = message else { return true };
        self.reward_event(pid, Event::Requested(request))
    }

    pub(super) fn reward_settled(&mut self, pid: u32, reply: &ScoreReply) {
        self.reward_event(pid, Event::Settled(ReplyKey::of_reply(reply)));
    }

    pub(super) fn reward_beats(&mut self, pid: u32) {
        self.reward_event(pid, Event::Tick);
    }

    fn reward_event(&mut self, pid: u32, event: Event) -> bool {
        let mut commands = Vec::new();
        match self.procs.get_mut(&pid).map(|p| &mut p.brain) {
            Some(Brain::Reward(brain)) => brain.state.on_event(event, &mut commands),
            _ => return true,
        }
        let mut accepted = false;
        for command in commands {
            match command {
                Command::SayReady(capacity) => self.say(pid, Message::FromReward(RewardToCoordinator::Ready(capacity))),
                Command::Accept => accepted = true,
                Command::Grade(request) => self.grade(pid, &request),
                Command::Reply(reply) => self.say_bulk(pid, Message::FromReward(RewardToCoordinator::Scored(reply))),
                Command::Beat(beat) => self.say(pid, Message::FromReward(RewardToCoordinator::Beat(beat))),
                Command::Stop => self.kill(pid, "it left"),
            }
        }
        accepted
    }

    fn grade(&mut self, pid: u32, request: &ScoreRequest) {
        let fails = self.fails(self.setting.rates.score_fails, request.purpose);
        // Rules answer at once, judges do not.
        let took = if self.chance.permille(500) { self.effort(pid, 500, 3000) } else { self.effort(pid, 20, 500) };
        let outcome = |sample: &cohort_protocol::messages::reward::SampleToScore| {
            let outcome = if fails {
                ScoreOutcome::Failed { error: "judge: 503".into(), retryable: true }
            } else {
                let key = format!("{:?} {} {}", request.purpose, request.item_json, sample.sample);
                let score = (hash(&[key.as_bytes()]) % 1000) as f64 / 1000.0;
                ScoreOutcome::Scored(Score { score, breakdown: vec![("rule".into(), score)], metadata_json: String::new() })
            };
            SampleOutcome { sample: sample.sample, outcome }
        };
        let outcomes = request.samples.iter().map(outcome).collect();
        let ScoreRequest { epoch, purpose, group, attempt, .. } = *request;
        self.later(took, pid, Note::Graded(ScoreReply { epoch, purpose, group, attempt, outcomes, score_us: 0 }));
    }
}
