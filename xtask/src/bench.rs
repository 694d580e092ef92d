// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask bench`.

use anyhow::Result;

use crate::process::{cargo, run, shown};

/// Runs all benchmarks, one behind another: they would disturb each other.
pub(crate) fn run_all() -> Result<()> {
    for args in [
        ["bench", "--quiet", "--package", "vhost-pmemd", "--bench", "windows"],
        ["bench", "--quiet", "--package", "vhost-pmemd", "--bench", "flushes"],
        ["bench", "--quiet", "--package", "vhost-pmemd", "--bench", "scale"],
        ["bench", "--quiet", "--package", "vhost-pmemd", "--bench", "guests"],
        ["bench", "--quiet", "--package", "pfn-blk", "--bench", "stacks"],
    ] {
        let mut bench = cargo(args);
        println!("{}", shown(&bench));
        run(&mut bench)?;
    }
    Ok(())
}
