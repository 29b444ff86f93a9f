//! Loss, delay, jitter, reordering, duplicates and flipped bits between a host and its head node: nothing corrupt is ever
//! consumed, and the weights are those of fair weather.
use super::figures::keep;
use super::remote::Head;
use super::{bench, trials};
use anyhow::{Context, Result, ensure};
use cohort_tests::launch::{PATIENCE, until};
use cohort_tests::relay::Weather;
use serde_json::json;
use std::time::Duration;

/// Groups that the host behind the relay must have generated or graded. In the worst weather it is seldom done with taking
/// new weights before the next are there, and grades only.
const DELIVERIES: u64 = 30;

fn profiles() -> [(&'static str, Weather); 3] {
    let ms = Duration::from_millis;
    let fair = Weather::default();
    [
        ("loss 1 %, jitter 200 ms", Weather { loss: 0.01, jitter: ms(200), duplicate: 0.02, ..fair }),
        (
            "loss 5 %, doubled, corrupt",
            Weather { loss: 0.05, delay: ms(2), jitter: ms(20), duplicate: 0.1, corrupt: 0.02, ..fair },
        ),
        ("loss 20 %", Weather { loss: 0.2, delay: ms(1), jitter: ms(5), duplicate: 0.05, corrupt: 0.02, ..fair }),
    ]
}

#[test]
fn a_host_in_foul_weather_changes_no_bit() -> Result<()> {
    for round in 0..trials(1) {
        for (number, (what, weather)) in profiles().into_iter().enumerate() {
            let (_folder, bench) = bench()?;
            let head = Head::start(&bench, "run", &[])?;
            let seed = (round * 10 + number) as u64;
            let remote = head.join("second", "rollout=1,reward=1", seed, weather)?;
            let deliveries = || Ok::<_, anyhow::Error>([head.generated_by(&["rollout-1"])?[0], head.graded_by("reward-1")?]);
            until("deliveries of the host in foul weather", PATIENCE, || {
                Ok((deliveries()?.iter().sum::<u64>() >= DELIVERIES).then_some(()))
            })
            .with_context(|| format!("{what}: {:?}, {:?}", deliveries(), remote.relay.fates()))?;
            let [generated, graded] = deliveries()?;
            let [carried, lost, doubled, corrupted, overtaken] = remote.relay.fates().counts();
            ensure!(lost > 0 && doubled > 0 && overtaken > 0 && (corrupted > 0 || weather.corrupt == 0.0), "{what}: {carried}");
            let steps = head.end_as_if_undisturbed(vec![remote])?;
            keep(
                &format!("weather-{number}"),
                &json!({ "profile": what, "seed": seed, "steps": steps, "generated": generated, "graded": graded, "carried": carried, "lost": lost, "doubled": doubled,
                    "corrupted": corrupted, "overtaken": overtaken, "different_bits": 0 }),
            )?;
        }
    }
    Ok(())
}
