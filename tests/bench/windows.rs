// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a served window costs beside a direct one, in time and in the host's memory.
//!
//! The daemon is the real one, in a process of its own; the VMM is the one of the frontend tests.
//! Windows take turns in rounds of one run, so that a machine that is busy for a while is so to
//! both. What is compared are the medians over the rounds.

#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../frontend/driver.rs"]
mod driver;
#[allow(dead_code, reason = "the benchmark of scale uses all of it")]
mod guest;
#[allow(dead_code, reason = "the benchmark of scale uses all of it")]
mod image;
mod kernel;
mod machine;
mod memory;
mod results;
mod speed;
#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../frontend/vmm.rs"]
mod vmm;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use guest_harness::target_dir;

use crate::image::Image;

/// Measures what a served window costs beside a direct one.
#[derive(Parser)]
struct Cli {
    /// Only this
    part: Option<Part>,
    /// How often each window has its turn
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Given by cargo bench; without, everything is small, and shows only that it works
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Loads, stores and flushes
    Speed,
    /// The host's memory for each byte of a guest's
    Memory,
}

fn main() -> Result<()> {
    let Cli { part, rounds, bench } = Cli::parse();
    let dir = target_dir().join("bench");
    std::fs::create_dir_all(&dir)?;
    let dir = dir.canonicalize()?;
    println!("{}", machine::facts("windows", &dir)?);
    let (mib, rounds) = if bench { (512, rounds) } else { (32, 1) };
    if part != Some(Part::Memory) {
        let [image, twin] = ["pmem.img", "twin.img"].map(|name| Image::create(&dir, name, mib));
        println!("\nSpeed: one file of {mib} MiB, {rounds} rounds\n");
        println!("{}", speed::measure(&image?, &twin?, rounds)?);
    }
    if part != Some(Part::Speed) {
        let mib = mib / 4;
        let image = Image::create(&dir, "pmem.img", mib)?;
        println!("\nMemory: what the host holds, in multiples of one guest's {mib} MiB\n");
        println!("{}", memory::measure(&image)?);
    }
    Ok(())
}
