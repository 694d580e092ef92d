// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask fstests`, on a stand-in for xfstests: the same layout, and a `check` that prints and
//! leaves the same.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

const STAND_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stand-in");

fn fstests(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask")).arg("fstests").args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Where a run says that it keeps things.
fn kept(output: &str) -> PathBuf {
    output.lines().find_map(|line| line.split_once(", kept in ")).unwrap().1.into()
}

/// How the tests of a run on `device` ended, by its progress, without reasons and times.
fn progress<'a>(output: &'a str, device: &str) -> Vec<&'a str> {
    let lines = output.lines().filter_map(|line| line.strip_prefix(device)?.split_once("] "));
    lines.map(|(_, line)| line.split([':', '(']).next().unwrap().trim()).collect()
}

#[test]
fn run_survives_tests_that_hang_and_crash() {
    let run = fstests(&["--xfstests", STAND_IN, "--mib", "512", "--timeout-per-test", "20"]);
    let output = text(&run.stdout);
    let errors = text(&run.stderr);
    let all = format!("{output}\n{errors}");

    let expected = [
        "generic/001 passed",
        "generic/002 failed",
        "generic/003 not run",
        "generic/004 hung",
        "generic/005 crashed",
        "generic/006 passed",
        "generic/007 failed",
    ];
    assert_eq!(progress(&output, "vhost-pmemd"), expected, "{all}");
    let row = |test: &str| output.lines().rfind(|line| line.starts_with(test)).unwrap();
    assert!(row("generic/002").ends_with("  output mismatch"), "{all}");
    assert!(row("generic/003").ends_with("  this test wants a second moon"), "{all}");
    assert!(row("generic/004").contains("  no end after "), "{all}");
    assert!(
        row("generic/005").ends_with("Kernel panic - not syncing: sysrq triggered crash"),
        "{all}"
    );
    for fact in
        ["date         20", "options      --xfstests ", "kernel       6.", "e2fsprogs    1."]
    {
        assert!(output.lines().any(|line| line.starts_with(fact)), "{fact}: {all}");
    }
    let counts = "vhost-pmemd: 2 passed, 2 failed, 1 not run, 1 hung, 1 crashed\n";
    assert!(output.contains(counts), "{all}");
    assert_eq!(run.status.code(), Some(1));
    let blamed =
        "xtask: bad on our device: generic/002, generic/004, generic/005, generic/007; see ";
    assert!(errors.lines().any(|line| line.starts_with(blamed)), "{all}");

    let kept = kept(&output).join("vhost-pmemd");
    let read = |file: &str| fs::read_to_string(kept.join(file)).unwrap();
    assert_eq!(read("generic/002/002.out.bad"), "found\n");
    assert_eq!(read("generic/002/002.full"), "more of it\n");
    assert!(read("generic/002/check.out").contains("\n    -expected\n    +found\n"));
    assert_eq!(read("generic/004/004.full"), "on the way\n", "of a guest that was killed");
    assert!(read("generic/004/console.log").contains("sleep 1000"), "the tasks");
    assert!(read("generic/005/console.log").contains("sysrq_handle_crash"), "the stack");
    for test in ["generic/002", "generic/004"] {
        let log = read(&format!("{test}/kernel.log"));
        assert!(log.contains(&format!("run fstests {test} at ")), "{test}: {log}");
        assert_eq!(log.matches("run fstests").count(), 1, "{test}: {log}");
    }
    // One guest, but for those that were lost.
    assert!(kept.join("boot-3").exists() && !kept.join("boot-4").exists());
    assert!(read("boot-1/vhost-pmemd-scratch.log").contains("guest activated the device"));
    assert!(!kept.join("generic/001").exists() && !kept.join("generic/003").exists());
}

#[test]
fn run_with_baseline_blames_what_fails_here_alone() {
    let dir = TempDir::new().unwrap();
    let junit = dir.path().join("junit.xml");
    let args = ["--xfstests", STAND_IN, "--mib", "512", "--baseline", "--group", "auto"];
    let args = [&args[..], &["--exclude", "quick,dangerous", "--junit", junit.to_str().unwrap()]];
    let run = fstests(&args.concat());
    let output = text(&run.stdout);
    let errors = text(&run.stderr);
    let all = format!("{output}\n{errors}");

    let ours = ["generic/002 failed", "generic/007 failed"];
    assert_eq!(progress(&output, "vhost-pmemd"), ours, "{all}");
    let baseline = ["generic/002 failed", "generic/007 passed"];
    assert_eq!(progress(&output, "virtio-pmem-pci"), baseline, "{all}");
    let row = |test: &str| output.lines().rfind(|line| line.starts_with(test)).unwrap();
    assert!(row("generic/002").ends_with("  failed      output mismatch"), "{all}");
    assert!(row("generic/007").ends_with("  passed      output mismatch"), "{all}");
    assert!(output.contains("QEMU's own: 1 passed, 1 failed, 0 not run"), "{all}");
    assert_eq!(run.status.code(), Some(1));
    let blamed = "xtask: bad on our device, and not on QEMU's own: generic/007; see ";
    assert!(errors.lines().any(|line| line.starts_with(blamed)), "{all}");

    let junit = fs::read_to_string(junit).unwrap();
    let suite = "\"xfstests on ext4\" tests=\"2\" failures=\"1\" errors=\"0\" skipped=\"1\"";
    assert!(junit.contains(suite), "{junit}");
    let failure = junit.split("name=\"generic/007\"").nth(1).unwrap();
    assert!(
        failure.contains(
            "<failure message=\"failed: output mismatch; on the baseline: passed\">generic/007 "
        ),
        "{junit}"
    );
}

#[test]
fn run_of_chosen_tests_on_xfs_is_success() {
    let args = ["--xfstests", STAND_IN, "--mib", "512", "--fs", "xfs", "--group", "quick,xfs/auto"];
    let run = fstests(&[&args[..], &["--exclude", "generic/006,dangerous"]].concat());
    let output = text(&run.stdout);
    let all = format!("{output}\n{}", text(&run.stderr));
    assert!(run.status.success(), "{all}");
    let expected = ["generic/001 passed", "generic/003 not run", "xfs/001 passed"];
    assert_eq!(progress(&output, "vhost-pmemd"), expected, "{all}");
    assert!(progress(&output, "virtio-pmem-pci").is_empty(), "{all}");
    let left: Vec<_> = fs::read_dir(kept(&output)).unwrap().collect();
    assert_eq!(left.len(), 2, "the table and a device: {left:?}");
}

#[test]
fn run_that_is_interrupted_tells_what_ended_and_leaves_no_process() {
    interrupt(|child| kill_process(child, Signal::TERM).unwrap());
    // A terminal's ^C reaches the guest and the daemons as well.
    interrupt(|child| kill_process_group(child, Signal::INT).unwrap());
}

/// Interrupts a run, in a process group of its own, in its second test.
fn interrupt(how: impl FnOnce(Pid)) {
    let dir = TempDir::new().unwrap();
    let junit = dir.path().join("junit.xml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["fstests", "--xfstests", STAND_IN, "--mib", "512", "generic/003-004"]);
    command.arg("--junit").arg(&junit).process_group(0);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut seen: Vec<_> =
        output.by_ref().take_while(|line| !line.contains("003 not run")).collect();
    how(Pid::from_child(&child));
    seen.extend(output);
    let run = child.wait_with_output().unwrap();
    let seen = format!("{}\n{}", seen.join("\n"), text(&run.stderr));
    assert_eq!(run.status.code(), Some(1), "{seen}");
    assert!(seen.contains("xtask: interrupted: 1 of 2 tests have a result; see "), "{seen}");
    assert!(
        seen.contains("\nvhost-pmemd: 0 passed, 0 failed, 1 not run, 0 hung, 0 crashed\n"),
        "{seen}"
    );
    let junit = fs::read_to_string(junit).unwrap();
    assert!(
        junit.contains("name=\"generic/003\"") && !junit.contains("generic/004\" time"),
        "{junit}"
    );

    let kept = kept(&seen);
    let is_of_run = |entry: &fs::DirEntry| {
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        text(&words).contains(kept.to_str().unwrap())
    };
    let left: Vec<_> = fs::read_dir("/proc").unwrap().flatten().filter(is_of_run).collect();
    assert!(left.is_empty(), "{left:?}");
    let boot = kept.join("vhost-pmemd/boot-1");
    assert!(!boot.join("test").exists() && boot.join("console.log").exists(), "the devices' files");
}

#[test]
fn devices_are_what_a_table_says_in_the_window_that_is_asked_for() {
    let dir = TempDir::new().unwrap();
    let table = dir.path().join("table");
    fs::write(&table, "0 1048576 mirror core 1 1024 2 {dir}/a 0 {dir}/b 0\n").unwrap();
    let table = table.to_str().unwrap();
    let args = ["--xfstests", STAND_IN, "--mib", "512", "--table", table, "--window", "served"];
    let run = fstests(&[&args[..], &["--dax", "never", "generic/008"]].concat());
    let output = text(&run.stdout);
    let all = format!("{output}\n{}", text(&run.stderr));
    if all.contains("a served window needs") {
        eprintln!("skipped: {all}");
        return;
    }
    assert!(run.status.success(), "{all}");
    let log = kept(&output).join("vhost-pmemd/boot-1/vhost-pmemd-scratch.log");
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("mirror"), "{log}");
}

#[test]
fn dry_run_lists_the_tests_and_runs_none() {
    let run = fstests(&["--xfstests", STAND_IN, "--dry-run", "generic/002-004", "generic/006"]);
    assert!(run.status.success());
    assert_eq!(text(&run.stdout), "generic/002\ngeneric/003\ngeneric/004\ngeneric/006\n");
    assert_eq!(text(&run.stderr), "");
}

/// The last line of what is said about `args`, before anything is obtained or built.
fn refusal(args: &[&str]) -> String {
    let run = fstests(args);
    assert!(!run.status.success());
    assert_eq!(text(&run.stdout), "");
    text(&run.stderr).lines().last().unwrap().to_owned()
}

fn refusal_of_tree(dir: &Path) -> String {
    refusal(&["--xfstests", dir.to_str().unwrap()]).replace(dir.to_str().unwrap(), "DIR")
}

#[test]
fn directory_that_is_no_built_xfstests_is_refused() {
    let dir = TempDir::new().unwrap();
    let missing = dir.path().join("none");
    assert_eq!(refusal_of_tree(&missing), "xtask: --xfstests: there is no directory DIR");
    let error = "xtask: --xfstests: DIR is no xfstests: it has no script `check`";
    assert_eq!(refusal_of_tree(dir.path()), error);

    fs::write(dir.path().join("check"), "").unwrap();
    let error = refusal_of_tree(dir.path());
    assert!(error.contains("DIR isn't built, it has no ltp/fsstress: run `make` in it"), "{error}");
    fs::create_dir(dir.path().join("ltp")).unwrap();
    fs::write(dir.path().join("ltp/fsstress"), "").unwrap();
    let error = refusal_of_tree(dir.path());
    assert!(error.contains("isn't built, it has no tests/generic/group.list"), "{error}");
}

#[test]
fn unknown_groups_tests_and_places_are_refused() {
    let refusal = |args: &[&str]| refusal(&[&["--xfstests", STAND_IN][..], args].concat());
    assert_eq!(
        refusal(&["--group", "quick,slow"]),
        "xtask: no test of generic, shared, ext4 is in a group \"slow\"; there are: auto, dangerous, dax, quick"
    );
    let error = refusal(&["generic/001", "generic/999"]);
    assert!(error.starts_with("xtask: there is no test \"generic/999\" in "), "{error}");
    assert!(refusal(&["--exclude", "auto"]).contains("all tests that were asked for are excluded"));
    assert!(refusal(&["--junit", "/none/x", "generic/001"]).contains("cannot write /none/x"));
    let dir = TempDir::new().unwrap();
    let table = dir.path().join("table");
    fs::write(&table, "0 8 zero\n").unwrap();
    assert!(refusal(&["--table", table.to_str().unwrap()]).contains("names no file {dir}/NAME"));
    assert!(refusal(&["--exclude", "slow"]).contains("--exclude: no test of"));
}
