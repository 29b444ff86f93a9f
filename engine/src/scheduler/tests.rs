//! Steps laid out by hand, and beginnings against asking every pair.
use super::*;
use proptest::prelude::*;

fn scheduler(max_running: usize, max_step_tokens: usize) -> Scheduler {
    Scheduler::new(Limits { max_running, max_jobs: 8, max_step_tokens, max_context: 16 })
}

fn step(s: &mut Scheduler, token: u32) -> Vec<Feed> {
    let feeds = s.plan();
    for feed in &feeds {
        s.fed(feed);
        if feed.samples {
            s.push(feed.session, token, false);
        }
    }
    feeds
}

#[test]
fn a_prompt_is_cut_into_the_budget_and_decoding_goes_on_beside_it() {
    let mut s = scheduler(4, 4);
    s.open(SessionId(1));
    s.submit(SessionId(1), &[1, 2], 5).unwrap();
    step(&mut s, 9);
    s.open(SessionId(2));
    s.submit(SessionId(2), &[0; 7], 5).unwrap();
    let lens = |feeds: Vec<Feed>| feeds.iter().map(|f| (f.session.0, f.start, f.len, f.samples)).collect::<Vec<_>>();
    assert_eq!(lens(step(&mut s, 9)), [(1, 2, 1, true), (2, 0, 3, false)]);
    assert_eq!(lens(step(&mut s, 9)), [(1, 3, 1, true), (2, 3, 3, false)]);
    assert_eq!(lens(step(&mut s, 9)), [(1, 4, 1, true), (2, 6, 1, true)]);
}

#[test]
fn the_next_turn_feeds_only_what_is_new() {
    let mut s = scheduler(4, 64);
    s.open(SessionId(1));
    s.submit(SessionId(1), &[1, 2, 3], 1).unwrap();
    step(&mut s, 9);
    assert!(!s.has_work());
    s.submit(SessionId(1), &[4, 5], 1).unwrap();
    // The sampled 9 was never fed: it goes with the new turn.
    assert_eq!(s.plan(), [Feed { session: SessionId(1), start: 3, len: 3, samples: true, from: None }]);
}

#[test]
fn the_youngest_is_preempted_keeps_its_place_and_the_last_one_fails() {
    let mut s = scheduler(4, 64);
    for id in 1..=3 {
        s.open(SessionId(id));
        s.submit(SessionId(id), &[1], 3).unwrap();
    }
    step(&mut s, 9);
    assert_eq!(s.relieve(), Relief::Evict(SessionId(3)));
    s.open(SessionId(4));
    s.submit(SessionId(4), &[1], 3).unwrap();
    assert_eq!(s.plan().iter().map(|f| f.session.0).collect::<Vec<_>>(), [1, 2], "nobody is admitted after a shortage");
    s.push(SessionId(1), 9, true);
    let again = s.plan();
    assert_eq!(again.iter().map(|f| f.session.0).collect::<Vec<_>>(), [2, 3, 4]);
    assert_eq!((again[1].start, again[1].len), (0, 2), "a preempted sequence is fed again from its start");
    for evicted in [1, 4, 3] {
        assert_eq!(s.relieve(), Relief::Evict(SessionId(evicted)));
    }
    assert_eq!(s.relieve(), Relief::Fail(SessionId(2)));
}

#[test]
fn a_groups_prompt_is_fed_once() {
    let mut s = Scheduler::new(Limits { max_running: 4, max_jobs: 8, max_step_tokens: 10, max_context: 64 });
    let prompt: Vec<u32> = (0..20).collect();
    for id in 1..=3 {
        s.open(SessionId(id));
        s.submit(SessionId(id), &prompt, 9).unwrap();
    }
    s.open(SessionId(4));
    s.submit(SessionId(4), &[7; 3], 9).unwrap();
    let seen = |feeds: Vec<Feed>| feeds.iter().map(|f| (f.session.0, f.start, f.len, f.from.map(|s| s.0))).collect::<Vec<_>>();
    // The first takes the step's budget; its fellows wait, and so does nobody else.
    assert_eq!(seen(step(&mut s, 9)), [(1, 0, 10, None)]);
    assert_eq!(seen(step(&mut s, 9)), [(1, 10, 10, None)]);
    // The whole prompt but the last token, whose logits each of them wants.
    assert_eq!(seen(step(&mut s, 9)), [(1, 20, 1, None), (2, 19, 1, Some(1)), (3, 19, 1, Some(1)), (4, 0, 3, None)]);
    assert_eq!(seen(step(&mut s, 9)), [(1, 21, 1, None), (2, 20, 1, None), (3, 20, 1, None), (4, 3, 1, None)]);
}

/// As [`Scheduler::beginnings`], by asking every pair: the kind, and the number of tokens taken over.
fn by_pairs(s: &Scheduler, arrival: u64, id: SessionId) -> (Beginning, Vec<SessionId>) {
    let own = &s.sessions[&id];
    if own.fed > 0 {
        return (Beginning::Own, Vec::new());
    }
    let most = own.tokens.len() - 1;
    let common = |s: &Session| s.tokens.iter().zip(&own.tokens[..most]).take_while(|(a, b)| a == b).count();
    let older = s.running.range(..arrival).map(|(_, other)| &s.sessions[other]);
    let coming = older.filter(|other| !other.stale).map(common).max().unwrap_or(0);
    let holds = |other: &Session| if other.has_memory && !other.stale { common(other).min(other.fed) } else { 0 };
    let held = s.sessions.values().map(holds).max().unwrap_or(0);
    let equals: Vec<_> = s.sessions.iter().filter(|(_, other)| holds(other) == held).map(|(id, _)| *id).collect();
    let kind = match held {
        _ if coming > held && coming >= SHARED_TOKENS => Beginning::Awaited,
        SHARED_TOKENS.. => Beginning::Of(equals[0], held),
        _ => Beginning::Own,
    };
    (kind, equals)
}

proptest! {
    #[test]
    fn beginnings_are_those_found_by_asking_every_pair(
        jobs in prop::collection::vec((0usize..=20, prop::collection::vec(0u32..2, 1..10), 0usize..6, 0u8..8), 1..24),
        max_running in 1usize..12,
        max_step_tokens in 1usize..24,
    ) {
        let mut s = Scheduler::new(Limits { max_running, max_jobs: 99, max_step_tokens, max_context: 64 });
        let first: Vec<u32> = (0..20).map(|i| i % 3).collect();
        for (i, (shared, rest, steps, fate)) in jobs.iter().enumerate() {
            let id = SessionId(i as u64);
            s.open(id);
            s.submit(id, &[&first[..*shared], &rest[..]].concat(), 9).unwrap();
            for _ in 0..*steps {
                step(&mut s, rest[0]);
                for ((arrival, id), (got_id, got)) in s.running.iter().zip(s.beginnings()) {
                    let (want, equals) = by_pairs(&s, *arrival, *id);
                    prop_assert_eq!(*id, got_id);
                    match (got, want) {
                        // Any of those that hold as many tokens will do.
                        (Beginning::Of(from, len), Beginning::Of(_, most)) => prop_assert!(len == most && equals.contains(&from)),
                        (got, want) => prop_assert_eq!(got, want),
                    }
                }
            }
            match fate {
                0 => drop(s.close(SessionId(*shared as u64))),
                1 => drop(s.relieve()),
                2 => s.forget_all(),
                3 => s.keep_all(),
                _ => {}
            }
        }
    }
}

#[test]
fn a_long_prompt_holds_no_decoding_sequence_up() {
    let mut s = Scheduler::new(Limits { max_running: 8, max_jobs: 8, max_step_tokens: 16, max_context: 4096 });
    for id in 0..3 {
        s.open(SessionId(id));
        s.submit(SessionId(id), &[id as u32; 4], 999).unwrap();
    }
    step(&mut s, 9);
    s.open(SessionId(3));
    s.submit(SessionId(3), &[5; 1000], 9).unwrap();
    let mut steps = 0;
    while s.sessions[&SessionId(3)].fed < 1000 {
        let feeds = step(&mut s, 9);
        // Everyone who decodes gets a token in every step; the prompt gets all that is left of the step, and no more.
        let lens: Vec<_> = feeds.iter().map(|f| (f.session.0, f.len, f.samples)).collect();
        assert_eq!(lens[..3], [(0, 1, true), (1, 1, true), (2, 1, true)], "step {steps}");
        assert_eq!((lens.len(), lens[3].1), (4, (1000 - 13 * steps).min(13)), "step {steps}");
        steps += 1;
    }
    assert_eq!(steps, 1000usize.div_ceil(13));
}

#[test]
fn whoever_was_waited_for_may_go() {
    let mut s = scheduler(4, 4);
    for id in 1..=2 {
        s.open(SessionId(id));
        s.submit(SessionId(id), &[5; 12], 3).unwrap();
    }
    let lens = |feeds: Vec<Feed>| feeds.iter().map(|f| (f.session.0, f.start, f.len)).collect::<Vec<_>>();
    assert_eq!(lens(step(&mut s, 9)), [(1, 0, 4)]);
    s.close(SessionId(1));
    assert_eq!(lens(step(&mut s, 9)), [(2, 0, 4)]);
}

#[test]
fn refuses_what_cannot_be_done() {
    let mut s = scheduler(1, 4);
    s.open(SessionId(1));
    assert!(matches!(s.submit(SessionId(1), &[], 3), Err(EngineError::Input(_))));
    assert!(matches!(s.submit(SessionId(1), &[0; 16], 3), Err(EngineError::Input(_))));
    assert!(matches!(s.submit(SessionId(7), &[0], 3), Err(EngineError::Input(_))));
    s.submit(SessionId(1), &[0; 15], 3).unwrap();
    assert!(matches!(s.submit(SessionId(1), &[0], 3), Err(EngineError::Input(_))));
    for _ in 0..3 {
        step(&mut s, 1);
    }
    let feeds = s.plan();
    s.fed(&feeds[0]);
    assert_eq!(s.push(SessionId(1), 1, false), Some(Finish::Context));
}
