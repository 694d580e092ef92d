// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask test --lane kvm`: the guests' tests under real KVM.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use guest_harness::{CloudHypervisor, InstalledKvmHost, Kernel, KvmHost, Lab, Outcome};

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

/// The tests that take an executable which the user brings.
const CLOUD_HYPERVISOR: &str = "cloud_hypervisor::";

/// Which tests to run.
pub(crate) enum Choice {
    /// [`CORE`].
    Core,
    /// Those whose names contain one of these; all, if there is none.
    Matching(Vec<String>),
}

/// How long one machine may take for the core, and for more.
const LIMITS: [Duration; 2] = [Duration::from_secs(900), Duration::from_secs(14400)];

/// Runs them, on two machines at once. None may be skipped: the machine has all that a test can ask for.
pub(crate) fn run(choice: &Choice) -> Result<()> {
    let lab = Lab::open()?;
    let [test, daemon] = build()?;
    let mut host = KvmHost::new(&lab)?.program(&test).program(daemon);
    let vmm = CloudHypervisor::named().map(CloudHypervisor::absolute).transpose()?;
    if let Some(vmm) = &vmm {
        host = host.program(vmm.program());
    }
    let all = known(&test, &[])?;
    let brings_vmm = |name: &String| name.starts_with(CLOUD_HYPERVISOR);
    let (mut names, limit) = match choice {
        Choice::Core => {
            let core = CORE.map(str::to_owned).into_iter();
            (core.chain(all.iter().filter(|name| brings_vmm(name)).cloned()).collect(), LIMITS[0])
        }
        Choice::Matching(filters) => {
            host = host.kernel(Kernel::Bookworm)?.package("fio")?.package("erofs-utils")?;
            (known(&test, filters)?, LIMITS[1])
        }
    };
    if vmm.is_none() {
        names.retain(|name| !brings_vmm(name));
        println!("cloud-hypervisor: skipped, as CLOUD_HYPERVISOR doesn't name its executable");
    }
    ensure!(!names.is_empty(), "no test has such a name");
    let unknown = names.iter().find(|name| !all.contains(name));
    ensure!(
        unknown.is_none(),
        "the core's {} has another name now",
        unknown.map_or("", String::as_str)
    );
    let lane = Lane { host: host.install()?, test, vmm, limit, began: Instant::now() };
    thread::scope(|scope| {
        let machines = [1, 2].map(|machine| {
            let share = names.iter().skip(machine - 1).step_by(2).cloned().collect();
            let lane = &lane;
            scope.spawn(move || lane.run(machine, share))
        });
        let ended =
            machines.map(|machine| machine.join().map_err(|_| anyhow!("a thread panicked"))?);
        ended.into_iter().collect::<Result<()>>()
    })?;
    println!("{} tests passed in {:.0?} under KVM", names.len(), lane.began.elapsed());
    Ok(())
}

struct Lane<'lab> {
    host: InstalledKvmHost<'lab>,
    test: PathBuf,
    vmm: Option<CloudHypervisor>,
    limit: Duration,
    began: Instant,
}

impl Lane<'_> {
    /// Runs the tests `left` on a machine of their own. Where that itself crashes, not a test, it is
    /// booted once more, for the tests that have no result.
    fn run(&self, machine: usize, mut left: Vec<String>) -> Result<()> {
        let mut reboots = 1;
        while !left.is_empty() {
            let began = self.began;
            let echo = move |line: &str| {
                println!("{:4} s | machine {machine} | {line}", began.elapsed().as_secs());
            };
            let outcome = self.host.run(&self.command(&left), self.limit, echo)?;
            let results = Results::of(&outcome.serial);
            left.retain(|name| !results.passed.contains(name));
            if crashed(&outcome) && results.failed.is_empty() && reboots > 0 {
                reboots -= 1;
                println!(
                    "machine {machine} CRASHED, which is no test's failure; it is booted once more for: {left:?}"
                );
                continue;
            }
            let serial = outcome.expect_success()?.serial;
            let skipped = serial
                .lines()
                .find(|line| line.contains("skipped: ") || line.contains("not tested: "));
            ensure!(skipped.is_none(), "{}", skipped.unwrap_or_default());
            ensure!(left.is_empty(), "no result of {left:?}");
        }
        Ok(())
    }

    fn command(&self, names: &[String]) -> Command {
        let mut command = Command::new(&self.test);
        // The machine has one CPU.
        command.args(["--test-threads", "1", "--show-output", "--exact"]).args(names);
        for (name, value) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("VHOST_PMEM_KILL_") {
                command.env(name, value);
            }
        }
        if let Some(vmm) = &self.vmm {
            vmm.pass_to(&mut command);
        }
        command
    }
}

/// Whether the machine ended before the tests did, and not by its time limit.
fn crashed(outcome: &Outcome) -> bool {
    outcome.script_status.is_none() && !outcome.timed_out
}

/// What the tests have said.
#[derive(Debug, Default, PartialEq, Eq)]
struct Results {
    passed: Vec<String>,
    failed: Vec<String>,
}

impl Results {
    fn of(serial: &str) -> Self {
        let mut results = Self::default();
        let told =
            serial.lines().filter_map(|line| line.strip_prefix("test ")?.split_once(" ... "));
        for (name, result) in told {
            match result {
                "ok" => results.passed.push(name.to_owned()),
                "FAILED" => results.failed.push(name.to_owned()),
                _ => {}
            }
        }
        results
    }
}

/// The names of the tests that contain one of `filters`; all, if there is none.
fn known(test: &Path, filters: &[String]) -> Result<Vec<String>> {
    let mut list = Command::new(test);
    list.args(["--list", "--format", "terse"]).args(filters);
    let output = list.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "`{}` failed ({})", shown(&list), output.status);
    let lines = String::from_utf8(output.stdout)?;
    Ok(lines.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
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

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    const CRASH: &str = "test a::b ... ok\ntest a::c ... [  262.4] Kernel panic - not syncing\n";

    fn outcome(script_status: Option<i32>, timed_out: bool) -> Outcome {
        Outcome {
            script_status,
            serial: CRASH.to_owned(),
            qemu_status: ExitStatus::from_raw(0),
            qemu_stderr: String::new(),
            timed_out,
            elapsed: Duration::ZERO,
        }
    }

    #[test]
    fn test_under_way_at_a_crash_has_no_result() {
        assert_eq!(Results::of(CRASH), Results { passed: vec!["a::b".to_owned()], failed: vec![] });
        let failed = Results::of("test a::b ... FAILED\n test a::c ... ok\n").failed;
        assert_eq!(failed, ["a::b"]);
    }

    #[test]
    fn machine_that_ends_before_its_tests_crashed() {
        assert!(crashed(&outcome(None, false)));
        assert!(!crashed(&outcome(Some(101), false)));
        assert!(!crashed(&outcome(None, true)));
    }
}
