// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask fuzz`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use anyhow::{Result, ensure};
use guest_harness::target_dir;

use crate::process::{cargo, run};
use crate::tools;

/// The release to use, which builds with Rust 1.85 too.
const VERSION: &str = "0.13.2";
/// A target: its crate, its name, and the longest input that it makes something of.
type Target = (&'static str, &'static str, &'static str);

const TARGETS: [Target; 5] = [
    ("pfn-blk", "table", "400"),
    ("pfn-blk", "cow", "200"),
    ("vhost-pmem", "queue", "6146"),
    ("vhost-pmem", "config", "32"),
    ("vhost-pmem", "messages", "300"),
];

/// Runs one target, or all, for so many seconds each, as many at once as there are processors. What
/// they find fails, and is kept.
pub(crate) fn run_targets(only: Option<&str>, seconds: u32) -> Result<()> {
    let known = TARGETS.iter().filter(|(_, name, _)| only.is_none_or(|only| only == *name));
    let known: Vec<_> = known.collect();
    ensure!(
        !known.is_empty(),
        "no such target; there are: {}",
        TARGETS.map(|(_, n, _)| n).join(", ")
    );
    let has_compiler = Command::new("c++").arg("--version").output().is_ok();
    ensure!(has_compiler, "libFuzzer needs a C++ compiler; install g++");
    let program = tools::obtain("cargo-fuzz", VERSION)?;
    if let [target] = known[..] {
        return run(&mut fuzz(&program, target, seconds)?);
    }
    let mut packages: Vec<_> = known.iter().map(|(package, ..)| *package).collect();
    packages.dedup();
    for package in packages {
        run(&mut cargo_fuzz(&program, "build", package))?;
    }
    let left = Mutex::new(known.into_iter());
    let next = || left.lock().expect("no thread panics with it").next();
    let work = || -> Result<()> {
        while let Some(target) = next() {
            run_quietly(&program, target, seconds)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("it returns its errors"))
    })
}

/// Runs one target, and shows what it prints only if it fails.
fn run_quietly(program: &Path, target: &Target, seconds: u32) -> Result<()> {
    let (_, name, _) = target;
    println!("fuzzing {name} for {seconds} s");
    let path = target_dir().join("fuzz").join(name).with_extension("log");
    let log = File::create(&path)?;
    let mut fuzz = fuzz(program, target, seconds)?;
    run(fuzz.stdout(log.try_clone()?).stderr(log)).map_err(|error| {
        let printed = fs::read_to_string(&path).unwrap_or_default();
        error.context(format!("fuzzing {name} printed:\n{printed}"))
    })
}

fn fuzz(program: &Path, (package, name, longest): &Target, seconds: u32) -> Result<Command> {
    let mut fuzz = cargo_fuzz(program, "run", package);
    fuzz.arg(name);
    let package = package_dir(package);
    // What it finds is kept in the first directory, and nothing in the second is touched.
    let seeds = package.join("fuzz/seeds").join(name);
    if seeds.exists() {
        let corpus = package.join("fuzz/corpus").join(name);
        fs::create_dir_all(&corpus)?;
        fuzz.arg(corpus).arg(seeds);
    }
    fuzz.arg("--").arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={longest}"));
    // None takes a second; who takes so long hangs.
    fuzz.arg("-timeout=60");
    Ok(fuzz)
}

/// Without a sanitizer it builds with a stable compiler.
fn cargo_fuzz(program: &Path, action: &str, package: &str) -> Command {
    let mut fuzz = Command::new(program);
    fuzz.args([action, "--sanitizer", "none", "--fuzz-dir", "fuzz", "--target-dir"]);
    fuzz.arg(target_dir().join("fuzz")).current_dir(package_dir(package));
    fuzz
}

fn package_dir(package: &str) -> PathBuf {
    let root = cargo([""; 0]);
    root.get_current_dir().expect("cargo runs there").join("crates").join(package)
}
