// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What many devices take, and large ones, and ones of many files.
//!
//! A daemon serves one device, so many devices are many real daemons. Their VMMs are in this process,
//! and their guests threads of it. What is done through a daemon takes turns with the same done by a
//! bare fdatasync, of as many threads on the same files: the disk is what is waited for.

#[allow(dead_code, reason = "the other benchmarks use all of it")]
mod calls;
#[allow(dead_code, reason = "the other benchmarks use all of it")]
mod changes;
#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../frontend/driver.rs"]
mod driver;
mod fleet;
mod footprint;
#[allow(dead_code, reason = "the other benchmarks use all of it")]
mod guest;
#[allow(dead_code, reason = "the other benchmarks use all of it")]
mod image;
#[allow(dead_code, reason = "the other benchmarks use all of it")]
mod kernel;
mod machine;
#[allow(dead_code, reason = "the other benchmarks use all of it")]
mod pmem;
mod process;
#[allow(dead_code, reason = "the other benchmarks use all of it")]
mod results;
mod shapes;
mod spread;
#[allow(dead_code, reason = "the other benchmarks use all of it")]
mod tally;
#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../frontend/vmm.rs"]
mod vmm;

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use guest_harness::target_dir;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use crate::fleet::Fleet;
use crate::footprint::Footprints;
use crate::image::Image;
use crate::results::Window;
use crate::shapes::Joined;
use crate::tally::Tally;

/// How many devices there are at once.
const DEVICES: [usize; 3] = [1, 16, 128];

/// The size of a device's file.
const MIB: usize = 16;

/// How long each has its turn.
const TURN: Duration = Duration::from_millis(400);

/// Measures what many devices take, and large ones.
#[derive(Parser)]
struct Cli {
    /// How often each has its turn
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Given by cargo bench; without, everything is small, and shows only that it works
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let Cli { rounds, bench } = Cli::parse();
    // Each VMM has a dozen.
    let fds = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: fds.maximum, ..fds })?;
    let dir = target_dir().join("bench");
    std::fs::create_dir_all(&dir)?;
    let dir = dir.canonicalize()?;
    let facts = machine::facts("scale", &dir)?;
    println!("{facts}");
    let (devices, mib, rounds, turn) =
        if bench { (&DEVICES[..], MIB, rounds, TURN) } else { (&DEVICES[..2], 1, 1, TURN / 20) };
    println!("\nScale: devices of {mib} MiB, {rounds} rounds\n");
    let most = devices.iter().copied().max().unwrap_or_default();
    let create = |number| Image::create_singly(&dir, &format!("{number}.img"), mib);
    let images = (0..most).map(create).collect::<Result<Vec<_>>>()?;
    let joined = Joined::create_all(&dir)?;
    let mut footprints = Footprints::default();
    let mut tally = Tally::default();
    for round in 0..rounds {
        for &count in devices {
            for window in [Window::Direct, Window::Served] {
                many(&images[..count], window, round, turn, &mut footprints, &mut tally)?;
            }
        }
        shapes::sizes(&dir, 4 * turn, &mut footprints, &mut tally)?;
        shapes::extents(&joined, 2 * turn, &mut footprints, &mut tally)?;
    }
    println!("{footprints}\n\n{tally}");
    if !bench {
        return Ok(());
    }
    let path = dir.join("scale.json");
    let facts: Vec<_> = facts.lines().collect();
    let all = json!({ "machine": facts, "mib": mib, "daemons": footprints, "flushes": tally });
    Ok(std::fs::write(path, serde_json::to_string_pretty(&all)? + "\n")?)
}

/// A device for each image.
fn many(
    images: &[Image],
    window: Window,
    round: usize,
    turn: Duration,
    footprints: &mut Footprints,
    tally: &mut Tally,
) -> Result<()> {
    let (count, word) = (images.len(), window.word());
    let what = format!("{count} devices, {word}");
    let mut fleet = Fleet::start(images, window)?;
    let mut busy = vec![(1, fleet.one_busy(round, turn)?)];
    if count > 1 {
        busy.push((count, fleet.all_busy(turn)?));
    }
    for (count, [ours, bare]) in busy {
        tally.add(&what, "vhost-pmemd", count, ours);
        tally.add(&what, "fdatasync", count, bare);
    }
    for one in fleet.footprints() {
        footprints.add(&what, one?);
    }
    fleet.end()
}
