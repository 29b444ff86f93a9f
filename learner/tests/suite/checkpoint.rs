//! Checkpoints on a real disk: what is written comes back, what is damaged is found, what fails leaves nothing.
use crate::toy::weights;
use cohort_learner::checkpoint::{
    CheckpointError, FOLDER, LastGood, OptimizerState, TrainState, hash, last_good, list, load, save, verify,
};
use cohort_model::{LoraConfig, ModelFiles, WeightSet};
use cohort_protocol::PolicyVersion;
use proptest::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

fn model() -> ModelFiles {
    ModelFiles::open("random://tiny?seed=1").unwrap()
}

fn state(model: &ModelFiles, version: u64) -> TrainState {
    let moments = |seed| weights(&model.spec, version * 10 + seed);
    TrainState {
        version: PolicyVersion(version),
        weights: moments(1),
        optimizer: OptimizerState::new(moments(2), moments(3), version + (1 << 40)),
        seed: 42,
        cursor_json: r#"{"epoch":1,"row":37}"#.into(),
    }
}

fn saved(run: &Path, version: u64) -> PathBuf {
    let model = model();
    let saved = save(run, &model, &state(&model, version), 3).unwrap();
    assert_eq!(saved.dir, format!("{FOLDER}/step-{version}"));
    run.join(saved.dir)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_saved_comes_back() {
    let run = tempfile::tempdir().unwrap();
    let (model, dir) = (model(), saved(run.path(), 7));
    let want = state(&model, 7);
    let got = load(&dir, &model).unwrap();
    assert!(got == want, "the state has changed on the disk");
    assert_eq!(got.optimizer.updates(), 7 + (1 << 40));
    let hashes = hash(&dir).unwrap();
    assert_eq!(hashes.weights, want.weights.sha256());
    assert!([&hashes.optimizer, &hashes.rng, &hashes.cursor].iter().all(|h| h.len() == 64));
    // The directory is a model like any other.
    assert!(ModelFiles::open(dir.to_str().unwrap()).unwrap().weights().unwrap() == want.weights);
}

#[test]
fn equal_states_give_equal_bytes_and_saving_again_does_nothing() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (model, dir) = (model(), saved(a.path(), 2));
    let first = save(a.path(), &model, &state(&model, 2), 3).unwrap();
    assert_eq!(save(b.path(), &model, &state(&model, 2), 3).unwrap(), first);
    assert_eq!(names(&a.path().join(FOLDER)), ["step-2"]);
    // A damaged one under the same name is replaced.
    fs::write(dir.join("rng.json"), "{}").unwrap();
    assert_eq!(save(a.path(), &model, &state(&model, 2), 3).unwrap(), first);
    verify(&dir).unwrap();
}

#[test]
fn the_newest_are_kept_and_leftovers_of_a_crash_go() {
    let run = tempfile::tempdir().unwrap();
    let folder = run.path().join(FOLDER);
    fs::create_dir_all(folder.join(".step-9.partial")).unwrap();
    fs::create_dir_all(folder.join(".step-0.removed")).unwrap();
    for version in [1, 2, 10, 9] {
        saved(run.path(), version);
    }
    assert_eq!(names(&folder), ["step-10", "step-2", "step-9"]);
    let versions: Vec<u64> = list(run.path()).unwrap().into_iter().map(|(v, _)| v.0).collect();
    assert_eq!(versions, [2, 9, 10]);
}

/// Whenever the process dies: under the final name stands the old directory or the new one, never nothing.
#[test]
fn a_damaged_one_is_exchanged_for_a_whole_one_in_one_operation() {
    let run = tempfile::tempdir().unwrap();
    let dir = saved(run.path(), 3);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut looks = 0u64;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                assert!(dir.is_dir(), "nothing stands there at look {looks}");
                looks += 1;
            }
        });
        for _ in 0..20 {
            fs::write(dir.join("rng.json"), "{}").unwrap();
            verify(&dir).unwrap_err();
            assert_eq!(saved(run.path(), 3), dir);
            verify(&dir).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        watch.join().unwrap();
    });
    assert_eq!(names(&run.path().join("checkpoints")), ["step-3"], "the damaged one is gone");
}

#[test]
fn a_cursor_that_is_no_object_leaves_nothing_behind() {
    let (run, model) = (tempfile::tempdir().unwrap(), model());
    let bad = TrainState { cursor_json: "[1]".into(), ..state(&model, 1) };
    assert!(matches!(save(run.path(), &model, &bad, 3), Err(CheckpointError::Cursor(_))));
    assert!(names(&run.path().join(FOLDER)).is_empty());
}

#[test]
fn adapters_are_saved_in_pefts_layout_and_come_back() {
    let run = tempfile::tempdir().unwrap();
    let frozen = model();
    let model = frozen.clone().adapted(&LoraConfig { rank: 2, ..LoraConfig::default() }).unwrap();
    let [weights, first, second] = [1, 2, 3].map(|seed| model.start(seed).unwrap());
    let want = TrainState { weights, optimizer: OptimizerState::new(first, second, 5), ..state(&frozen, 4) };
    let dir = run.path().join(save(run.path(), &model, &want, 3).unwrap().dir);
    let there = names(&dir);
    assert!(there.contains(&"adapter_config.json".to_owned()) && there.contains(&"adapter_model.safetensors".to_owned()));
    assert!(!there.contains(&"model.safetensors".to_owned()));
    assert!(load(&dir, &model).unwrap() == want, "the state has changed on the disk");
    assert_eq!(hash(&dir).unwrap().weights, want.weights.sha256());
    // By itself the directory is the frozen model with these adapters.
    let opened = ModelFiles::open(dir.to_str().unwrap()).unwrap();
    assert_eq!((opened.lora(), opened.start(9).unwrap()), (model.lora(), want.weights));
    assert_eq!(opened.weights().unwrap(), model.weights().unwrap());
    let other = frozen.adapted(&LoraConfig { rank: 3, ..LoraConfig::default() }).unwrap();
    assert!(matches!(load(&dir, &other).unwrap_err(), CheckpointError::Foreign { .. }));
    fs::remove_file(dir.join("adapter_model.safetensors")).unwrap();
    assert!(verify(&dir).unwrap_err().to_string().contains("adapter_model.safetensors is missing"));
}

#[test]
fn another_architecture_does_not_fit() {
    let run = tempfile::tempdir().unwrap();
    let dir = saved(run.path(), 1);
    let mut other = model();
    other.spec.intermediate += 1;
    let error = load(&dir, &other).unwrap_err();
    assert!(matches!(error, CheckpointError::Foreign { .. }), "{error}");
}

fn damaged(dir: &Path, word: &str) {
    match verify(dir) {
        Err(CheckpointError::Damaged { why, .. }) => assert!(why.contains(word), "{why}"),
        other => panic!("{word}: {other:?}"),
    }
    assert!(load(dir, &model()).is_err());
    assert!(hash(dir).is_err());
}

#[test]
fn missing_extra_swapped_and_cut_files_are_found() {
    let run = tempfile::tempdir().unwrap();
    let names = names(&saved(run.path(), 1));
    for name in &names {
        let dir = saved(run.path(), 1);
        fs::remove_file(dir.join(name)).unwrap();
        damaged(&dir, name);
        let dir = saved(run.path(), 1);
        let bytes = fs::read(dir.join(name)).unwrap();
        fs::write(dir.join(name), &bytes[..bytes.len() - 1]).unwrap();
        damaged(&dir, if name.starts_with("manifest") { "manifest" } else { name });
    }
    let dir = saved(run.path(), 1);
    fs::write(dir.join("model-00001-of-00002.safetensors"), "").unwrap();
    damaged(&dir, "not in the manifest");
    fs::remove_file(dir.join("model-00001-of-00002.safetensors")).unwrap();
    let other = saved(run.path(), 2);
    fs::copy(other.join("model.safetensors"), dir.join("model.safetensors")).unwrap();
    damaged(&dir, "model.safetensors has changed");
    // A whole directory under another's name.
    let dir = saved(run.path(), 1);
    let moved = dir.with_file_name("step-5");
    fs::rename(&dir, &moved).unwrap();
    damaged(&moved, "its name says version 5");
}

#[test]
fn the_last_good_one_is_found_behind_damaged_ones() {
    let run = tempfile::tempdir().unwrap();
    assert!(last_good(run.path()).unwrap().found.is_none());
    let dirs: Vec<PathBuf> = (1..=3).map(|v| saved(run.path(), v)).collect();
    fs::write(dirs[2].join("cursor.json"), "{}").unwrap();
    fs::remove_file(dirs[1].join("model.safetensors")).unwrap();
    let LastGood { found, rejected } = last_good(run.path()).unwrap();
    assert_eq!(found, Some((PolicyVersion(1), dirs[0].clone())));
    assert_eq!(rejected.len(), 2);
}

/// What happens to a file: a bit flips, its end is missing, it is gone, another one of the checkpoint is in its place.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Flip,
    Cut,
    Missing,
    Swapped,
}

/// One checkpoint for all damages: [`verify`] reads it, each is taken back. `COHORT_TRIALS` sets how many there are.
#[test]
fn any_damage_is_found_before_it_is_loaded() {
    let run = tempfile::tempdir().unwrap();
    let dir = saved(run.path(), 1);
    let names = names(&dir);
    let cases = std::env::var("COHORT_TRIALS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(cases));
    let kind =
        prop_oneof![3 => Just(Damage::Flip), 1 => Just(Damage::Cut), 1 => Just(Damage::Missing), 1 => Just(Damage::Swapped)];
    let place = (kind, any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0u8..8);
    let damage = |(kind, file, at, bit): (Damage, prop::sample::Index, prop::sample::Index, u8)| {
        let file = file.index(names.len());
        let path = dir.join(&names[file]);
        let original = fs::read(&path).unwrap();
        let mut bytes = original.clone();
        let at = at.index(bytes.len());
        match kind {
            Damage::Flip => bytes[at] ^= 1 << bit,
            Damage::Cut => bytes.truncate(at),
            Damage::Missing => {}
            Damage::Swapped => bytes = fs::read(dir.join(&names[(file + 1 + at % (names.len() - 1)) % names.len()])).unwrap(),
        }
        match kind {
            Damage::Missing => fs::remove_file(&path).unwrap(),
            _ => fs::write(&path, &bytes).unwrap(),
        }
        let (result, found) = (verify(&dir), last_good(run.path()).unwrap().found);
        fs::write(&path, &original).unwrap();
        prop_assert!(
            matches!(result, Err(CheckpointError::Damaged { .. })),
            "{kind:?} of {}, byte {at}, bit {bit}",
            path.display()
        );
        prop_assert!(found.is_none(), "it is passed over");
        Ok(())
    };
    runner.run(&place, damage).unwrap();
    verify(&dir).unwrap();
}

/// Runs a test of this binary as a process of its own, under `prelude` of a shell.
fn child(prelude: &str, test: &str, run: &Path) -> ExitStatus {
    let script = format!("{prelude}; exec \"$0\" \"$@\"");
    let output = Command::new("sh")
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("LEARNER_TEST_RUN", run)
        .output()
        .unwrap();
    if !output.status.success() {
        eprintln!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    output.status
}

fn run_dir_of_child() -> PathBuf {
    std::env::var_os("LEARNER_TEST_RUN").expect("started by a test of this file").into()
}

#[test]
#[ignore = "the body of `a_full_disk_is_a_clean_error`, under a limit on file sizes"]
fn save_under_a_limit() {
    let (run, model) = (run_dir_of_child(), model());
    let error = save(&run, &model, &state(&model, 2), 3).unwrap_err();
    assert!(error.is_out_of_space(), "{error}");
    assert!(error.to_string().contains("cannot write"), "{error}");
    assert_eq!(names(&run.join(FOLDER)), ["step-1"]);
}

#[test]
fn a_full_disk_is_a_clean_error() {
    let run = tempfile::tempdir().unwrap();
    let dir = saved(run.path(), 1);
    let largest = fs::metadata(dir.join("optimizer.safetensors")).unwrap().len();
    // The limit counts 512-byte blocks (1024 where sh is bash): below the largest file, so that some write fails.
    for blocks in [0, 1, largest / 4096, largest / 1024 - 1] {
        let limit = format!("trap '' XFSZ; ulimit -f {blocks}");
        assert!(child(&limit, "checkpoint::save_under_a_limit", run.path()).success(), "limit of {blocks} blocks");
        verify(&dir).unwrap();
    }
}

#[test]
#[ignore = "the body of `killed_in_the_middle_of_a_save`"]
fn save_and_be_killed() {
    cohort_actors::crash::arm_from_env().unwrap();
    let (run, model) = (run_dir_of_child(), model());
    save(&run, &model, &state(&model, 2), 1).unwrap();
}

#[test]
fn killed_in_the_middle_of_a_save() {
    let (run, markers) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dir = saved(run.path(), 1);
    let armed = format!("export COHORT_CRASH=checkpoint:1 COHORT_CRASH_DIR='{}'", markers.path().display());
    let status = child(&armed, "checkpoint::save_and_be_killed", run.path());
    assert!(!status.success());
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    assert_eq!(last_good(run.path()).unwrap().found, Some((PolicyVersion(1), dir)));
    // The restarted process lives and finishes.
    assert!(child(&armed, "checkpoint::save_and_be_killed", run.path()).success());
    assert_eq!(names(&run.path().join(FOLDER)), ["step-2"]);
}

/// Killed between any two things that a save does to the disk, there is a whole checkpoint, and the next save succeeds.
#[test]
fn killed_at_every_step_of_a_save() {
    let mut steps = 0;
    loop {
        let (run, markers) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        saved(run.path(), 1);
        let armed = format!("export COHORT_CRASH=saving:{} COHORT_CRASH_DIR='{}'", steps + 1, markers.path().display());
        let status = child(&armed, "checkpoint::save_and_be_killed", run.path());
        let (found, _) = last_good(run.path()).unwrap().found.expect("a whole checkpoint");
        assert!(found == PolicyVersion(1) || found == PolicyVersion(2), "{found:?}");
        if status.success() {
            break;
        }
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
        steps += 1;
        assert!(child(&armed, "checkpoint::save_and_be_killed", run.path()).success(), "the next one lives and finishes");
        assert_eq!(names(&run.path().join(FOLDER)), ["step-2"], "after a kill at step {steps}");
    }
    assert!(steps >= 14, "{steps} steps");
}

#[test]
fn update_counts_of_any_size_survive() {
    for updates in [0, 1, 65_535, 65_536, u64::from(u32::MAX) + 7, u64::MAX] {
        let state = OptimizerState::new(WeightSet::default(), WeightSet::default(), updates);
        assert_eq!(state.into_parts().2, updates);
    }
}
