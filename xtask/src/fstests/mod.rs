// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask fstests`: the file systems' own regression tests, xfstests, in a guest on two devices
//! of ours.
//!
//! A guest runs one test after another. A test that hangs or crashes its guest ends it, and the next
//! boot, on new devices, goes on with the one after it. With a baseline all of that is done again on
//! QEMU's own device, which tells what is the guest kernel's fault.

mod artefacts;
mod boot;
mod device;
mod junit;
mod report;
mod suite;
mod verdict;
mod watch;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use guest_harness::{Lab, patience, target_dir};

use self::boot::Setup;
use self::device::Device;
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

/// The command's options.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// A built xfstests: the directory with `check` in it
    #[arg(long, value_name = "DIR")]
    xfstests: PathBuf,
    /// The file system, on which both devices are mounted with -o dax=always
    #[arg(long, default_value = "ext4")]
    fs: Filesystem,
    /// Run the tests of these groups, such as quick or xfs/quick; auto, if no test is named either
    #[arg(long, value_delimiter = ',')]
    group: Vec<String>,
    /// Leave out these tests and groups
    #[arg(long, value_delimiter = ',')]
    exclude: Vec<String>,
    /// Run the tests on QEMU's own device as well, and blame us for what fails on ours alone
    #[arg(long)]
    baseline: bool,
    /// Write the results to this file, as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Kill the guest when a test takes longer, in seconds on a quiet machine
    #[arg(long, value_name = "SECS", default_value_t = 900, value_parser = clap::value_parser!(u64).range(1..))]
    timeout_per_test: u64,
    /// The size of each device in MiB, a power of two
    #[arg(long, value_name = "MIB", default_value_t = 4096, value_parser = power_of_two)]
    mib: u64,
    /// Run these tests, such as generic/001, beside those of the groups
    #[arg(value_name = "TEST")]
    tests: Vec<String>,
}

/// What the devices are formatted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Filesystem {
    Ext4,
    Xfs,
}

impl Filesystem {
    /// As xfstests names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

fn power_of_two(text: &str) -> Result<u64, String> {
    let mib: u64 = text.parse().map_err(|error| format!("{error}"))?;
    // Smaller ones hold no XFS.
    if mib.is_power_of_two() && mib >= 512 {
        Ok(mib)
    } else {
        Err("a power of two from 512 on is needed".into())
    }
}

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
    if let Some(path) = &options.junit {
        // Better now than after hours.
        fs::write(path, "").with_context(|| format!("cannot write {}", path.display()))?;
    }

    let lab = Lab::open()?;
    let root_disk = lab.root_disk("fstests-root", &PACKAGES)?;
    run_command(&mut cargo(["build", "--quiet", "--package", "vhost-pmemd"]))?;
    let dir = new_directory(options.fs)?;
    let suite_disk = dir.join("xfstests.img");
    lab.disk_of(suite.dir(), &LEFT_OUT, &suite_disk)?;
    let setup = Setup {
        lab: &lab,
        root_disk: &root_disk,
        suite_disk: &suite_disk,
        filesystem: options.fs,
        device_mib: options.mib,
        limit: patience(Duration::from_secs(options.timeout_per_test)),
    };
    println!("{} tests on {}, kept in {}", tests.len(), options.fs.name(), dir.display());
    let ours = run_on(&setup, &Device::Ours(target_dir().join("debug/vhost-pmemd")), &tests, &dir)?;
    let baseline = match options.baseline {
        true => run_on(&setup, &Device::Baseline, &tests, &dir)?,
        false => Vec::new(),
    };
    fs::remove_file(suite_disk)?;

    let baseline: BTreeMap<_, _> =
        baseline.into_iter().map(|ended| (ended.test, ended.verdict)).collect();
    let row = |ours: Ended| Row { baseline: baseline.get(&ours.test).cloned(), ours };
    let rows: Vec<_> = ours.into_iter().map(row).collect();
    let table = report::table(&rows);
    println!("\n{table}");
    fs::write(dir.join("table.txt"), table)?;
    if let Some(path) = &options.junit {
        let name = format!("xfstests on {}", options.fs.name());
        fs::write(path, junit::xml(&name, &rows))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
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

/// Runs all of `tests` on `device`, in as many boots as that takes.
fn run_on(setup: &Setup<'_>, device: &Device, tests: &[String], dir: &Path) -> Result<Vec<Ended>> {
    let mut all: Vec<Ended> = Vec::new();
    for boot in 1.. {
        let is_left = |test: &&String| all.iter().all(|ended| ended.test != **test);
        let left: Vec<_> = tests.iter().filter(is_left).cloned().collect();
        if left.is_empty() {
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
    Ok(all)
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
