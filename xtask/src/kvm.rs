// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask test --lane kvm`: the guests' tests under real KVM.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest_harness::{Kernel, KvmHost, Lab};

use crate::process::{cargo, shown};

/// What of `tests/guest/` differs where a CPU's page tables, and not QEMU, lead to the pages.
const CORE: [&str; 12] = [
    "accelerator::guest_runs_on_the_accelerator_in_use",
    "layout::region_of_64_extents_is_one_device",
    "persistence::ext4::killed_right_after_fsync_finds_what_was_synced_in_a_clean_filesystem",
    "persistence::ext4::mounted_with_dax_writes_land_in_the_host_file",
    "persistence::ext4::published::mounted_with_dax_writes_land_in_the_host_file",
    "persistence::ext4::rebooted_within_one_qemu_finds_everything",
    "served::ext4::snapshot_keeps_what_is_written_and_its_origin_is_not_touched",
    "served::read_only::read_only_device_written_through_a_mapping_is_the_same",
    "served::read_only::read_only_memory_written_at_its_address_is_the_same",
    "unplug::daemon_killed_under_stores_harms_no_other_device",
    "unplug::device_torn_out_by_its_guest_is_free_for_the_next",
    "unplug::store_disabled_under_stores_is_taken_from_the_guest",
];

/// Which tests to run.
pub(crate) enum Choice {
    /// [`CORE`].
    Core,
    /// Those whose names contain one of these; all, if there is none.
    Matching(Vec<String>),
}

/// Runs them. None may be skipped: the machine has all that a test can ask for.
pub(crate) fn run(choice: &Choice) -> Result<()> {
    let lab = Lab::open()?;
    let [test, daemon] = build()?;
    let mut command = Command::new(&test);
    // The machine has two CPUs, and a guest one.
    command.args(["--test-threads", "2", "--show-output"]);
    let mut host = KvmHost::new(&lab)?.program(&test).program(daemon);
    match choice {
        Choice::Core => command.arg("--exact").args(CORE),
        Choice::Matching(filters) => {
            host = host.kernel(Kernel::Bookworm)?.package("fio")?;
            command.args(filters)
        }
    };
    for (name, value) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("VHOST_PMEM_KILL_") {
            command.env(name, value);
        }
    }
    let began = Instant::now();
    let echo = move |line: &str| println!("{:4} s | {line}", began.elapsed().as_secs());
    let limit = Duration::from_secs(if matches!(choice, Choice::Core) { 1200 } else { 14400 });
    let serial = host.run(&command, limit, echo)?.expect_success()?.serial;
    let skipped =
        serial.lines().find(|line| line.contains("skipped: ") || line.contains("not tested: "));
    ensure!(skipped.is_none(), "{}", skipped.unwrap_or_default());
    let passed = passed(&serial).context("the tests gave no result")?;
    match choice {
        Choice::Core => ensure!(passed == CORE.len(), "a test of the core has another name now"),
        Choice::Matching(_) => ensure!(passed > 0, "no test has such a name"),
    }
    Ok(())
}

/// Builds the guests' tests and the daemon, and returns the executables. The tests were told when they
/// were compiled where the daemon is.
fn build() -> Result<[PathBuf; 2]> {
    let mut build = cargo(["test", "--test", "guest", "--no-run", "--quiet"]);
    build.args(["--message-format", "json-render-diagnostics"]);
    let output = build.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "`{}` failed ({})", shown(&build), output.status);
    let messages = String::from_utf8(output.stdout)?;
    let messages: Vec<serde_json::Value> =
        messages.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let executable = |name| {
        let ours = messages.iter().filter(|message| message["target"]["name"] == name);
        let path = ours.filter_map(|message| message["executable"].as_str()).next_back();
        path.map(PathBuf::from).with_context(|| format!("cargo names no executable {name}"))
    };
    Ok([executable("guest")?, executable("vhost-pmemd")?])
}

/// How many tests have passed.
fn passed(serial: &str) -> Option<usize> {
    let result = serial.lines().find_map(|line| line.split_once("test result: ok. "))?.1;
    result.split_once(" passed")?.0.parse().ok()
}
