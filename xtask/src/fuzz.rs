// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask fuzz`.

use std::process::Command;

use anyhow::{Result, ensure};
use guest_harness::target_dir;

use crate::process::{cargo, run};
use crate::tools;

/// The release to use, which builds with Rust 1.85 too.
const VERSION: &str = "0.13.2";
/// The targets, and the longest input that each makes something of.
const TARGETS: [(&str, &str); 2] = [("table", "400"), ("cow", "200")];

/// Runs one target, or all, for so many seconds each. What they find fails, and is kept.
pub(crate) fn run_targets(only: Option<&str>, seconds: u32) -> Result<()> {
    let known = TARGETS.iter().filter(|(name, _)| only.is_none_or(|only| only == *name));
    let known: Vec<_> = known.collect();
    ensure!(!known.is_empty(), "no such target; there are: {}", TARGETS.map(|(n, _)| n).join(", "));
    let has_compiler = Command::new("c++").arg("--version").output().is_ok();
    ensure!(has_compiler, "libFuzzer needs a C++ compiler; install g++");
    let program = tools::obtain("cargo-fuzz", VERSION)?;
    for (name, longest) in known {
        println!("fuzzing {name} for {seconds} s");
        let mut fuzz = Command::new(&program);
        // Without a sanitizer it builds with a stable compiler; there is no unsafe code to watch.
        fuzz.args(["run", "--sanitizer", "none", "--fuzz-dir", "fuzz", "--target-dir"]);
        fuzz.arg(target_dir().join("fuzz")).arg(name).arg("--");
        fuzz.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={longest}"));
        let root = cargo([""; 0]);
        fuzz.current_dir(root.get_current_dir().expect("cargo runs there").join("crates/pfn-blk"));
        run(&mut fuzz)?;
    }
    Ok(())
}
