// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask fuzz`.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};
use guest_harness::target_dir;

use crate::process::{cargo, run};
use crate::tools;

/// The release to use, which builds with Rust 1.85 too.
const VERSION: &str = "0.13.2";
/// The crates that have targets, the targets, and the longest input that each makes something of.
const TARGETS: [(&str, &str, &str); 5] = [
    ("pfn-blk", "table", "400"),
    ("pfn-blk", "cow", "200"),
    ("vhost-pmem", "queue", "6146"),
    ("vhost-pmem", "config", "32"),
    ("vhost-pmem", "messages", "300"),
];

/// Runs one target, or all, for so many seconds each. What they find fails, and is kept.
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
    for (package, name, longest) in known {
        println!("fuzzing {name} for {seconds} s");
        let mut fuzz = Command::new(&program);
        // Without a sanitizer it builds with a stable compiler.
        fuzz.args(["run", "--sanitizer", "none", "--fuzz-dir", "fuzz", "--target-dir"]);
        fuzz.arg(target_dir().join("fuzz")).arg(name);
        let root = cargo([""; 0]);
        let root = root.get_current_dir().expect("cargo runs there");
        let package = root.join("crates").join(package);
        // What it finds is kept in the first directory, and nothing in the second is touched.
        let seeds = package.join("fuzz/seeds").join(name);
        if seeds.exists() {
            let corpus = package.join("fuzz/corpus").join(name);
            fs::create_dir_all(&corpus)?;
            fuzz.arg(corpus).arg(seeds);
        }
        fuzz.arg("--").arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={longest}"));
        // None takes a second; who takes so long hangs.
        fuzz.arg("-timeout=60").current_dir(package);
        run(&mut fuzz)?;
    }
    Ok(())
}
