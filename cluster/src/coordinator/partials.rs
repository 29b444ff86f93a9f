//! What workers have handed in of groups that are not complete, for whoever goes on with them.
//!
//! Invariants
//! - **H1** what is kept of a sample is a beginning of what one worker said in it: a part that leaves a gap is not taken, nor one
//!   that follows what another worker said. A worker that begins at the first token takes the sample over.
//! - **H2** all of it together is bounded by `MOST`; what would go beyond is not taken, and said again if its worker is lost.
//! - **H3** it is a saving, never a source: it is in memory only, and a group that is generated without it has the same tokens
//!   wherever its weights are the same.
use crate::controller::staleness::staleness;
use crate::controller::{ConnId, Work};
use cohort_protocol::{GroupLease, PolicyVersion, SampleIx, TurnPart};
use std::collections::{BTreeMap, HashMap};

/// Bytes of all parts, at most.
const MOST: usize = 256 << 20;
/// Tokens that a lease takes along, at most: a control frame has room for them.
const MOST_OF_A_LEASE: usize = 128 * 1024;
/// Of a token: id, two log-probs; spans and the part itself are counted as tokens of their own.
const TOKEN_BYTES: usize = 12;

/// See the module.
#[derive(Debug, Default)]
pub struct Partials {
    groups: HashMap<Work, BTreeMap<SampleIx, Said>>,
    bytes: usize,
}

/// What was said in a sample.
#[derive(Debug)]
struct Said {
    by: ConnId,
    turns: Vec<TurnPart>,
}

impl Partials {
    /// Takes a part in, behind what is there of its turn.
    ///
    /// # Errors
    /// Why it is not taken.
    pub fn take(&mut self, by: ConnId, work: Work, part: TurnPart) -> Result<(), String> {
        part.validate().map_err(|e| e.to_string())?;
        if self.bytes + bytes(&part) > MOST {
            return Err(format!("{} MiB of unfinished groups are kept already", MOST >> 20));
        }
        let samples = self.groups.entry(work).or_default();
        let (sample, turn, start) = (part.sample, part.turn as usize, part.start as usize);
        let said = samples.entry(sample).or_insert_with(|| Said { by, turns: Vec::new() });
        let over = turn == 0 || said.turns.get(turn - 1).is_some_and(|before| before.ended.is_some());
        let follows = over && said.turns.get(turn).map_or(0, TurnPart::len) >= start;
        if !follows || said.by != by && (turn, start) != (0, 0) {
            return Err(format!("{work}, sample {sample}: turn {turn} from token {start} on does not follow what was handed in"));
        }
        let before: usize = said.turns.iter().map(bytes).sum();
        (said.by, _) = (by, said.turns.truncate(turn + 1));
        if said.turns.len() == turn {
            said.turns.push(TurnPart::empty(sample, part.turn, 0));
        }
        let whole = &mut said.turns[turn];
        whole.truncate(start);
        whole.append(&part);
        self.bytes = self.bytes - before + said.turns.iter().map(bytes).sum::<usize>();
        Ok(())
    }

    /// What a lease may go on from, `current` being the newest version: words of its own version, or, where it follows newer ones, of any
    /// that is at most `most` versions old.
    #[must_use]
    pub fn begun(&self, lease: &GroupLease, current: PolicyVersion, most: u64) -> Vec<TurnPart> {
        let fits = |version| match lease.follows {
            true => staleness(current, version) <= most,
            false => version == lease.version,
        };
        self.of(Work { purpose: lease.purpose, group: lease.group }, fits)
    }

    /// Groups of which something is kept.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Of each sample the tokens up to the first one of a version that does not fit.
    fn of(&self, work: Work, fits: impl Fn(PolicyVersion) -> bool) -> Vec<TurnPart> {
        let (mut parts, mut room) = (Vec::new(), MOST_OF_A_LEASE);
        for said in self.groups.get(&work).into_iter().flat_map(BTreeMap::values) {
            for part in &said.turns {
                let fitting = part.versions().take_while(|(version, _)| fits(*version)).count().min(room);
                let mut fit = part.clone();
                fit.truncate(fitting);
                room -= fitting;
                parts.extend((fitting > 0).then_some(fit));
                if fitting < part.len() {
                    break;
                }
            }
        }
        parts
    }

    /// The group is complete, or nobody wants it.
    pub fn forget(&mut self, work: &Work) {
        if planted!(PartsKept) {
            return;
        }
        let gone = self.groups.remove(work).unwrap_or_default();
        self.bytes -= gone.values().flat_map(|said| &said.turns).map(bytes).sum::<usize>();
    }
}

fn bytes(part: &TurnPart) -> usize {
    (part.len() + part.spans.len() + 1) * TOKEN_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use cohort_protocol::{GroupId, TurnEnd};

    /// Tokens `start..end` of a turn; token `i` is `10 turn + i`, of version `i / 3`.
    fn part(sample: u16, turn: u32, start: u32, end: u32, ended: Option<TurnEnd>) -> TurnPart {
        let mut part = TurnPart::empty(SampleIx(sample), turn, start);
        for i in start..end {
            part.push(10 * turn + i, (-1.0, -1.0), (PolicyVersion(u64::from(i / 3)), true));
        }
        TurnPart { ended, ..part }
    }

    fn tokens(parts: &[TurnPart]) -> Vec<(u16, u32, usize, bool)> {
        parts.iter().map(|p| (p.sample.0, p.turn, p.len(), p.ended.is_some())).collect()
    }

    const A: ConnId = ConnId(1);
    const B: ConnId = ConnId(2);
    const ALL: fn(PolicyVersion) -> bool = |_| true;

    #[test]
    fn parts_grow_into_turns_and_gaps_are_refused() {
        let (mut partials, work) = (Partials::default(), Work::train(GroupId(4)));
        let stop = Some(TurnEnd::Stop);
        partials.take(A, work, part(0, 0, 0, 4, None)).unwrap();
        assert!(partials.take(A, work, part(0, 0, 5, 6, None)).is_err(), "token 4 is missing");
        assert!(partials.take(A, work, part(0, 1, 0, 2, None)).is_err(), "turn 0 is not over");
        partials.take(A, work, part(0, 0, 4, 6, stop)).unwrap();
        partials.take(A, work, part(0, 1, 0, 2, None)).unwrap();
        partials.take(A, work, part(1, 0, 0, 1, None)).unwrap();
        assert_eq!(partials.of(work, ALL), [part(0, 0, 0, 6, stop), part(0, 1, 0, 2, None), part(1, 0, 0, 1, None)]);
        // The same told again, from the first token: nothing changes but what has come since.
        partials.take(A, work, part(0, 0, 0, 6, stop)).unwrap();
        assert_eq!(tokens(&partials.of(work, ALL)), [(0, 0, 6, true), (1, 0, 1, false)]);
        partials.forget(&work);
        assert_eq!((partials.of(work, ALL), partials.bytes), (vec![], 0));
    }

    #[test]
    fn two_workers_words_are_never_mixed() {
        let (mut partials, work) = (Partials::default(), Work::train(GroupId(4)));
        partials.take(A, work, part(0, 0, 0, 4, None)).unwrap();
        assert!(partials.take(B, work, part(0, 0, 4, 6, None)).is_err());
        assert!(partials.take(B, work, part(0, 0, 2, 6, None)).is_err());
        partials.take(B, work, part(0, 0, 0, 2, None)).unwrap();
        assert!(partials.take(A, work, part(0, 0, 2, 6, None)).is_err(), "it is the other's now");
        assert_eq!(tokens(&partials.of(work, ALL)), [(0, 0, 2, false)]);
    }

    #[test]
    fn a_lease_takes_along_what_its_version_may_go_on_from() {
        let (mut partials, work) = (Partials::default(), Work::train(GroupId(4)));
        partials.take(A, work, part(0, 0, 0, 7, Some(TurnEnd::Stop))).unwrap();
        partials.take(A, work, part(0, 1, 0, 2, None)).unwrap();
        let fits = |most: u64| move |version: PolicyVersion| version.0 <= most;
        assert_eq!(tokens(&partials.of(work, fits(2))), [(0, 0, 7, true), (0, 1, 2, false)]);
        assert_eq!(tokens(&partials.of(work, fits(1))), [(0, 0, 6, false)], "and no turn after the one that was cut");
        assert_eq!(partials.of(work, |_| false), []);
    }

    #[test]
    fn memory_is_bounded() {
        let mut partials = Partials::default();
        let big = |group| (Work::train(GroupId(group)), part(0, 0, 0, 1 << 20, None));
        let taken = (0..30).take_while(|group| partials.take(A, big(*group).0, big(*group).1).is_ok()).count();
        assert!((10..25).contains(&taken) && partials.bytes <= MOST, "{taken}");
        (0..30).for_each(|group| partials.forget(&big(group).0));
        assert_eq!(partials.bytes, 0);
    }
}
