// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask fstests`: the file systems' own regression tests, xfstests, in a guest on two devices
//! of ours.
//!
//! A guest runs one `check` for all tests that are left. A test that hangs or crashes its guest ends it,
//! and the next boot, on new devices, goes on with the one after it. With a baseline all of that is done again on
//! QEMU's own device, which tells what is the guest kernel's fault.

mod about;
mod artefacts;
mod boot;
mod device;
mod interrupt;
mod junit;
mod options;
mod report;
mod suite;
mod verdict;
mod watch;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guest_harness::{Lab, patience, target_dir};

use self::about::About;
use self::boot::Setup;
use self::device::{Device, Ours, Table};
use self::interrupt::Interrupt;
use self::options::Filesystem;
pub(crate) use self::options::Options;
use self::report::Row;
use self::suite::{Suite, Wanted};
use self::verdict::Ended;
use crate::process::{cargo, run as run_command};

/// What xfstests' `check` and its tests call, as Debian packages.
const PACKAGES: [&str; 39] = [
    "acl",
    "attr",
    "base-files",
    "bash",
    "bc",
    "bsdextrautils",
    "bsdutils",
    "coreutils",
    "dash",
    "dbench",
    "debianutils",
    "diffutils",
    "dmsetup",
    "e2fsprogs",
    "file",
    "findutils",
    "fio",
    "gawk",
    "grep",
    "gzip",
    "hostname",
    "keyutils",
    "kmod",
    "libc-bin",
    "libcap2-bin",
    "libgdbm-compat4t64",
    "liburing2",
    "lvm2",
    "mount",
    "passwd",
    "perl",
    "procps",
    "psmisc",
    "quota",
    "sed",
    "util-linux",
    "uuid-runtime",
    "xfsdump",
    "xfsprogs",
];

/// What isn't part of a built tree: what earlier runs of `check` left, and the history.
const LEFT_OUT: [&str; 2] = ["results", ".git"];

/// Runs the tests. It's an error if one is to be blamed on us.
pub(crate) fn run(options: &Options) -> Result<()> {
    let suite = Suite::open(&options.xfstests).context("--xfstests")?;
    let auto = ["auto".to_owned()];
    let groups = if options.group.is_empty() && options.tests.is_empty() {
        &auto
    } else {
        &options.group[..]
    };
    let wanted = Wanted { groups, tests: &options.tests, excluded: &options.exclude };
    let tests = suite.select(options.fs, &wanted)?;
    let table = options.table.as_deref().map(Table::read).transpose().context("--table")?;
    if options.dry_run {
        tests.iter().for_each(|test| println!("{test}"));
        return Ok(());
    }
    if let Some(path) = &options.junit {
        // Better now than after hours.
        fs::write(path, "").with_context(|| format!("cannot write {}", path.display()))?;
    }

    let lab = Lab::open()?;
    let kernel = options.kernel.of_harness();
    let root_disk = lab.root_disk(options.kernel.root_disk(), &PACKAGES, kernel)?;
    run_command(&mut cargo(["build", "--quiet", "--package", "vhost-pmemd"]))?;
    let program = target_dir().join("debug/vhost-pmemd");
    let about = About::new(&lab, suite.dir(), &program, &root_disk, kernel, options.fs)?;
    let dir = new_directory(options.fs)?;
    let suite_disk = dir.join("xfstests.img");
    lab.disk_of(suite.dir(), &LEFT_OUT, &suite_disk)?;
    let interrupt = Interrupt::on_signals()?;
    let setup = Setup {
        lab: &lab,
        root_disk: &root_disk,
        suite_disk: &suite_disk,
        kernel,
        filesystem: options.fs,
        dax: options.dax,
        device_mib: options.mib,
        limit: patience(Duration::from_secs(options.timeout_per_test)),
        interrupt: &interrupt,
    };
    println!("{} tests on {}, kept in {}", tests.len(), options.fs.name(), dir.display());
    let device = Device::Ours(Ours { program, window: options.window, table });
    let (mut ours, mut baseline) = (Vec::new(), Vec::new());
    let mut result = run_on(&setup, &device, &tests, &dir, &mut ours);
    if options.baseline && result.is_ok() {
        result = run_on(&setup, &Device::Baseline, &tests, &dir, &mut baseline);
    }
    fs::remove_file(suite_disk)?;

    let baseline: BTreeMap<_, _> =
        baseline.into_iter().map(|ended| (ended.test, ended.verdict)).collect();
    let row = |ours: Ended| Row { baseline: baseline.get(&ours.test).cloned(), ours };
    let rows: Vec<_> = ours.into_iter().map(row).collect();
    // Also of a run that came to no end.
    let table = format!("{about}\n{}", report::table(&rows));
    println!("\n{table}");
    fs::write(dir.join("table.txt"), table)?;
    if let Some(path) = &options.junit {
        let name = format!("xfstests on {}", options.fs.name());
        fs::write(path, junit::xml(&name, &about, &rows))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    ensure!(
        !interrupt.came(),
        "interrupted: {} of {} tests have a result{}; see {}",
        rows.len(),
        tests.len(),
        if options.baseline {
            format!(", {} on QEMU's own", baseline.len())
        } else {
            String::new()
        },
        dir.display()
    );
    result?;
    let worse: Vec<_> =
        rows.iter().filter(|row| row.is_worse()).map(|row| row.ours.test.as_str()).collect();
    let where_else = if options.baseline { ", and not on QEMU's own" } else { "" };
    ensure!(
        worse.is_empty(),
        "bad on our device{where_else}: {}; see {}",
        worse.join(", "),
        dir.display()
    );
    Ok(())
}

/// Runs all of `tests` on `device`, in as many boots as that takes, until interrupted; `all` has those
/// that ended.
fn run_on(
    setup: &Setup<'_>,
    device: &Device,
    tests: &[String],
    dir: &Path,
    all: &mut Vec<Ended>,
) -> Result<()> {
    for boot in 1.. {
        let is_left = |test: &&String| all.iter().all(|ended| ended.test != **test);
        let left: Vec<_> = tests.iter().filter(is_left).cloned().collect();
        if left.is_empty() || setup.interrupt.came() {
            break;
        }
        let report = |ended: &Ended| {
            let Ended { test, verdict, .. } = ended;
            let number = tests.iter().position(|other| other == test).map_or(0, |at| at + 1);
            let seconds = ended.elapsed.as_secs_f64();
            println!(
                "{} [{number}/{}] {test} {verdict} ({seconds:.1} s)",
                device.name(),
                tests.len()
            );
        };
        let kept = dir.join(device.name());
        let dir = kept.join(format!("boot-{boot}"));
        all.append(&mut setup.boot(device, &left, &dir, &kept, report)?);
    }
    Ok(())
}

/// A directory for this run, with a name that no other has: `target/fstests/ext4-1`.
fn new_directory(filesystem: Filesystem) -> Result<PathBuf> {
    let runs = target_dir().join("fstests");
    fs::create_dir_all(&runs)?;
    let runs = runs.canonicalize()?;
    let mut number = 1;
    loop {
        let dir = runs.join(format!("{}-{number}", filesystem.name()));
        match fs::create_dir(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
            result => {
                return result.map(|()| dir).context("cannot make a directory for the results");
            }
        }
    }
}
