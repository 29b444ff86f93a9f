//! A full disk: waited for, gone on from, and in the end given up.
use super::*;
use crate::controller::Refused;

const PATIENCE: Duration = Duration::from_secs(60);

fn patient(patience: Duration) -> Plan {
    Plan { deadlines: Deadlines { full_disk: patience, ..Deadlines::default() }, ..plan() }
}

fn ledger() -> Refused {
    Refused::Ledger("r/ledger.sqlite".into())
}

fn no_room() -> Event {
    Event::NoRoom { what: ledger(), error: "no space left for r/ledger.sqlite".into() }
}

/// A desk whose rollout worker could begin groups, with the record of its leases on the way.
fn ready(patience: Duration) -> (Desk, RecordId) {
    let mut desk = Desk::new(patient(patience), Past::default());
    let (_, record) = recording(&mut desk);
    desk.moving = vec![ROLLOUT, LEARNER];
    (desk, record)
}

fn leases(commands: &[Command]) -> usize {
    commands.iter().filter(|c| matches!(c, Command::Lease { .. })).count()
}

fn disk_news(commands: &[Command]) -> Vec<&Command> {
    commands.iter().filter(|c| matches!(c, Command::NoRoom { .. } | Command::RoomAgain { .. })).collect()
}

#[test]
fn while_the_ledgers_disk_is_full_nothing_begins_and_with_room_it_goes_on() {
    let (mut desk, record) = ready(PATIENCE);
    let out = desk.say(no_room());
    assert_eq!(disk_news(&out), [&Command::NoRoom { what: ledger(), patience: PATIENCE }]);
    // The write is tried each second; it is said once, nobody is replaced, another worker gets nothing.
    let mut out = desk.join(WorkerId { role: Role::Rollout, index: 1 });
    out.extend(desk.publish(&out.clone()));
    out.extend(desk.swap(WorkerId { role: Role::Rollout, index: 1 }));
    for _ in 0..PATIENCE.as_secs() - 1 {
        out.extend(desk.say(no_room()));
        out.extend(desk.second());
    }
    assert!(leases(&out) == 0 && disk_news(&out).is_empty() && replaced(&out).is_none() && failed(&out).is_none(), "{out:?}");
    assert_eq!(desk.state.lacks_room().map(|(what, _)| what.clone()), Some(ledger()));
    let out = desk.say(Event::Recorded(record));
    let waited = PATIENCE - SECOND;
    assert_eq!(disk_news(&out), [&Command::RoomAgain { what: ledger(), waited }]);
    assert!(leases(&out) >= 4 && desk.state.lacks_room().is_none(), "{out:?}");
    // The next time patience begins anew.
    desk.say(no_room());
    assert_eq!(failed(&desk.seconds(PATIENCE.as_secs() - 1)), None);
}

#[test]
fn a_full_disk_that_nobody_makes_room_on_ends_the_run_with_its_error() {
    let (mut desk, _) = ready(PATIENCE);
    desk.say(no_room());
    let mut out = desk.seconds(PATIENCE.as_secs() - 1);
    assert_eq!(failed(&out), None);
    out.extend(desk.say(no_room()));
    let out = desk.seconds(1);
    let by_the_system = |c: &Command| matches!(c, Command::Finish(Outcome::Failed { fault: Fault::System, .. }));
    assert!(failed(&out) == Some("no space left for r/ledger.sqlite") && out.iter().any(by_the_system), "{out:?}");

    let (mut impatient, _) = ready(Duration::ZERO);
    assert!(failed(&impatient.say(no_room())).is_some(), "a run that is not to wait does not");

    let (mut asked, _) = ready(PATIENCE);
    asked.say(no_room());
    asked.say(Event::DrainRequested { reason: "SIGTERM".into() });
    assert!(failed(&asked.second()).is_some(), "one that was asked to stop does not either");
}

/// A desk whose learner was just asked for a checkpoint of the last committed step.
fn saving(patience: Duration) -> Desk {
    let past = Past { checkpoints: Vec::new(), ..past() };
    let mut desk = Desk::new(Plan { checkpoint_every: 1, ..patient(patience) }, past);
    desk.join(LEARNER);
    desk.moving = vec![LEARNER];
    let conn = desk.conns[&LEARNER];
    desk.say(Event::Loaded { conn, epoch: Epoch(1), version: PolicyVersion(0), digest: 7 });
    let commit = desk.state.commits()[&StepId(1)].clone();
    let out = desk.say(Event::Stepped { conn, epoch: Epoch(1), commit });
    let publish = out.iter().find(|c| matches!(c, Command::Publish { .. }));
    let Some(Command::Publish { version, slot, .. }) = publish else { panic!("{out:?}") };
    let (version, slot) = (*version, *slot);
    let out = desk.say(Event::Published { conn, epoch: Epoch(1), version, slot, digest: 11 });
    assert!(asked(&out), "{out:?}");
    desk
}

fn asked(commands: &[Command]) -> bool {
    commands.iter().any(|c| matches!(c, Command::Checkpoint { .. }))
}

fn refuse(desk: &mut Desk) -> Vec<Command> {
    let conn = desk.conns[&LEARNER];
    let (what, error) = ("checkpoint 1".to_owned(), "no space left on device".to_owned());
    desk.say(Event::LearnerFailed { conn, epoch: Epoch(1), what, error, fatal: false, fault: Fault::System })
}

#[test]
fn a_checkpoint_without_room_is_asked_for_again_and_is_no_failure() {
    let mut desk = saving(PATIENCE);
    let out = refuse(&mut desk);
    assert_eq!(disk_news(&out), [&Command::NoRoom { what: Refused::Checkpoint, patience: PATIENCE }]);
    for wait in [1, 2, 4, 8] {
        assert!(!asked(&desk.seconds(wait - 1)), "before {wait} s");
        assert!(asked(&desk.second()), "after {wait} s");
        let out = refuse(&mut desk);
        assert!(disk_news(&out).is_empty() && failed(&out).is_none(), "{out:?}");
    }
    assert!(asked(&desk.seconds(16)));
    let conn = desk.conns[&LEARNER];
    let saved = Event::CheckpointSaved {
        conn,
        epoch: Epoch(1),
        version: PolicyVersion(1),
        dir: "checkpoints/step-1".into(),
        manifest_sha256: "m".into(),
    };
    let out = desk.say(saved);
    assert_eq!(disk_news(&out), [&Command::RoomAgain { what: Refused::Checkpoint, waited: 31 * SECOND }]);
}

#[test]
fn a_checkpoint_that_never_finds_room_ends_the_run() {
    let mut desk = saving(PATIENCE);
    let mut out = refuse(&mut desk);
    while failed(&out).is_none() {
        assert!(desk.seconds <= PATIENCE.as_secs(), "waits for ever");
        out = desk.second();
        if asked(&out) {
            out.extend(refuse(&mut desk));
        }
    }
    assert_eq!(desk.seconds, PATIENCE.as_secs());
    assert!(failed(&out).is_some_and(|e| e.contains("checkpoint 1") && e.contains("no space left")), "{out:?}");

    // Where nobody waits it is a failure like others, of which the third ends the run.
    let mut desk = saving(Duration::ZERO);
    let mut failures = 0;
    let mut out = Vec::new();
    while failed(&out).is_none() {
        failures += 1;
        out = refuse(&mut desk);
        out.extend(desk.seconds(2));
    }
    assert_eq!(failures, 3);
}
