//! A reward of the user's own, from the scaffold, confined, in whole runs of both kinds.
use super::bench;
use anyhow::{Result, ensure};
use cohort_reward_workers::scaffold::init_plugin;
use cohort_tests::launch::{GROUPS, finish};
use std::io::Write;

/// Grades as the scaffold does, if the run beside it is where it should be and cannot be read.
const SPY: &str = "\
import os
from cohort_reward import reward, run
from my_reward import short_answer

@reward
def spy(turns, item, context):
    run = os.environ['RUN']
    if not os.path.exists(run + '/ledger.sqlite'):
        raise RuntimeError('the run lies elsewhere')
    try:
        open(run + '/ledger.sqlite', 'rb')
    except PermissionError:
        return short_answer(turns, item, context)
    raise RuntimeError('the ledger is open to a plug-in')
";

#[test]
fn a_scaffolded_plug_in_grades_confined_beside_the_run_it_must_not_read() -> Result<()> {
    let missing = cohort_actors::confine::support().missing();
    if let Some(missing) = missing {
        // Past the capture of the test's output.
        writeln!(std::io::stderr(), "SKIPPED: a confined plug-in in a run: {missing}")?;
        return Ok(());
    }
    let (_folder, bench) = bench()?;
    let mine = bench.run_dir("mine");
    init_plugin(&mine, "python")?;
    // The one `@reward` of a plug-in is the spy's.
    let honest = std::fs::read_to_string(mine.join("my_reward.py"))?;
    std::fs::write(mine.join("my_reward.py"), honest.replace("@reward\n", ""))?;
    std::fs::write(mine.join("spy.py"), SPY)?;
    let mut weights = Vec::new();
    for (name, tier) in [("mine/one", "--threads=1"), ("mine/many", "--processes")] {
        let part = format!(
            "rewards.parts=[{{type=\"process\", name=\"spy\", command=[\"python3\", \"spy.py\"], working_dir={:?}, env={{RUN={:?}}}}}]",
            mine.display().to_string(),
            bench.run_dir(name).display().to_string(),
        );
        let ended = finish(&mut bench.launch(name, &["--steps", "2", tier, "--set", &part]))?;
        weights.push(ended.weights()?);
        bench.balanced(name, 2 * GROUPS)?;
    }
    ensure!(weights[0] == weights[1], "{weights:?}");
    // Unconfined it sees the ledger, and the run ends with what it says.
    let part = format!(
        "rewards.parts=[{{type=\"process\", name=\"spy\", command=[\"python3\", \"spy.py\"], working_dir={:?}, env={{RUN={:?}}}, confine=false}}]",
        mine.display().to_string(),
        bench.run_dir("mine/open").display().to_string(),
    );
    let ended = finish(&mut bench.launch("mine/open", &["--steps", "2", "--set", &part]))?;
    ensure!(ended.code != Some(0) && ended.stderr.contains("the ledger is open to a plug-in"), "{ended:?}");
    Ok(())
}
