// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest gets of our device beside QEMU's own.
//!
//! Both are there in one and the same guest, a real one under TCG, on files of the same size and the
//! same filesystem. fio runs on each in turn, in rounds.

mod contest;
mod fio;
#[allow(dead_code, reason = "the windows' benchmark uses all of it")]
mod image;
#[allow(dead_code, reason = "the windows' benchmark uses all of it")]
mod kernel;
mod machine;

use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use guest_harness::{Daemon, Lab, target_dir};
use serde_json::json;

use crate::contest::{Contest, Side};
use crate::fio::{Engine, FILE_MIB, JOBS_MOST, Load, Numbers, Task};
use crate::image::Image;

const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-pmemd");

/// The size of each device.
const MIB: usize = 512;

/// Measures what a guest gets of vhost-pmemd beside QEMU's own pmem device.
#[derive(Parser)]
struct Cli {
    /// How often each device has its turn with each task
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long a turn is, in milliseconds
    #[arg(long, default_value_t = 600)]
    turn: u64,
    /// How many processors the guest has
    #[arg(long, default_value_t = 2)]
    cpus: usize,
    /// Given by cargo bench; without, everything is short, and shows only that it works
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let Cli { rounds, turn, cpus, bench } = Cli::parse();
    let (rounds, turn) = if bench { (rounds, turn) } else { (1, 100) };
    let dir = target_dir().join("bench");
    std::fs::create_dir_all(&dir)?;
    let dir = dir.canonicalize()?;
    let lab = Lab::open()?;
    let mut facts = machine::facts("guests", &dir)?;
    write!(facts, "\nQEMU:       {}, TCG, -smp {cpus}", lab.qemu().version())?;
    println!("{facts}");

    let [own, ours, prefetched] = Side::ALL.map(|side| image(&dir, side));
    let [own, ours, prefetched] = [own?, ours?, prefetched?];
    let serve = |image: &Image, more: &[&str]| {
        let file = ["--file".as_ref(), image.path().as_os_str()];
        Daemon::start(DAEMON, file.into_iter().chain(more.iter().map(AsRef::as_ref)))
    };
    let daemons = [serve(&ours, &[])?, serve(&prefetched, &["--prefetch"])?];
    let turns = turns(rounds);
    let time = Duration::from_millis(turn);
    let vm = lab.vm().program("fio").own_virtio_pmem(own.path(), (MIB as u64) << 20);
    let outcome = daemons
        .iter()
        .fold(vm, |vm, daemon| vm.vhost_user_pmem(daemon.socket()))
        .qemu_args(["-smp", &cpus.to_string()].map(OsStr::new))
        .script(&script(&turns, time))
        // fio takes half a second beside the turn, and where the machine is busy some more.
        .time_limit(
            Duration::from_secs(120)
                + (time + Duration::from_secs(3)) * u32::try_from(turns.len())?,
        )
        .run()?;
    let mut contest = Contest::default();
    let mut reports = outcome.serial.lines().filter_map(|line| line.strip_prefix("REPORT "));
    for (task, side) in turns {
        let report = reports.next().context("the guest reports too little")?;
        contest.add(task, side, Numbers::read(task, report)?);
    }
    for daemon in daemons {
        let (status, log) = daemon.terminate()?;
        ensure!(status.success(), "the daemon failed:\n{log}");
    }
    println!("\nGuests: {rounds} rounds, turns of {turn} ms\n\n{contest}\n");
    let targets = contest.targets();
    targets.iter().for_each(|target| println!("{target}"));
    if !bench {
        return Ok(());
    }
    let path = dir.join("guests.json");
    let facts: Vec<_> = facts.lines().collect();
    let all = json!({ "machine": facts, "mib": MIB, "rows": contest, "targets": targets });
    Ok(std::fs::write(path, serde_json::to_string_pretty(&all)? + "\n")?)
}

/// A device's file, all in the page cache, whose first line says whose it is.
fn image(dir: &Path, side: Side) -> Result<Image> {
    let image = Image::create(dir, &format!("{}.img", side.directory()), MIB)?;
    image.file().write_all_at(format!("{}\n", side.directory()).as_bytes(), 0)?;
    image.warm()?;
    Ok(image)
}

/// All turns in their order. Who is first is another one in each round.
fn turns(rounds: usize) -> Vec<(Task, Side)> {
    let mut tasks = Vec::new();
    for engine in Engine::ALL {
        let load = Load::Synced;
        tasks.extend([1, 2, 4, JOBS_MOST].map(|jobs| Task { engine, load, jobs }));
        tasks.extend([Load::Read, Load::Write].map(|load| Task { engine, load, jobs: 1 }));
    }
    let mut turns = Vec::new();
    for round in 0..rounds {
        let mut sides = Side::ALL;
        sides.rotate_left(round % Side::ALL.len());
        turns.extend(tasks.iter().flat_map(|&task| sides.map(|side| (task, side))));
    }
    turns
}

/// What the guest runs.
fn script(turns: &[(Task, Side)], time: Duration) -> String {
    let last = JOBS_MOST - 1;
    let mut script = format!(
        "set -eu
        for disk in pmem0 pmem1 pmem2; do
            read side < /dev/$disk
            mkdir /mnt/$side
            mkfs.ext4 -qF -b 4096 -E lazy_itable_init=0 /dev/$disk
            mount -o dax=always /dev/$disk /mnt/$side
            for file in $(seq 0 {last}); do
                dd if=/dev/zero of=/mnt/$side/$file bs=1M count={FILE_MIB} status=none
            done
        done
        sync
        turn() {{
            cd /mnt/$1
            shift
            report=$(\"$@\")
            # What was written and not synced is not to slow down the next turn.
            sync
            echo REPORT $report
        }}\n"
    );
    for (task, side) in turns {
        let _ = writeln!(script, "turn {} {}", side.directory(), task.command(time));
    }
    script
}
