//! What the policy has said in one lease so far, so that another worker can go on from there.
//!
//! Invariants
//! - **P1** a sample that goes on from a tape ends in the trajectory that it would have ended in without the loss, to the bit, where
//!   the weights are the same: tokens that were said are not drawn again, everything else of an episode follows from them (N1).
//! - **P2** what is handed in is a beginning of what was said: parts follow each other without a gap.
//! - **P3** taping makes nobody wait: tokens are put into a channel that has a place for each of them, and read when parts are due.
use cohort_engine::{Completion, Finish, Sampled, Span};
use cohort_protocol::codec::Column;
use cohort_protocol::{PolicyVersion, SampleIx, TurnEnd, TurnPart};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// Tokens of one part, at most: a control frame has room for some of them.
const PART_TOKENS: usize = 16 * 1024;

/// The tapes of a lease's samples.
#[derive(Debug)]
pub struct Tapes {
    samples: Vec<Mutex<Tape>>,
}

impl Tapes {
    /// Empty tapes for `samples` samples, which go on after `parts`: whole turns and beginnings of turns, in order. Parts
    /// that contradict themselves or each other are left out, with all that follows of their sample: these are said anew.
    #[must_use]
    pub fn new(samples: u16, parts: Vec<TurnPart>) -> Self {
        let mut tapes: Vec<Tape> = (0..samples).map(|sample| Tape::new(SampleIx(sample))).collect();
        let mut broken = vec![false; tapes.len()];
        for part in parts {
            let index = usize::from(part.sample.0);
            let Some(tape) = tapes.get_mut(index) else { continue };
            let fits = part.start == 0 && part.turn as usize == tape.begun.len() && tape.begun.iter().all(|b| b.ended.is_some());
            broken[index] |= !fits || part.validate().is_err();
            if !broken[index] {
                tape.begun.push_back(part);
            }
        }
        Self { samples: tapes.into_iter().map(Mutex::new).collect() }
    }

    /// What was said since the last call, in parts of bounded length.
    #[must_use]
    pub fn hand_in(&self) -> Vec<TurnPart> {
        self.samples.iter().flat_map(|tape| locked(tape).hand_in()).collect()
    }

    /// The next call of [`Self::hand_in`] begins anew.
    pub fn rewind(&self) {
        for tape in &self.samples {
            locked(tape).handed_in = (0, 0);
        }
    }

    /// Where the next turn of a sample begins.
    #[must_use]
    pub fn next_turn(&self, sample: SampleIx) -> NextTurn {
        let Some(tape) = self.samples.get(usize::from(sample.0)) else { return NextTurn::Anew };
        let mut tape = locked(tape);
        let Some(part) = tape.begun.pop_front() else { return NextTurn::Anew };
        let next = match part.ended {
            Some(end) => {
                tape.turns.push(Turn { part: part.clone(), coming: None });
                return NextTurn::Said(completion(&part, end));
            }
            None => NextTurn::Begun(sampled(&part)),
        };
        // What was begun is the head of the turn that `listen` opens.
        tape.head = Some(part);
        next
    }

    /// Tapes the turn that a sample begins now; its tokens come through what is returned, which has `places` of them.
    pub fn listen(&self, sample: SampleIx, places: usize) -> mpsc::Sender<Sampled> {
        let (sink, coming) = mpsc::channel(places.max(1));
        if let Some(tape) = self.samples.get(usize::from(sample.0)) {
            let mut tape = locked(tape);
            let turn = tape.turns.len() as u32;
            let part = tape.head.take().unwrap_or_else(|| TurnPart::empty(sample, turn, 0));
            tape.turns.push(Turn { part, coming: Some(coming) });
        }
        sink
    }

    /// The turn that a sample was in is over.
    pub fn ended(&self, sample: SampleIx, finish: Finish) {
        let Some(tape) = self.samples.get(usize::from(sample.0)) else { return };
        if let Some(turn) = locked(tape).turns.last_mut() {
            turn.read();
            (turn.coming, turn.part.ended) = (None, Some(turn_end(finish)));
        }
    }
}

/// Where a turn begins.
#[derive(Debug)]
pub enum NextTurn {
    /// Nothing of it was said.
    Anew,
    /// These tokens were.
    Begun(Vec<Sampled>),
    /// All of it was.
    Said(Completion),
}

/// One sample's.
#[derive(Debug)]
struct Tape {
    sample: SampleIx,
    /// Said elsewhere, and not yet played again here.
    begun: VecDeque<TurnPart>,
    /// The beginning of the turn that comes next.
    head: Option<TurnPart>,
    turns: Vec<Turn>,
    /// Turn and token up to which it was handed in.
    handed_in: (usize, usize),
}

/// One turn of the policy, from its first token on.
#[derive(Debug)]
struct Turn {
    part: TurnPart,
    coming: Option<mpsc::Receiver<Sampled>>,
}

impl Turn {
    /// Takes in what has come.
    fn read(&mut self) {
        while let Some(Ok(sampled)) = self.coming.as_mut().map(mpsc::Receiver::try_recv) {
            let Sampled { token, logp, logp_sampled, version, exact } = sampled;
            self.part.push(token, (logp, logp_sampled), (PolicyVersion(version), exact));
        }
    }
}

impl Tape {
    fn new(sample: SampleIx) -> Self {
        Self { sample, begun: VecDeque::new(), head: None, turns: Vec::new(), handed_in: (0, 0) }
    }

    fn hand_in(&mut self) -> Vec<TurnPart> {
        let mut parts = Vec::new();
        let (mut index, mut from) = self.handed_in;
        while let Some(turn) = self.turns.get_mut(index) {
            turn.read();
            let whole = turn.part.len();
            while from < whole {
                let len = (whole - from).min(PART_TOKENS);
                let ended = turn.part.ended.filter(|_| from + len == whole);
                parts.push(TurnPart { ended, ..cut(&turn.part, self.sample, index as u32, from, len) });
                from += len;
            }
            if turn.part.ended.is_none() {
                break;
            }
            if parts.last().is_none_or(|last| last.turn as usize != index || last.ended.is_none()) {
                // Its last token was handed in before its end was known.
                let end = TurnPart { ended: turn.part.ended, ..TurnPart::empty(self.sample, index as u32, whole as u32) };
                parts.push(end);
            }
            (index, from) = (index + 1, 0);
        }
        self.handed_in = (index, from);
        parts
    }
}

/// `len` tokens of a turn from `from` on.
fn cut(whole: &TurnPart, sample: SampleIx, turn: u32, from: usize, len: usize) -> TurnPart {
    let range = from..from + len;
    let mut part = TurnPart::empty(sample, turn, from as u32);
    for (i, version) in whole.versions().enumerate().skip(from).take(len) {
        part.push(whole.token_ids.0[i], (whole.logp.0[i], whole.logp_sampled.0[i]), version);
    }
    debug_assert_eq!(part.token_ids, Column(whole.token_ids.0[range].to_vec()));
    part
}

fn sampled(part: &TurnPart) -> Vec<Sampled> {
    let token = |(i, (version, exact)): (usize, (PolicyVersion, bool))| Sampled {
        token: part.token_ids.0[i],
        logp: part.logp.0[i],
        logp_sampled: part.logp_sampled.0[i],
        version: version.0,
        exact,
    };
    part.versions().enumerate().map(token).collect()
}

fn completion(part: &TurnPart, end: TurnEnd) -> Completion {
    let finish = match end {
        TurnEnd::Stop => Finish::Stop,
        TurnEnd::Length => Finish::Length,
        TurnEnd::Context => Finish::Context,
    };
    let spans = part.spans.iter().map(|s| Span { tokens: s.len, version: s.version.0, exact: s.exact }).collect();
    let (tokens, logp, logp_sampled) = (part.token_ids.0.clone(), part.logp.0.clone(), part.logp_sampled.0.clone());
    Completion { tokens, logp, logp_sampled, spans, finish }
}

fn turn_end(finish: Finish) -> TurnEnd {
    match finish {
        Finish::Stop => TurnEnd::Stop,
        Finish::Length => TurnEnd::Length,
        Finish::Context => TurnEnd::Context,
    }
}

fn locked(tape: &Mutex<Tape>) -> MutexGuard<'_, Tape> {
    // Whoever panicked while it held the lock has left a beginning of what was said.
    tape.lock().unwrap_or_else(PoisonError::into_inner)
}
