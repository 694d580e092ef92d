// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the daemon makes of files when it is told to, with the power cut at each point of that.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use guest_harness::{Daemon, VolatileDisks};
use rustix::process::Signal;
use tempfile::TempDir;

use super::live::{Media, can_mark};
use super::record::PAGE;
use super::{DAEMON, PATIENCE};
use crate::vmm::{Abilities, Vmm};

const BYTES: usize = 16 * PAGE;

/// A medium of a file in which each byte is 1.
fn machine() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("media")).unwrap();
    fs::write(dir.path().join("media/one"), [1; BYTES]).unwrap();
    dir
}

/// Starts the daemon on a file of the disks.
fn serve(dir: &Path, overlay: bool) -> anyhow::Result<Option<Daemon>> {
    let [file, cow, control] = ["disks/one", "disks/cow", "control"].map(|name| dir.join(name));
    let mut arguments = vec!["--file".into(), file, "--control".into(), control];
    arguments.extend(match overlay {
        true => ["--overlay".into(), cow],
        false => ["--window".into(), "served".into()],
    });
    Daemon::start_served(DAEMON, arguments)
}

/// Stores a byte everywhere, and flushes.
fn store(daemon: &Daemon, byte: u8) {
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    vmm.store(0, &[byte; BYTES]);
    assert_eq!(vmm.driver.flush(), 0);
}

/// That this is what a guest finds everywhere.
fn check(daemon: &Daemon, byte: u8) {
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    let mut bytes = [0; BYTES];
    vmm.load(0, &mut bytes);
    assert!(bytes.iter().all(|held| *held == byte), "{:?}", &bytes[..8]);
}

fn operate(dir: &Path, arguments: &[&str]) -> bool {
    let mut command = Command::new(DAEMON);
    command.args(arguments).arg("--control").arg(dir.join("control"));
    command.output().unwrap().status.success()
}

/// Serves, does `before`, and has the power cut at the `count`th write or sync of `during`. Whether
/// it was cut; none where there is no FUSE to be had.
fn cut_during(
    dir: &Path,
    seed: u64,
    count: u64,
    before: impl FnOnce(&Daemon),
    during: impl FnOnce() -> bool + Send,
) -> Option<bool> {
    let mut disks = VolatileDisks::start("power::serve_disks", dir, seed, &[]).unwrap()?;
    let daemon = serve(dir, false).unwrap()?;
    before(&daemon);
    disks.cut_after(count).unwrap();
    let is_done = thread::scope(|scope| {
        let during = scope.spawn(during);
        let cut = disks.wait_for_cut_or(|| during.is_finished()).unwrap();
        daemon.signal(Signal::KILL).unwrap();
        drop(disks);
        assert!(during.join().unwrap() || cut.is_some());
        cut.is_none()
    });
    daemon.kill(PATIENCE).unwrap();
    Some(!is_done)
}

/// Cuts the power at each point of `during`, by a few seeds, and checks what is left.
fn cut_everywhere(
    before: impl Fn(&Path, &Daemon),
    during: impl Fn(&Path) -> bool + Sync,
    byte: u8,
) {
    if !can_mark() {
        return;
    }
    for count in 0.. {
        let mut was_cut = false;
        for seed in 0..2 {
            let dir = machine();
            let dir = dir.path();
            let cut = cut_during(dir, seed, count, |daemon| before(dir, daemon), || during(dir));
            let Some(cut) = cut else { return };
            was_cut |= cut;
            check_left(dir, byte, seed % 2 == 0).unwrap_or_else(|error| {
                panic!("cut before operation {count}, by seed {seed}: {error}")
            });
        }
        if !was_cut {
            assert!(count > 3);
            return;
        }
    }
}

/// Does what the daemon's refusal asks for: merges, or serves the overlay and merges it then; and
/// checks what there is.
fn check_left(dir: &Path, byte: u8, merge_first: bool) -> Result<(), String> {
    let media = Media::new(dir);
    let is_origin = media.is_origin();
    if is_origin && merge_first {
        media.merge()?;
    }
    let daemon =
        serve(dir, is_origin && !merge_first).map_err(|error| format!("{error:#}"))?.unwrap();
    check(&daemon, byte);
    daemon.terminate().unwrap();
    if is_origin && !merge_first {
        media.merge()?;
    }
    let left = fs::read(dir.join("media/one")).unwrap();
    assert!(left.iter().all(|held| *held == byte));
    Ok(())
}

#[test]
fn snapshot_cut_at_any_point_can_be_merged() {
    let snapshot =
        |dir: &Path| operate(dir, &["snapshot", dir.join("disks/cow").to_str().unwrap()]);
    cut_everywhere(|_, daemon| store(daemon, 2), snapshot, 2);
}

#[test]
fn merge_cut_at_any_point_loses_nothing() {
    let change = |dir: &Path, daemon: &Daemon| {
        assert!(operate(dir, &["snapshot", dir.join("disks/cow").to_str().unwrap()]));
        store(daemon, 3);
    };
    cut_everywhere(change, |dir| operate(dir, &["merge"]), 3);
}

#[test]
fn overlay_whose_making_was_cut_at_any_point_is_made_again() {
    for (count, seed) in (0..5).flat_map(|count| (0..4).map(move |seed| (count, seed))) {
        let dir = machine();
        let dir = dir.path();
        let disks = VolatileDisks::start("power::serve_disks", dir, seed, &[]).unwrap();
        let Some(mut disks) = disks else { return };
        disks.cut_after(count).unwrap();
        let daemon = disks.unless_cut(|| serve(dir, true));
        drop((daemon, disks));
        let media = Media::new(dir);
        let daemon = serve(dir, true).unwrap().unwrap();
        check(&daemon, 1);
        store(&daemon, 2);
        daemon.terminate().unwrap();
        check(&serve(dir, true).unwrap().unwrap(), 2);
        drop(media);
        assert_eq!(fs::read(dir.join("media/one")).unwrap(), [1; BYTES]);
    }
}
