// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask soak`: guests that come and go, and are cut short, for as long as one likes.

use anyhow::Result;

use crate::process::{cargo, run};

/// For how long, and by which chance.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// For how long; the last sessions are brought to their end
    #[arg(long, default_value_t = 15)]
    minutes: u64,
    /// Repeats the choices of the run that printed it, though not how the guests' time runs
    #[arg(long)]
    seed: Option<u64>,
}

/// Runs the test that is a short round of this, for longer.
pub(crate) fn soak(options: &Options) -> Result<()> {
    let mut test = cargo(["test", "--quiet", "--test", "soak", "--", "--nocapture", "soaked_"]);
    test.env("VHOST_PMEM_SOAK_MINUTES", options.minutes.to_string());
    if let Some(seed) = options.seed {
        test.env("VHOST_PMEM_SOAK_SEED", seed.to_string());
    }
    run(&mut test)
}
