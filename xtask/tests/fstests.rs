// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask fstests`, on a stand-in for xfstests: the same layout, and a `check` that prints and
//! leaves the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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
    assert!(row("generic/004").ends_with("  no end after 20 s"), "{all}");
    assert!(
        row("generic/005").ends_with("Kernel panic - not syncing: sysrq triggered crash"),
        "{all}"
    );
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
            "<failure message=\"failed: output mismatch; on the baseline: passed\">FSTYP "
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
    assert!(refusal(&["--exclude", "slow"]).contains("--exclude: no test of"));
}
