//! A disk that fills up, at every part of a run that writes: a small tmpfs in a mount namespace of the test's own, which takes
//! root. Nothing acknowledged is lost: with room again, the run ends in the bits of one that was never disturbed.
use super::bench;
use anyhow::{Result, ensure};
use cohort_tests::launch::{Bench, Ended, GROUPS, finish};
use std::path::Path;
use std::process::Command;

/// Mounts a tmpfs of `$1` KiB on `$2`, launches with the remaining arguments and `--run-dir $2/r`, says the exit code and
/// what was left; if a run was begun, it makes room, goes on with it and audits it. Everything goes with the namespace.
const SCRIPT: &str = r#"
size=$1; disk=$2; program=$3; config=$4; shift 4
mount -t tmpfs -o size="${size}k" tmpfs "$disk" || exit 99
"$program" launch "$config" --run-dir "$disk/r" --json "$@"
echo "code=$?" >&2
echo "begun=$(test -e "$disk/r" && echo yes || echo no)" >&2
test -e "$disk/r" || exit 0
mount -o remount,size=64m "$disk" || exit 99
"$program" audit "$disk/r" --json >/dev/null && echo "audit=balanced" >&2
"$program" launch --resume "$disk/r" --json "$@" >"$disk/report" || exit 98
"$program" audit "$disk/r" --json >/dev/null && echo "audit-after=balanced" >&2
cat "$disk/report"
"#;

/// Whether the system lets this test have its own mounts. Says so loudly where not.
fn may_mount() -> Result<bool> {
    let may = Command::new("unshare").args(["--mount", "true"]).output().is_ok_and(|o| o.status.success());
    if !may {
        use std::io::Write;
        writeln!(std::io::stderr(), "SKIPPED: full disks: `unshare --mount` is refused here; run the tests as root")?;
    }
    Ok(may)
}

fn on_a_disk_of(kib: u32, bench: &Bench, disk: &Path, tier: &str) -> Result<Ended> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", SCRIPT, "sh", &kib.to_string()]).arg(disk).args(bench.program_and_config());
    finish(command.arg(tier))
}

/// Ten sizes in KiB, or as many as `COHORT_TRIALS` says, up to one that has room for everything.
fn sizes() -> Vec<u32> {
    match std::env::var("COHORT_TRIALS").ok().and_then(|n| n.parse::<u32>().ok()) {
        None => vec![100, 300, 450, 600, 800, 1000, 1200, 1500, 2000, 4000],
        Some(trials) => (0..trials).map(|i| 100 + i * 2400 / trials).chain([4000]).collect(),
    }
}

fn code(ended: &Ended) -> Option<&str> {
    ended.stderr.lines().find_map(|line| line.strip_prefix("code="))
}

#[test]
fn a_full_disk_loses_nothing_wherever_it_is_met() -> Result<()> {
    if !may_mount()? {
        return Ok(());
    }
    let (_folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("whole", &[]))?.weights()?;
    bench.balanced("whole", 4 * GROUPS)?;
    let disk = bench.run_dir("disk");
    std::fs::create_dir(&disk)?;
    for tier in ["--threads=1", "--processes"] {
        let (mut refused, mut stopped, mut whole) = (0, 0, 0);
        for kib in sizes() {
            let ended = on_a_disk_of(kib, &bench, &disk, tier)?;
            let said = &ended.stderr;
            let begun = said.contains("begun=yes");
            match code(&ended) {
                Some("0") => whole += 1,
                Some("8") if !begun => {
                    ensure!(said.contains("nothing was begun"), "{kib} KiB: {said}");
                    refused += 1;
                }
                Some("8") => {
                    ensure!(said.contains("audit=balanced"), "{kib} KiB: {said}");
                    stopped += 1;
                }
                other => anyhow::bail!("{kib} KiB, {tier}: exit code {other:?}: {said}"),
            }
            let space = said.contains("no space left") || said.contains("free space on this disk");
            ensure!(code(&ended) == Some("0") || space && !said.contains("panicked"), "{kib} KiB: {said}");
            if begun {
                ensure!(said.contains("audit-after=balanced"), "{kib} KiB, {tier}: {said}");
                ensure!(ended.field("weights_sha256")? == &reference, "{kib} KiB, {tier}: {:?}", ended.report);
            }
        }
        ensure!(refused > 0 && stopped > 1 && whole > 0, "{tier}: {refused} refused, {stopped} stopped, {whole} went through");
    }
    Ok(())
}
