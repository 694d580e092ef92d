// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest gets of our device beside QEMU's own.
//!
//! All devices are there in one and the same guest, a real one under TCG, on files of the same size
//! and the same filesystem. fio runs on each in turn, in rounds.

mod contest;
mod fio;
#[allow(dead_code, reason = "the windows' benchmark uses all of it")]
mod image;
#[allow(dead_code, reason = "the windows' benchmark uses all of it")]
mod kernel;
mod machine;
mod spread;

use std::ffi::OsStr;
use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use guest_harness::{Daemon, Lab, target_dir};
use rustix::fs::{Advice, fadvise};
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
    /// How many jobs there are where each change is synced
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, JOBS_MOST])]
    jobs: Vec<usize>,
    /// How many processors the guest has
    #[arg(long, default_value_t = 2)]
    cpus: usize,
    /// Given by cargo bench; without, everything is short, and shows only that it works
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let Cli { rounds, turn, jobs, cpus, bench } = Cli::parse();
    let (rounds, turn) = if bench { (rounds, turn) } else { (1, 400) };
    let dir = target_dir().join("bench");
    std::fs::create_dir_all(&dir)?;
    let dir = dir.canonicalize()?;
    let lab = Lab::open()?;
    let mut facts = machine::facts("guests", &dir)?;
    write!(facts, "\nQEMU:       {}, TCG, -smp {cpus}", lab.qemu().version())?;

    let turns = turns(rounds, &jobs);
    let time = Duration::from_millis(turn);
    let serial = run(&lab, &dir, &script(&turns, time), cpus, limit(turns.len(), time)?)?;
    let kernel = serial.lines().find_map(|line| line.strip_prefix("MARK boot "));
    write!(facts, "\nGuest:      Linux {}", kernel.context("the guest didn't boot")?)?;
    println!("{facts}");
    let mut contest = Contest::default();
    let mut reports = serial.lines().filter_map(|line| line.strip_prefix("REPORT "));
    for (task, side) in turns {
        let report = reports.next().context("the guest reports too little")?;
        contest.add(task, side, Numbers::read(task, report)?);
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

/// Runs `script` in a guest that has all devices; what it prints.
fn run(lab: &Lab, dir: &Path, script: &str, cpus: usize, limit: Duration) -> Result<String> {
    let [ours, ours_by_pages, qemus, qemus_by_pages] = Side::ALL.map(|side| image(dir, side));
    let ours = [ours?, ours_by_pages?];
    let qemus = [qemus?, qemus_by_pages?];
    let serve = |image: &Image, more: &[&str]| {
        let file = ["--file".as_ref(), image.path().as_os_str()];
        Daemon::start(DAEMON, file.into_iter().chain(more.iter().map(AsRef::as_ref)))
    };
    let daemons = [serve(&ours[0], &[])?, serve(&ours[1], &["--prefetch"])?];
    warm_by_pages(&qemus[1])?;
    let vm = lab.vm().program("fio").qemu_args(["-smp", &cpus.to_string()].map(OsStr::new));
    let vm = daemons.iter().fold(vm, |vm, daemon| vm.vhost_user_pmem(daemon.socket()));
    let size = (MIB as u64) << 20;
    let vm = qemus.iter().fold(vm, |vm, image| vm.own_virtio_pmem(image.path(), size));
    let outcome = vm.script(script).time_limit(limit).run()?;
    for daemon in daemons {
        let (status, log) = daemon.terminate()?;
        ensure!(status.success(), "the daemon failed:\n{log}");
    }
    Ok(outcome.serial)
}

/// How long `turns` of `time` take at most: fio takes half a second beside its turn, and more where
/// the machine is busy.
fn limit(turns: usize, time: Duration) -> Result<Duration> {
    let turn = time + Duration::from_secs(3);
    Ok(Duration::from_secs(120) + turn * u32::try_from(turns)?)
}

/// A device's file, all in the page cache, whose first line says whose it is.
fn image(dir: &Path, side: Side) -> Result<Image> {
    let image = Image::create(dir, &format!("{}.img", side.word()), MIB)?;
    image.file().write_all_at(format!("{}\n", side.word()).as_bytes(), 0)?;
    image.warm()?;
    Ok(image)
}

/// Sees to it that all of `image` is in the page cache in folios of one page each, as the daemon does
/// with `--prefetch`.
fn warm_by_pages(image: &Image) -> Result<()> {
    image.cool()?;
    let mut file = File::open(image.path())?;
    fadvise(&file, 0, None::<NonZeroU64>, Advice::Random)?;
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

/// All turns in their order. Who is first is another one in each round.
fn turns(rounds: usize, jobs: &[usize]) -> Vec<(Task, Side)> {
    let mut tasks = Vec::new();
    for engine in Engine::ALL {
        let load = Load::Synced;
        tasks.extend(jobs.iter().map(|&jobs| Task { engine, load, jobs }));
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
        for disk in pmem0 pmem1 pmem2 pmem3; do
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
        let _ = writeln!(script, "turn {} {}", side.word(), task.command(time));
    }
    script
}
