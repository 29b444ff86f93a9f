//! Keepers fall and lines are cut, by a seed; coordinators write all the while, those too that do not know that they were replaced.
use super::super::keeper::{Keeper, KeeperError};
use super::super::record;
use super::net::{KEEPERS, Net};
use crate::ledger::audit;
use crate::ledger::entry::Entry;
use crate::ledger::place::RunPaths;
use crate::ledger::tests::batch;
use cohort_protocol::keeping::{LedgerAnswer, LedgerCommand};
use cohort_protocol::messages::keepers::KeeperStore;
use cohort_protocol::{AttemptId, Epoch, GroupId, Role, WorkerId};
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;

/// For a command of a coordinator to be answered.
const WITHIN: Duration = Duration::from_secs(4);

/// What coordinators were told, and the numbers that they draw from.
#[derive(Default)]
struct Told {
    /// Groups that were acknowledged, with the epoch and the coordinator.
    acknowledged: Mutex<Vec<(u64, Epoch, u16)>>,
    groups: AtomicU64,
    coordinators: AtomicU64,
}

/// The facts of one group; the coordinator signs as the worker's number.
fn facts(group: u64, epoch: Epoch, coordinator: u16) -> LedgerCommand {
    let worker = WorkerId { role: Role::Rollout, index: coordinator };
    let id = GroupId(group);
    record(
        epoch,
        &[
            Entry::Opened { group: id, cursor: group, epoch },
            Entry::Leased { group: id, attempt: AttemptId(1), worker, epoch, at_ms: 0 },
            Entry::Trajectories(batch(group)),
        ],
    )
}

/// A coordinator on a keeper that leads. It does not ask whether it still does: it writes until it is told.
async fn coordinate(keeper: Keeper, told: Arc<Told>) {
    let own = u16::try_from(told.coordinators.fetch_add(1, Ordering::Relaxed)).unwrap();
    let Ok(LedgerAnswer::Opened(epoch)) = keeper.write(&LedgerCommand::Open { at_ms: own.into() }, WITHIN).await else { return };
    loop {
        let group = told.groups.fetch_add(1, Ordering::Relaxed);
        match keeper.write(&facts(group, epoch, own), WITHIN).await {
            Ok(LedgerAnswer::Recorded) => told.acknowledged.lock().unwrap().push((group, epoch, own)),
            Ok(LedgerAnswer::Overtaken { now }) => return assert!(now > epoch),
            Ok(other) => panic!("{other:?}"),
            Err(KeeperError::Stopped(_)) => return,
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
}

/// A new coordinator whenever the keeper begins to lead.
async fn host(keeper: Keeper, told: Arc<Told>) {
    let mut coordinators = JoinSet::new();
    while keeper.until(|now| now.leads || !now.sound).await && keeper.standing().sound {
        coordinators.spawn(coordinate(keeper.clone(), told.clone()));
        let term = keeper.standing().term;
        if !keeper.until(|now| !now.leads || now.term != term).await {
            break;
        }
    }
    while let Some(ended) = coordinators.join_next().await {
        ended.unwrap();
    }
}

/// One thing goes wrong, or right again.
async fn disturb(net: &Arc<Net>, rng: &mut fastrand::Rng, hosts: &mut JoinSet<()>, told: &Arc<Told>) {
    let one = rng.u64(..KEEPERS);
    let other = (one + rng.u64(1..KEEPERS)) % KEEPERS;
    match rng.u8(..6) {
        0 => net.cut(one, other),
        1 => {
            net.cut(one, other);
            net.cut(other, one);
        }
        2 => net.isolate(one),
        3 | 4 => match net.keeper(one) {
            Some(_) => net.fall(one, rng.usize(..60)).await,
            None => drop(hosts.spawn(host(net.rise(one).await, told.clone()))),
        },
        _ => net.heal(),
    }
}

/// Leases by epoch: the coordinators that wrote in it.
fn writers(ledger: &Connection) -> BTreeMap<u64, BTreeSet<String>> {
    let mut query = ledger.prepare("SELECT epoch, worker FROM leases").unwrap();
    let rows = query.query_map([], |row| Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get(1)?))).unwrap();
    let mut writers = BTreeMap::<u64, BTreeSet<String>>::new();
    for (epoch, worker) in rows.map(Result::unwrap) {
        writers.entry(epoch).or_default().insert(worker);
    }
    writers
}

fn column<T: rusqlite::types::FromSql>(ledger: &Connection, sql: &str) -> Vec<T> {
    ledger.prepare(sql).unwrap().query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

async fn a_seed(seed: u64) -> (usize, u64) {
    let (net, told, mut rng) = (Net::new().await, Arc::new(Told::default()), fastrand::Rng::with_seed(seed));
    let mut hosts = JoinSet::new();
    net.up().into_iter().for_each(|keeper| drop(hosts.spawn(host(keeper, told.clone()))));
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(rng.u64(200..6000))).await;
        disturb(&net, &mut rng, &mut hosts, &told).await;
    }
    net.heal();
    for number in 0..KEEPERS {
        if net.keeper(number).is_none() {
            hosts.spawn(host(net.rise(number).await, told.clone()));
        }
    }
    // Whole again, they go on: somebody writes, and all come to have it.
    let before = told.acknowledged.lock().unwrap().len();
    tokio::time::timeout(Duration::from_secs(30), async {
        while told.acknowledged.lock().unwrap().len() < before + 3 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("progress after healing");
    hosts.shutdown().await;
    tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let applied: BTreeSet<u64> = net.up().iter().map(|keeper| keeper.standing().applied).collect();
            let leads = net.up().iter().filter(|keeper| keeper.standing().leads).count();
            if leads == 1 && applied.len() == 1 {
                break;
            }
        }
    })
    .await
    .expect("equal logs");
    for number in 0..KEEPERS {
        net.fall(number, 0).await;
    }
    let ledgers: Vec<Connection> =
        (0..KEEPERS).map(|n| Connection::open(RunPaths::new(net.run_dir(n)).ledger()).unwrap()).collect();
    let heads = |ledger: &Connection| column::<Vec<u8>>(ledger, "SELECT link FROM heads ORDER BY name");
    for (number, ledger) in ledgers.iter().enumerate() {
        let paths = RunPaths::new(net.run_dir(number as u64));
        let audit = audit(&paths).unwrap();
        assert!(audit.balanced, "seed {seed}, keeper {number}: {:?}", audit.findings);
        assert_eq!(heads(ledger), heads(&ledgers[0]), "seed {seed}: the ledger of keeper {number} is another one");
        let bytes = |n| std::fs::read(net.run_dir(n).join("segments/000001.seg")).unwrap();
        assert_eq!(bytes(number as u64), bytes(0), "seed {seed}: the segment of keeper {number} is another one");
        let recorded: BTreeSet<i64> = column(ledger, "SELECT grp FROM trajectories").into_iter().collect();
        for (group, epoch, _) in told.acknowledged.lock().unwrap().iter() {
            assert!(
                recorded.contains(&group.cast_signed()),
                "seed {seed}: group {group} of epoch {epoch} was acknowledged and is lost"
            );
        }
        for (epoch, writers) in writers(ledger) {
            assert_eq!(writers.len(), 1, "seed {seed}: {writers:?} wrote in epoch {epoch}");
        }
    }
    let acknowledged = told.acknowledged.lock().unwrap().len();
    (acknowledged, told.coordinators.load(Ordering::Relaxed))
}

#[tokio::test(start_paused = true)]
async fn nothing_acknowledged_is_lost_and_no_two_coordinators_write_in_one_epoch() {
    let (mut acknowledged, mut coordinators) = (0, 0);
    for seed in 0..seeds() {
        let seen = a_seed(seed).await;
        (acknowledged, coordinators) = (acknowledged + seen.0, coordinators + seen.1);
    }
    // The schedules do what they are for.
    assert!(acknowledged > 100 && coordinators > 2 * seeds(), "{acknowledged} groups, {coordinators} coordinators");
}

/// A coordinator on `keeper`, which is to lead, and the epoch that it opens.
async fn opened(keeper: &Keeper) -> Epoch {
    let leads = tokio::time::timeout(Duration::from_secs(60), keeper.until(|now| now.leads)).await;
    assert!(leads.expect("this keeper can lead"));
    match keeper.write(&LedgerCommand::Open { at_ms: 0 }, WITHIN).await {
        Ok(LedgerAnswer::Opened(epoch)) => epoch,
        other => panic!("{other:?}"),
    }
}

/// The keeper of `candidates` that leads.
async fn leader(net: &Arc<Net>, candidates: &[u64]) -> u64 {
    let leads = |number: &u64| net.keeper(*number).is_some_and(|keeper| keeper.standing().leads);
    let chosen = async {
        loop {
            if let Some(number) = candidates.iter().copied().find(leads) {
                return number;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), chosen).await.expect("one of them leads")
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_was_replaced_is_told_so_when_its_keeper_leads_again() {
    let net = Net::new().await;
    let all: Vec<u64> = (0..KEEPERS).collect();
    let first = leader(&net, &all).await;
    let keeper = net.keeper(first).unwrap();
    let old = opened(&keeper).await;
    assert!(matches!(keeper.write(&facts(0, old, 0), WITHIN).await, Ok(LedgerAnswer::Recorded)));

    // Its keeper is cut off; it does not hear that another coordinator goes on elsewhere.
    net.isolate(first);
    assert!(keeper.write(&facts(1, old, 0), WITHIN).await.is_err(), "nothing is recorded without most keepers");
    let others: Vec<u64> = all.into_iter().filter(|number| *number != first).collect();
    let second = leader(&net, &others).await;
    let third = others.into_iter().find(|number| *number != second).unwrap();
    let successor = net.keeper(second).unwrap();
    let new = opened(&successor).await;
    assert!(new > old);

    // The third misses what the successor writes, so that only the first can lead when the successor is cut off.
    net.heal();
    net.isolate(third);
    let recorded = tokio::time::timeout(Duration::from_secs(60), async {
        while !matches!(successor.write(&facts(2, new, 1), WITHIN).await, Ok(LedgerAnswer::Recorded)) {}
    });
    recorded.await.expect("two of three keepers are most of them");
    net.heal();
    net.isolate(second);
    let leads = tokio::time::timeout(Duration::from_secs(60), keeper.until(|now| now.leads)).await;
    assert!(leads.expect("the first keeper leads again"));
    match keeper.write(&facts(3, old, 0), WITHIN).await {
        Ok(LedgerAnswer::Overtaken { now }) => assert_eq!(now, new),
        other => panic!("the coordinator of {old} wrote after {new} had been opened: {other:?}"),
    }
}

/// Schedules tried; more with `COHORT_KEEPER_SEEDS`.
fn seeds() -> u64 {
    std::env::var("COHORT_KEEPER_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(6)
}

#[tokio::test(start_paused = true)]
async fn a_log_that_was_lost_does_not_come_back_under_its_number() {
    let net = Net::new().await;
    let keeper = net.keeper(0).unwrap();
    let known = net.keeper(1).unwrap().own_store();
    assert!(keeper.knows(known).await.unwrap());
    assert!(!keeper.knows(KeeperStore { store: known.store ^ 1, ..known }).await.unwrap());
    drop(keeper);
    net.fall(0, 0).await;
    let again = net.rise(0).await;
    assert!(!again.knows(KeeperStore { store: known.store ^ 1, ..known }).await.unwrap(), "remembered over restarts");
    assert!(again.knows(known).await.unwrap());
}
