//! A disk that fills up, at every part of a run that writes: a small tmpfs in a mount namespace of the test's own, which takes
//! root. Nothing acknowledged is lost: with room again, the run ends in the bits of one that was never disturbed, by itself where
//! it is let wait.
use super::bench;
use anyhow::{Result, ensure};
use cohort_tests::launch::{Bench, Ended, GROUPS, finish};
use std::path::Path;
use std::process::Command;

/// The run ends where it meets the full disk, instead of waiting for room.
const AT_ONCE: [&str; 2] = ["--set", "cluster.full_disk_patience_s=0"];

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

/// Mounts a tmpfs of `$1` KiB on `$2` and launches on it with a patience of a minute; when `cluster status` says that the run
/// waits for room, makes some. Says what `status` said, in both forms, how long the run took to an end and with which code.
const WAITS: &str = r#"
size=$1; disk=$2; program=$3; config=$4; shift 4
mount -t tmpfs -o size="${size}k" tmpfs "$disk" || exit 99
mkdir "$disk.said"
"$program" launch "$config" --run-dir "$disk/r" --json --set cluster.full_disk_patience_s=60 "$@" >"$disk.said/report" &
launch=$!
while kill -0 $launch 2>/dev/null; do
  "$program" status "$disk/r" --json >"$disk.said/status" 2>/dev/null
  if grep -q '"full_disk"' "$disk.said/status"; then
    "$program" status "$disk/r" >"$disk.said/page"
    mount -o remount,size=64m "$disk" || exit 99
    echo "waited=yes" >&2
    echo "page=$(grep paused "$disk.said/page")" >&2
    break
  fi
  sleep 0.02
done
wait $launch
echo "code=$?" >&2
"$program" audit "$disk/r" --json >/dev/null && echo "audit=balanced" >&2
echo "steps=$(grep -c . "$disk/r/metrics.jsonl")" >&2
cat "$disk.said/report"
rm -r "$disk.said"
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

fn on_a_disk_of(kib: u32, script: &str, bench: &Bench, disk: &Path, args: &[&str]) -> Result<Ended> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh", &kib.to_string()]).arg(disk).args(bench.program_and_config());
    finish(command.args(args))
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
            let ended = on_a_disk_of(kib, SCRIPT, &bench, &disk, &[&[tier][..], &AT_ONCE].concat())?;
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

/// Sizes in KiB at which the tiny run is under way and then full, at the ledger or at a checkpoint.
const UNDER_WAY: [u32; 3] = [500, 800, 1100];

#[test]
fn a_run_on_a_full_disk_waits_says_so_and_goes_on_by_itself() -> Result<()> {
    if !may_mount()? {
        return Ok(());
    }
    let (_folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("whole", &[]))?.weights()?;
    let disk = bench.run_dir("disk");
    std::fs::create_dir(&disk)?;
    for tier in ["--threads=1", "--processes"] {
        for kib in UNDER_WAY {
            let ended = on_a_disk_of(kib, WAITS, &bench, &disk, &[tier])?;
            let said = &ended.stderr;
            ensure!(said.contains("waited=yes") && code(&ended) == Some("0"), "{kib} KiB, {tier}: {said}");
            // The event names path, free bytes and patience; the page of `status` too.
            let event = said.lines().any(|line| line.contains("no space left for ") && line.contains(" bytes free): paused"));
            let page = said.lines().any(|line| line.starts_with("page=paused: no space left for ") && line.ends_with(" of 60 s"));
            ensure!(event && page && said.contains("room again for "), "{kib} KiB, {tier}: {said}");
            ensure!(said.contains("audit=balanced") && !said.contains("panicked"), "{kib} KiB, {tier}: {said}");
            ensure!(ended.field("weights_sha256")? == &reference, "{kib} KiB, {tier}: {:?}", ended.report);
            ensure!(said.contains("steps=4"), "no line of metrics is missing or doubled: {said}");
        }
    }
    Ok(())
}

#[test]
fn a_full_disk_on_which_nobody_makes_room_ends_the_run_after_its_patience() -> Result<()> {
    if !may_mount()? {
        return Ok(());
    }
    let (_folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("whole", &[]))?.weights()?;
    let disk = bench.run_dir("disk");
    std::fs::create_dir(&disk)?;
    let begun = std::time::Instant::now();
    let patience = ["--processes", "--set", "cluster.full_disk_patience_s=2"];
    let ended = on_a_disk_of(UNDER_WAY[1], SCRIPT, &bench, &disk, &patience)?;
    let said = &ended.stderr;
    ensure!(code(&ended) == Some("8") && begun.elapsed().as_secs() >= 2, "{said}");
    ensure!(said.contains("ends after 2 s (cluster.full_disk_patience_s)"), "{said}");
    ensure!(said.contains("audit=balanced") && said.contains("audit-after=balanced"), "{said}");
    ensure!(ended.field("weights_sha256")? == &reference, "{:?}", ended.report);
    Ok(())
}
