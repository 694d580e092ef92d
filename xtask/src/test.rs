// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask test`.

use std::time::Instant;

use anyhow::{Context, Result};
use guest_harness::{Lab, target_dir};

use crate::deny;
use crate::process::{cargo, run};
use crate::toolchain;

type Step = (&'static str, fn() -> Result<()>);

const STEPS: [Step; 7] = [
    ("formatting", || run(&mut cargo(["fmt", "--all", "--check"]))),
    ("lints", || {
        run(&mut cargo(["clippy", "--workspace", "--all-targets", "--quiet", "--", "-Dwarnings"]))
    }),
    ("documentation", || {
        let mut doc =
            cargo(["doc", "--workspace", "--no-deps", "--document-private-items", "--quiet"]);
        run(doc.env("RUSTDOCFLAGS", "-Dwarnings"))
    }),
    ("licences and sources of the dependencies", deny::check),
    ("models of what is lock-free", || {
        // A directory of its own, as the flag changes every crate.
        let target = target_dir().join("loom");
        let mut models =
            cargo(["test", "--package", "pfn-blk", "--lib", "--quiet", "--target-dir"]);
        run(models.arg(target).arg("models").env("RUSTFLAGS", "--cfg loom"))
    }),
    // Here, as the tests hide their progress.
    ("QEMU, kernel and userland for the guests", || Lab::open().map(drop)),
    ("tests, with real guests", || run(&mut cargo(["test", "--workspace", "--quiet"]))),
];

pub(crate) fn run_all() -> Result<()> {
    let began = Instant::now();
    toolchain::complete()?;
    for (index, (name, step)) in (1..).zip(STEPS) {
        println!("[{index}/{}] {name}", STEPS.len());
        let step_began = Instant::now();
        step().with_context(|| format!("{name}: failed"))?;
        println!("[{index}/{}] {name}: passed in {:.0?}", STEPS.len(), step_began.elapsed());
    }
    println!("all passed in {:.0?}", began.elapsed());
    Ok(())
}
