//! Ranks that keep the optimizer's state in parts: checkpoints that do not show it, and losses of a part at every moment.
use super::lost::halting;
use super::{Session, commits, config, engine, in_parts, native, requests, toy};
use crate::toy::Moment;
use cohort_protocol::messages::learner::{CoordinatorToLearner, LoadFrom};

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_a_state_in_parts_is_the_lone_learners_and_any_number_of_ranks_goes_on_from_it() {
    let training = config(4);
    let (alone, requests) = (commits(1, &training, native).await, requests(3, &training));
    let mut wanted = None;
    for count in [1, 2, 4] {
        let training = if count == 1 { training.clone() } else { in_parts(&training) };
        let session = Session::whole(count, training.clone(), native).await;
        assert_eq!(session.drive(0, false, &requests[..2], &alone).await, 0);
        let (dir, sum) = session.checkpoint(2).await;
        assert_eq!(*wanted.get_or_insert_with(|| sum.clone()), sum, "{count} ranks");
        assert_eq!(session.drive(2, false, &requests, &alone).await, 0, "all parts are where they were");
        let (_, last) = session.checkpoint(3).await;
        assert_ne!(last, sum);
        let next = Session::whole(if count == 4 { 2 } else { 4 }, in_parts(&training), native).await;
        let copy = next._folder.path().join("checkpoints/step-2");
        std::fs::create_dir_all(&copy).unwrap();
        for file in std::fs::read_dir(dir).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
        }
        next.load_from(LoadFrom::Checkpoint("checkpoints/step-2".into()), 2).await;
        assert_eq!(next.drive(2, false, &requests, &alone).await, 0, "from {count} ranks");
        assert_eq!(next.checkpoint(3).await.1, last);
    }
}

/// Two of four take a step, all four the next two: what two keep is gathered and divided among four, without a replay. (Ten seconds: so
/// long the first step waits for ranks that are missing.)
#[tokio::test(flavor = "multi_thread")]
async fn a_state_in_parts_is_divided_anew_when_ranks_come() {
    let training = config(4);
    let (alone, requests) = (commits(1, &training, native).await, requests(3, &training));
    let mut session = Session::new(4, in_parts(&training), native).await;
    session.join(1, engine(native)).await;
    assert_eq!(session.drive(0, false, &requests[..1], &alone).await, 0);
    session.join(2, engine(native)).await;
    session.join(3, engine(native)).await;
    assert_eq!(session.drive(1, false, &requests, &alone).await, 0, "no part was lost");
    let whole = Session::whole(1, training.clone(), native).await;
    assert_eq!(whole.drive(0, false, &requests, &alone).await, 0);
    assert_eq!(session.checkpoint(3).await.1, whole.checkpoint(3).await.1);
}

/// A rank of two or of four is gone, with its part, at any point of a step, between steps, and while its part is gathered: what it took along is
/// loaded and replayed, and no bit changes.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_is_lost_with_its_rank_costs_a_replay_and_no_bit() {
    let training = config(4);
    let alone = commits(1, &training, toy).await;
    let requests = requests(3, &training);
    let wanted = {
        let session = Session::whole(1, training.clone(), toy).await;
        assert_eq!(session.drive(0, false, &requests, &alone).await, 0);
        session.checkpoint(3).await.1
    };
    let run = async |count: u16, lost: u16, moment: Option<Moment>, losses: usize| {
        let mut session = Session::new(count, in_parts(&training), toy).await;
        let mut special = halting(moment.unwrap_or(Moment::Backward));
        for index in 1..count {
            session.join(index, if index == lost { special.engine.clone() } else { engine(toy) }).await;
        }
        let held = usize::from(moment != Some(Moment::Take));
        assert_eq!(session.drive(0, false, &requests[..held], &alone).await, 0);
        if let Some(moment) = moment {
            special.arm();
            match moment {
                Moment::Show => session.ask_for_checkpoint(1).await,
                _ => session.ask(&requests[held]).await,
            }
            special.halts().await;
        }
        session.kill(lost);
        session.join(lost, engine(toy)).await;
        drop(special.go);
        assert_eq!(session.drive(held, moment.is_some(), &requests, &alone).await, losses, "{count} {moment:?}");
        assert_eq!(session.checkpoint(3).await.1, wanted, "{count} {moment:?}");
    };
    for (count, lost) in [(2, 1), (4, 2)] {
        tokio::join!(
            run(count, lost, None, 1),
            run(count, lost, Some(Moment::Take), 0),
            run(count, lost, Some(Moment::Backward), 1),
            run(count, lost, Some(Moment::Exchange), 1),
            run(count, lost, Some(Moment::Show), 1),
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_that_is_lost_takes_its_part_along_too() {
    let training = config(2);
    let alone = commits(1, &training, toy).await;
    let requests = requests(3, &training);
    for moment in [Moment::Backward, Moment::Exchange] {
        let mut session = Session::new(2, in_parts(&training), toy).await;
        session.kill(0);
        let mut lead = halting(moment);
        session.join(0, lead.engine.clone()).await;
        session.load().await;
        session.join(1, engine(toy)).await;
        assert_eq!(session.drive(0, false, &requests[..1], &alone).await, 0);
        lead.arm();
        session.ask(&requests[1]).await;
        lead.halts().await;
        session.kill(0);
        session.join(0, engine(toy)).await;
        drop(lead.go);
        session.followers[0].sender().send(&CoordinatorToLearner::Meet("here".into())).await.unwrap();
        session.load().await;
        assert_eq!(session.drive(0, false, &requests, &alone).await, 0, "{moment:?}");
    }
}
