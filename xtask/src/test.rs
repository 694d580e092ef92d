// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask test`.

use std::time::Instant;

use anyhow::{Context, Result};
use guest_harness::{CRATE_PROGRAMS, Lab, crate_program, target_dir};

use crate::deny;
use crate::kvm::{self, Choice};
use crate::process::{cargo, run};
use crate::toolchain;

type Step = (&'static str, fn() -> Result<()>);

/// Tests in an environment of their own.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Lane {
    /// Real guests under real KVM, on a CPU that is emulated
    Kvm,
}

/// What to test.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this part: its core, or the tests of guests that are named
    #[arg(long)]
    lane: Option<Lane>,
    /// All that the lane can run, which takes long
    #[arg(long, requires = "lane", conflicts_with = "names")]
    all: bool,
    /// Parts of the names of the lane's tests to run, such as `persistence::xfs`
    #[arg(requires = "lane")]
    names: Vec<String>,
}

const STEPS: [Step; 9] = [
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
    ("programs of the filesystem suites", || {
        CRATE_PROGRAMS.iter().try_for_each(|(name, ..)| crate_program(name).map(drop))
    }),
    ("tests, with real guests", || {
        run(&mut cargo(["test", "--workspace", "--no-fail-fast", "--quiet"]))
    }),
    ("tests of guests under KVM, on a CPU that is emulated", || kvm::run(&Choice::Core)),
];

pub(crate) fn run_chosen(args: Args) -> Result<()> {
    match args.lane {
        Some(Lane::Kvm) if args.all || !args.names.is_empty() => {
            kvm::run(&Choice::Matching(args.names))
        }
        Some(Lane::Kvm) => kvm::run(&Choice::Core),
        None => run_all(),
    }
}

fn run_all() -> Result<()> {
    let count = STEPS.len();
    let began = Instant::now();
    toolchain::complete()?;
    for (index, (name, step)) in (1..).zip(STEPS) {
        println!("[{index}/{count}] {name}");
        let step_began = Instant::now();
        step().with_context(|| format!("{name}: failed"))?;
        println!("[{index}/{count}] {name}: passed in {:.0?}", step_began.elapsed());
    }
    println!("all passed in {:.0?}", began.elapsed());
    Ok(())
}
