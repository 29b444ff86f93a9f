//! Collective calls between threads, each rank connected with the lead over the in-process transport.
use crate::loom::{Loom, OfLoom};
use cohort_actors::transport::{Connection, Dialer, Listener, inproc};
use cohort_engine::fabric::Fabrics;
use cohort_learner::collective::{Collective, CollectiveError, Exchange, Line, Peer, Pulse, SharedFabric, Stream};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// More than a message holds, and no multiple of it.
const LONG: usize = (1 << 18) * 11 + 77;

/// The ranks of a group, each with its pulse, and the connections between them.
pub(crate) struct Group {
    runtime: Runtime,
    pub(crate) ranks: Vec<Stream>,
    pub(crate) connections: Vec<Arc<dyn Connection>>,
}

/// `shared`: whether values lie in memory that two ranks share.
pub(crate) fn group(world: usize, patience: Duration, shared: bool) -> Group {
    let runtime = Runtime::new().unwrap();
    let (ranks, connections) = runtime.block_on(async {
        let (mut at_lead, mut followers, mut connections) = (Vec::new(), Vec::new(), Vec::new());
        // One pulse a rank: that the lead waits for one follower is seen by all of them.
        let lead = Pulse::default();
        for rank in 1..world {
            let (listener, dialer) = inproc::pair("lead");
            let (theirs, ours) = tokio::join!(dialer.connect(), listener.accept());
            let (theirs, ours) = (theirs.unwrap(), ours.unwrap());
            connections.push(theirs.clone());
            let peer = |name: String, connection, pulse: &Pulse, leads, memory: Option<Exchange>| Peer {
                line: Arc::new(Line::open(name, connection, pulse, patience, leads)),
                memory: memory.map(Arc::new),
            };
            let memory = shared.then(|| Exchange::create().unwrap());
            let opened = memory.as_ref().map(|memory| Exchange::open(&memory.offer().unwrap()).unwrap());
            at_lead.push(peer(format!("learner-{rank}"), ours, &lead, true, memory));
            followers.push(Stream::follower(peer("learner-0".into(), theirs, &Pulse::default(), false, opened), rank, world));
        }
        let mut ranks = vec![Stream::lead(at_lead)];
        ranks.extend(followers);
        (ranks, connections)
    });
    Group { runtime, ranks, connections }
}

/// Every rank's work on a thread of its own; what they give, in the order of the ranks.
pub(crate) fn on_all<T: Send>(ranks: &mut [Stream], work: impl Fn(usize, &mut Stream) -> T + Sync) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = ranks.iter_mut().enumerate().map(|(rank, group)| scope.spawn(move || work(rank, group))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Numbers whose sum shows in which order it was made.
fn numbers(rank: usize, len: usize) -> Vec<f32> {
    let number = |i: usize| ((i * 37 + rank * 1013) as f32 * 0.37).sin() * if (i + rank).is_multiple_of(3) { 1e6 } else { 1.0 };
    (0..len).map(number).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn every_rank_gets_the_sum_of_the_tree() {
    for (world, len, shared) in [(2, LONG, false), (2, LONG, true), (3, LONG, true), (3, 1000, false), (4, 1, true), (5, 0, true)]
    {
        let mut nodes: Vec<Vec<f32>> = (0..world).map(|rank| numbers(rank, len)).collect();
        while nodes.len() > 1 {
            let pairs = nodes.chunks(2).map(|pair| match pair {
                [a, b] => a.iter().zip(b).map(|(a, b)| a + b).collect(),
                odd => odd[0].clone(),
            });
            nodes = pairs.collect();
        }
        let mut group = group(world, Duration::from_secs(20), shared);
        let sums = on_all(&mut group.ranks, |rank, group| {
            let mut data = numbers(rank, len);
            group.barrier().unwrap();
            group.all_reduce(&mut data).unwrap();
            group.barrier().unwrap();
            bits(&data)
        });
        assert!(sums.iter().all(|sum| *sum == bits(&nodes[0])), "{world} ranks, {len} values, {shared}");
    }
}

/// As uneven as can be, for so many ranks: one has nothing, the last one the most.
fn parts(world: usize, len: usize) -> Vec<std::ops::Range<usize>> {
    let start = |rank: usize| if rank == 0 { 0 } else { len * (rank - 1) * (rank - 1) / (world * world) };
    (0..world).map(|rank| start(rank)..if rank + 1 == world { len } else { start(rank + 1) }).collect()
}

#[test]
fn every_rank_gets_the_parts_of_all() {
    for (world, len, shared) in [(2, LONG, false), (2, LONG, true), (3, LONG, true), (4, 1000, false), (3, 1, true), (5, 0, true)]
    {
        let parts = parts(world, len);
        let mut whole = vec![0.0; len];
        for (rank, part) in parts.iter().enumerate() {
            whole[part.clone()].copy_from_slice(&numbers(rank, len)[part.clone()]);
        }
        if len > 2 {
            // Of numbers that a sum could spoil.
            (whole[0], whole[1], whole[len - 1]) = (-0.0, 1e-45, f32::MAX);
        }
        let own = |rank: usize| {
            let mut data = vec![f32::NAN; len];
            data[parts[rank].clone()].copy_from_slice(&whole[parts[rank].clone()]);
            data
        };
        let plain = group(world, Duration::from_secs(20), shared);
        let (mut plain, mut woven) = (plain, on_a_loom(group(world, Duration::from_secs(20), shared)));
        for group in [&mut plain, &mut woven] {
            let got = on_all(&mut group.ranks, |rank, group| {
                let mut data = own(rank);
                group.all_gather(&mut data, &parts).unwrap();
                bits(&data)
            });
            assert!(got.iter().all(|data| *data == bits(&whole)), "{world} ranks, {len} values, {shared}");
        }
    }
}

/// Pieces of one operation lie where those of the one before have lain, and a rank may be behind with reading those.
#[test]
fn operations_one_after_the_other_do_not_write_into_each_other() {
    let mut group = group(3, Duration::from_secs(20), true);
    let parts = [0..LONG / 2, LONG / 2..LONG - 5, LONG - 5..LONG];
    let results = on_all(&mut group.ranks, |rank, group| {
        let mut rounds = Vec::new();
        for round in 0..2 {
            let mut sum = numbers(rank + round, LONG);
            group.all_reduce(&mut sum).unwrap();
            let mut gathered = numbers(7 * rank + round, LONG);
            group.all_gather(&mut gathered, &parts).unwrap();
            rounds.push((bits(&sum), bits(&gathered)));
        }
        rounds
    });
    assert!(results.iter().all(|rounds| *rounds == results[0]));
    for (round, (sum, gathered)) in results[0].iter().enumerate() {
        let mut terms: Vec<Vec<f32>> = (0..3).map(|rank| numbers(rank + round, LONG)).collect();
        cohort_kernels::tree::sum(&mut terms.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
        assert_eq!(*sum, bits(&terms[0]));
        let want = parts.iter().enumerate().flat_map(|(rank, part)| numbers(7 * rank + round, LONG)[part.clone()].to_vec());
        assert_eq!(*gathered, bits(&want.collect::<Vec<_>>()));
    }
}

#[test]
fn a_rank_lost_while_parts_are_gathered_is_named() {
    for lost in [1, 2] {
        let mut group = group(3, Duration::from_secs(20), true);
        let connection = group.connections[lost - 1].clone();
        let errors = on_all(&mut group.ranks, |rank, group| {
            if rank == lost {
                connection.close("killed");
                return None;
            }
            Some(group.all_gather(&mut numbers(rank, LONG), &parts(3, LONG)).unwrap_err().to_string())
        });
        let name = format!("learner-{lost}");
        assert!(errors.iter().flatten().all(|error| error.contains(&name)), "{errors:?}");
    }
}

#[test]
fn the_lead_gives_out_and_gathers() {
    let mut group = group(3, Duration::from_secs(20), true);
    let got = on_all(&mut group.ranks, |rank, group| {
        let mut data = numbers(rank, LONG);
        group.broadcast(&mut data).unwrap();
        (bits(&data), group.gather(vec![rank as u8; rank]).unwrap())
    });
    assert!(got.iter().all(|(data, _)| *data == bits(&numbers(0, LONG))));
    assert_eq!(got[0].1, [vec![], vec![1], vec![2, 2]]);
    assert!(got[1].1.is_empty() && got[2].1.is_empty());
}

#[test]
fn a_lost_rank_ends_the_call_of_all_and_is_named() {
    let mut group = group(3, Duration::from_secs(20), true);
    let lost = group.connections[1].clone();
    let errors = on_all(&mut group.ranks, |rank, group| {
        let mut data = numbers(rank, LONG);
        if rank == 2 {
            lost.close("killed");
            return None;
        }
        let first = group.all_reduce(&mut data).unwrap_err();
        assert_eq!(group.barrier().unwrap_err(), first, "a group that failed fails for good");
        assert!(group.check().is_err());
        Some(first)
    });
    match errors[0].as_ref().unwrap() {
        CollectiveError::Lost { rank, why, .. } => {
            assert_eq!((rank.as_str(), why.contains("killed")), ("learner-2", true), "{why}")
        }
        other => panic!("{other}"),
    }
    let told = errors[1].as_ref().unwrap().to_string();
    assert!(told.starts_with("learner-0 was lost") && told.contains("learner-2"), "{told}");
}

#[test]
fn a_rank_that_does_not_move_is_named_within_its_patience() {
    // Longer than the second between two beats, by which rank 1 sees that the lead waits for somebody else.
    let mut group = group(3, Duration::from_secs(3), true);
    // Rank 1 waits for the sum; rank 2 lives, beats, and does nothing.
    let results = on_all(&mut group.ranks[..2], |rank, group| group.all_reduce(&mut numbers(rank, 10)).unwrap_err());
    assert!(matches!(&results[0], CollectiveError::Stuck { rank, .. } if rank == "learner-2"), "{}", results[0]);
    assert!(results[1].to_string().contains("learner-2 made no progress for 3s"), "{}", results[1]);
}

#[test]
fn a_rank_that_does_something_else_is_named() {
    let mut group = group(2, Duration::from_secs(20), false);
    let results = on_all(&mut group.ranks, |rank, group| match rank {
        0 => group.all_reduce(&mut [1.0, 2.0]).unwrap_err(),
        _ => group.all_reduce(&mut [1.0, 2.0, 3.0]).unwrap_err(),
    });
    assert!(results[0].is_fatal(), "{}", results[0]);
    assert!(results[0].to_string().starts_with("learner-1 does not keep step during the sum over ranks: it sent 3 values"));
    drop(group.runtime);
}

/// The same ranks, whose sums travel on a fabric.
fn on_a_loom(mut group: Group) -> Group {
    let (loom, world) = (OfLoom(Arc::new(Loom::default())), group.ranks.len());
    let invitation = loom.invite().unwrap();
    let join = |rank| SharedFabric::new(loom.kind(), loom.join(&invitation, rank, world).unwrap());
    group.ranks = group.ranks.into_iter().enumerate().map(|(rank, stream)| stream.on(Some(join(rank)))).collect();
    group
}

#[test]
fn a_fabric_on_which_nothing_moves_is_left_within_the_patience() {
    let mut group = on_a_loom(group(3, Duration::from_secs(3), false));
    // Rank 2 lives, beats, and never comes. Rank 1 sees that the lead waits, and waits with it.
    let results = on_all(&mut group.ranks[..2], |rank, group| group.all_reduce(&mut numbers(rank, 10)).unwrap_err());
    assert!(matches!(&results[0], CollectiveError::Stuck { rank, .. } if rank == "loom"), "{}", results[0]);
    assert!(results[1].to_string().contains("loom made no progress for 3s"), "{}", results[1]);
}

#[test]
fn a_rank_whose_death_breaks_the_fabric_is_named() {
    let mut group = on_a_loom(group(3, Duration::from_secs(20), false));
    let lost = group.connections[1].clone();
    let errors = on_all(&mut group.ranks, |rank, group| match rank {
        2 => {
            lost.close("killed");
            None
        }
        _ => Some(group.all_reduce(&mut numbers(rank, 10)).unwrap_err()),
    });
    let said = errors[0].as_ref().unwrap().to_string();
    assert!(said.starts_with("learner-2 was lost during the sum over ranks") && said.contains("killed"), "{said}");
    let said = errors[1].as_ref().unwrap().to_string();
    assert!(said.starts_with("learner-0 was lost") && said.contains("learner-2"), "{said}");
}
