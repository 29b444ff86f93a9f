//! Networks that fall apart and come together again: three nodes, links that carry nothing, nothing in one direction, or
//! something every now and then. Row 7 of the table.
//!
//! There is one coordinator an epoch: the ledger takes an epoch once (a unique column), and workers take part in one at a
//! time. What is tried here is that nothing is lost or counted twice, and that work goes on after healing.
use super::figures::{Times, keep};
use super::remote::{Head, Remote};
use super::{bench, trials};
use anyhow::{Context, Result, ensure};
use cohort_tests::launch::{PATIENCE, until};
use cohort_tests::relay::Weather;
use serde_json::json;
use std::time::{Duration, Instant};

const MS: Duration = Duration::from_millis(1);
/// In which a host that can be reached again delivers again.
const HEALED: Duration = Duration::from_secs(10);

/// What is done to a link, one after the other, each for so long; then it is whole.
type Cut = &'static [(bool, bool, u32)];

/// Towards the head node, from it, milliseconds. Idle connections end after 3 s; a host is given up after 10 s.
const CUTS: [(&str, Cut); 4] = [
    ("clean", &[(true, true, 4500)]),
    ("towards the head node", &[(true, false, 4500)]),
    ("from the head node", &[(false, true, 4500)]),
    (
        "flapping",
        &[
            (true, true, 400),
            (false, false, 300),
            (true, false, 500),
            (false, false, 200),
            (true, true, 900),
            (false, false, 200),
            (false, true, 700),
        ],
    ),
];

fn suffer(remote: &Remote, cut: Cut) {
    for &(inwards, outwards, ms) in cut {
        remote.relay.change(|weather| (weather.cut_in, weather.cut_out) = (inwards, outwards));
        std::thread::sleep(ms * MS);
    }
    remote.relay.change(|weather| *weather = Weather::default());
}

#[test]
fn hosts_that_are_cut_off_in_any_way_lose_nothing_and_come_back() -> Result<()> {
    let (_folder, bench) = bench()?;
    let mut head = Head::start(&bench, "apart", &[])?;
    let remotes = [(1, "second"), (2, "third")].map(|(seed, host)| head.join(host, "rollout=1", seed, Weather::default()));
    let remotes = remotes.into_iter().collect::<Result<Vec<_>>>()?;
    head.workers(3)?;
    let (mut healing, mut cuts) = (Times::default(), 0);
    for round in 0..trials(1) {
        for (number, (what, cut)) in CUTS.iter().enumerate() {
            // One host in turn, or both at once.
            let whole = (round + number) % 3;
            let cut_off: Vec<usize> = (0..remotes.len()).filter(|i| *i != whole).collect();
            std::thread::scope(|scope| {
                for remote in cut_off.iter().map(|&i| &remotes[i]) {
                    scope.spawn(move || suffer(remote, cut));
                }
            });
            cuts += cut_off.len() * cut.iter().filter(|(inwards, outwards, _)| *inwards || *outwards).count();
            let begun = Instant::now();
            let names = ["rollout-1", "rollout-2"];
            let before = head.generated_by(&names)?;
            until("groups of both hosts", PATIENCE, || {
                let now = head.generated_by(&names)?;
                Ok(now.iter().zip(&before).all(|(now, before)| now > before).then_some(()))
            })
            .with_context(|| format!("after {what}: {}", head.run.said().unwrap_or_default()))?;
            println!("{what}, hosts {cut_off:?} cut off: delivering again after {:?}", begun.elapsed());
            healing.add(begun.elapsed());
            head.run.progress(1, HEALED)?;
        }
    }
    ensure!(healing.worst() <= HEALED, "{}", healing.json());
    let steps = head.end_as_if_undisturbed(remotes)?;
    keep("partition", &json!({ "cuts": cuts, "steps": steps, "delivers_again": healing.json() }))
}
