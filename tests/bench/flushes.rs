// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What it costs to make 4 KiB durable: beside a bare fdatasync, and beside QEMU's storage daemon.
//!
//! Both daemons are real ones, in processes of their own, on files of the same size in the same
//! filesystem; their guests are the same code in this process. All take turns in rounds of one run.

mod blk;
mod calls;
mod changes;
#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../frontend/driver.rs"]
mod driver;
#[allow(dead_code, reason = "the windows' benchmark uses all of it")]
mod guest;
#[allow(dead_code, reason = "the windows' benchmark uses all of it")]
mod image;
#[allow(dead_code, reason = "the windows' benchmark uses all of it")]
mod kernel;
mod machine;
mod pinned;
mod pmem;
mod polling;
mod process;
mod spinner;
mod spread;
mod storage_daemon;
mod syncer;
mod tally;
mod targets;
#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../frontend/vmm.rs"]
mod vmm;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use guest_harness::target_dir;
use serde_json::json;

use crate::blk::Blk;
use crate::changes::{Changes, Device, MOST, Order, Sample};
use crate::image::Image;
use crate::pmem::{How, Pmem};
use crate::storage_daemon::{Cache, StorageDaemon};
use crate::syncer::Syncer;
use crate::tally::Tally;

/// Who makes changes durable.
const OURS: &str = "vhost-pmemd";
const PREFETCHED: &str = "vhost-pmemd --prefetch";
const SERVED: &str = "vhost-pmemd --window served";
const PEER: &str = "qemu-storage-daemon";
const PEER_DIRECT: &str = "qemu-storage-daemon, O_DIRECT";
const BARE: &str = "fdatasync";
const WOKEN: &str = "fdatasync, by a process that is woken";
const STAT: &str = "fstat, then fdatasync";

/// How many changes are kept in flight.
const IN_FLIGHT: [usize; 4] = [1, 4, 16, MOST];

/// How long each has its turn.
const TURN: Duration = Duration::from_millis(400);

/// So many changes one after another, then the next one's turn, where differences are small.
const SHORT_TURN: usize = 16;

/// Measures what it costs to make 4 KiB durable.
#[derive(Parser)]
struct Cli {
    /// How often each has its turn
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Only what polling saves
    #[arg(long)]
    polling: bool,
    /// Only this: sync the file for each byte of standard input
    #[arg(long, hide = true)]
    syncer: Option<PathBuf>,
    /// Only this: sync the file whenever memory, which is standard input, says so
    #[arg(long, hide = true)]
    spinner: Option<PathBuf>,
    /// Given by cargo bench; without, everything is small, and shows only that it works
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let Cli { rounds, polling, syncer, spinner, bench } = Cli::parse();
    if let Some(file) = syncer {
        return syncer::serve(&file);
    }
    if let Some(file) = spinner {
        return spinner::serve(&file);
    }
    let dir = target_dir().join("bench");
    std::fs::create_dir_all(&dir)?;
    let dir = dir.canonicalize()?;
    let facts = machine::facts("flushes", &dir)?;
    println!("{facts}");
    let (mib, rounds, turn) = if bench { (512, rounds, TURN) } else { (32, 1, TURN / 20) };
    let image = |name| Image::create(&dir, name, mib);
    let ours = [image("pmem.img")?, image("prefetched.img")?, image("served.img")?];
    let peers = [image("blk.img")?, image("direct.img")?];
    let single = |name| Image::create_singly(&dir, name, mib);
    let polled = [single("polled.img")?, single("other.img")?];
    let mut tally = Tally::default();
    println!("\nFlushes: files of {mib} MiB, {rounds} rounds\n");
    for round in 0..rounds {
        if !polling {
            measure(&ours, &peers, round, turn, &mut tally)?;
        }
        polling::measure(&polled, 2 * turn, &mut tally)?;
    }
    let targets = targets::compare(&tally);
    println!("{tally}\n");
    targets.iter().for_each(|target| println!("{target}"));
    if !bench || polling {
        return Ok(());
    }
    let path = dir.join("flushes.json");
    let facts: Vec<_> = facts.lines().collect();
    let all = json!({ "machine": facts, "mib": mib, "rows": tally, "targets": targets });
    Ok(std::fs::write(path, serde_json::to_string_pretty(&all)? + "\n")?)
}

/// One round, in which daemons are new ones.
fn measure(
    ours: &[Image; 3],
    peers: &[Image; 2],
    round: usize,
    turn: Duration,
    tally: &mut Tally,
) -> Result<()> {
    let [direct, prefetched, served] = ours;
    let pages = direct.pages();
    let mut pmem = Pmem::start(direct, How::Direct)?;
    let mut prefetched_pmem = Pmem::start(prefetched, How::Prefetched)?;
    let mut served_pmem = Pmem::start(served, How::Served)?;
    let peer = |image: &Image, cache| Blk::connect(StorageDaemon::start(image.path(), cache)?);
    let [host, uncached] = peers;
    host.warm()?;
    let (mut host, mut uncached) = (peer(host, Cache::Host)?, peer(uncached, Cache::None)?);
    for order in Order::ALL {
        let mut changes = [0; 5].map(|_| Changes::new(order, pages));
        for in_flight in IN_FLIGHT {
            for at in (0..5).map(|at| (at + round) % 5) {
                let changes = &mut changes[at];
                let (who, sample) = match at {
                    0 => (OURS, run(&mut pmem, changes, in_flight, turn)?),
                    1 => (PREFETCHED, run(&mut prefetched_pmem, changes, in_flight, turn)?),
                    2 => (SERVED, run(&mut served_pmem, changes, in_flight, turn)?),
                    3 => (PEER, run(&mut host, changes, in_flight, turn)?),
                    _ => (PEER_DIRECT, run(&mut uncached, changes, in_flight, turn)?),
                };
                tally.add(order.name(), who, in_flight, sample);
            }
        }
        in_turns(&mut pmem, direct, &mut changes[0], order.name(), 2 * turn, tally)?;
        let what = format!("{}, --prefetch", order.name());
        in_turns(&mut prefetched_pmem, prefetched, &mut changes[1], &what, 2 * turn, tally)?;
    }
    dirty(&mut pmem, turn, tally)?;
    [pmem, prefetched_pmem, served_pmem].into_iter().try_for_each(Pmem::end)
}

fn run(
    device: &mut impl Device,
    changes: &mut Changes,
    in_flight: usize,
    turn: Duration,
) -> Result<Sample> {
    changes::run(device, changes, in_flight, usize::MAX, turn)
}

/// One change in flight through the daemon, and without one, in short turns: the disk's moods are
/// larger than what is added.
fn in_turns(
    pmem: &mut Pmem,
    image: &Image,
    changes: &mut Changes,
    what: &str,
    time: Duration,
    tally: &mut Tally,
) -> Result<()> {
    let file = pmem.file()?;
    let mut syncer = Syncer::start(image.path())?;
    let mut samples = [OURS, BARE, WOKEN, STAT].map(|who| (who, Sample::default()));
    let began = Instant::now();
    while began.elapsed() < time {
        for (who, sample) in &mut samples {
            sample.extend(match *who {
                OURS => changes::run(pmem, changes, 1, SHORT_TURN, time)?,
                BARE => pmem.bare(changes, SHORT_TURN, &mut || Ok(file.sync_data()?))?,
                WOKEN => pmem.bare(changes, SHORT_TURN, &mut || syncer.sync())?,
                _ => pmem.bare(changes, SHORT_TURN, &mut || {
                    file.metadata()?;
                    Ok(file.sync_data()?)
                })?,
            });
        }
    }
    for (who, sample) in samples {
        tally.add(&format!("{what}, in turns"), who, 1, sample);
    }
    Ok(())
}

/// Flushes with nothing to write, and with much, beside fdatasync.
fn dirty(pmem: &mut Pmem, time: Duration, tally: &mut Tally) -> Result<()> {
    for dirty in [0, 64, 4096] {
        let mut samples = [OURS, BARE].map(|who| (who, Sample::default()));
        let began = Instant::now();
        while began.elapsed() < time {
            for (who, sample) in &mut samples {
                let took = match *who {
                    OURS => pmem.flushes(dirty, SHORT_TURN / 4)?,
                    _ => pmem.syncs(dirty, SHORT_TURN / 4)?,
                };
                let elapsed = took.iter().sum();
                sample.extend(Sample { took, elapsed, ..Sample::default() });
            }
        }
        for (who, sample) in samples {
            tally.add(&format!("flush alone, {dirty} dirty pages"), who, 1, sample);
        }
    }
    Ok(())
}
