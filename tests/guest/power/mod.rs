// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Power cuts under a guest: what it has synced is there after its filesystem's log was replayed, on
//! disks that lose, reorder and tear what wasn't.

mod pages;
mod renames;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use guest_harness::{
    Daemon, Lab, Random, Rounds, VmBuilder, VolatileDisks, patience, serve_volatile_disks,
};
use rustix::process::Signal;
use tempfile::TempDir;

use self::pages::{Changes, Pages};
use self::renames::Renames;
use crate::filesystem::Filesystem;
use crate::served::{can_serve, same};
use crate::{DAEMON, guest, on_ext4_and_xfs, sparse_file};

on_ext4_and_xfs! {
    direct_file_keeps_what_was_synced_over_power_cuts
    overlay_keeps_what_was_synced_over_power_cuts
}

const SIZE: u64 = 512 << 20;
/// How long a process that was killed may take to be gone.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a guest may go on until the power is cut.
const CUT_LIMIT: Duration = Duration::from_secs(100);

/// Something dirty at any time.
const UNSYNCED: &str =
    "while :; do dd if=/dev/urandom of=/mnt/unsynced bs=64k count=16 status=none; done";

#[test]
#[ignore = "no test: the process that serves the disks of the others"]
fn serve_disks() {
    serve_volatile_disks().unwrap();
}

fn direct_file_keeps_what_was_synced_over_power_cuts(filesystem: Filesystem) {
    cut_rounds(filesystem, Memory::Direct);
}

fn overlay_keeps_what_was_synced_over_power_cuts(filesystem: Filesystem) {
    if can_serve() {
        cut_rounds(filesystem, Memory::Overlay);
    }
}

#[test]
#[ignore = "tells what is the guest's kernel's doing: without the daemon"]
fn ext4_on_own_device_keeps_what_was_synced_over_power_cuts() {
    cut_rounds(Filesystem::Ext4, Memory::Own);
}

#[test]
#[ignore = "tells what is the guest's kernel's doing: without the daemon"]
fn xfs_on_own_device_keeps_what_was_synced_over_power_cuts() {
    cut_rounds(Filesystem::Xfs, Memory::Own);
}

/// What the guest's memory is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Memory {
    Direct,
    Overlay,
    /// QEMU's own device, on the disk itself.
    Own,
}

/// Boots guests that check what those before them have synced and sync more, until the power is cut,
/// in every fourth round while they still check. The last one only checks.
fn cut_rounds(filesystem: Filesystem, memory: Memory) {
    let lab = Lab::open().unwrap();
    let rounds = Rounds::from_environment("VHOST_PMEM_POWER", 3);
    let mut random = Random::new(rounds.seed);
    let machine = Machine::new(&lab, filesystem, memory);
    let (mut pages, mut renames) = (Pages::new(), Renames::default());
    for round in 0..rounds.count {
        let changes = Changes::new(&mut random);
        let load = [UNSYNCED, &Pages::create(), &changes.script(), &renames.script()];
        let [unsynced, create, change, rename] = load;
        let load = format!("{create}\n({unsynced}) &\n({change}) &\n{rename}");
        let script = filesystem.script(&format!("{}\necho MARK load\n{load}", check()));
        let begin = if round % 4 == 3 { "MARK boot" } else { "MARK load" };
        let run = machine.attempt(|| {
            let run = machine.run_until_cut(&script, begin, &mut random)?;
            if let Some((serial, _)) = run.as_ref().filter(|(serial, _)| is_checked(serial)) {
                pages.check(serial)?;
                renames.check(serial)?;
            }
            Ok(run)
        });
        let Some((serial, cut)) = run else { return };
        if is_checked(&serial) {
            pages.take_held(&serial);
            renames.take_held(&serial);
            let synced = pages::count_synced(&serial);
            pages.change(&changes, synced);
            renames.take_synced(&serial);
            eprintln!("round {round}: {cut}; {synced} changes synced, {} names", renames.count());
        } else {
            eprintln!("round {round}: {cut}, while the guest checked");
        }
    }
    machine.attempt(|| {
        let serial = machine.run(&filesystem.script(&check()))?;
        pages.check(&serial)?;
        renames.check(&serial)
    });
    machine.check_base();
}

/// Whether a guest has done all of [`check`].
fn is_checked(serial: &str) -> bool {
    serial.contains("MARK load")
}

/// What a guest does first: finds a clean filesystem, once its log is replayed, and says what is in it.
fn check() -> String {
    format!(
        "mount_dax /dev/pmem0
        umount /mnt
        fsck /dev/pmem0
        mount_dax /dev/pmem0
        {}
        {}",
        Pages::report(),
        Renames::report()
    )
}

/// A machine whose guest's memory is on disks.
struct Machine<'lab> {
    lab: &'lab Lab,
    filesystem: Filesystem,
    memory: Memory,
    dir: TempDir,
}

impl<'lab> Machine<'lab> {
    /// One with an empty filesystem.
    fn new(lab: &'lab Lab, filesystem: Filesystem, memory: Memory) -> Self {
        let machine = Self { lab, filesystem, memory, dir: tempfile::tempdir().unwrap() };
        fs::create_dir(machine.media()).unwrap();
        fs::create_dir(machine.synced()).unwrap();
        let disk = machine.media().join("disk");
        sparse_file(&disk, SIZE);
        filesystem.make(lab, &disk);
        if memory == Memory::Overlay {
            let mut copy = Command::new("cp");
            copy.arg("--sparse=always").args([&disk, &machine.base()]);
            assert!(copy.status().unwrap().success());
        }
        machine
    }

    fn media(&self) -> PathBuf {
        self.dir.path().join("media")
    }

    /// What is on the media if all was lost that wasn't synced.
    fn synced(&self) -> PathBuf {
        self.dir.path().join("synced")
    }

    /// The same, of the cut before the last.
    fn synced_before(&self) -> PathBuf {
        self.dir.path().join("synced before")
    }

    /// Boots a guest, and does it again where that finds something amiss on ext4 after a power cut,
    /// with all lost that wasn't synced; it must all be well then.
    ///
    /// Linux, 6.12 at least, has a page of ext4's log written before the flush that is to go before it:
    /// `async_pmem_flush` in `drivers/nvdimm/nd_virtio.c` only chains that to the write. Cut between the
    /// two, a record may be there without all that belongs to it, or the log's end without what was
    /// to be at its place by then, also on QEMU's own device. Without what wasn't synced there is no
    /// order that could be wrong, and what was synced is all that a device promises.
    fn attempt<T>(&self, mut run: impl FnMut() -> Result<T, String>) -> T {
        loop {
            if self.synced().join("disk").exists() {
                let _ = fs::remove_dir_all(self.synced_before());
                fs::rename(self.synced(), self.synced_before()).unwrap();
                fs::create_dir(self.synced()).unwrap();
            }
            let amiss = match run() {
                Ok(done) => return done,
                Err(amiss) => amiss,
            };
            let may_be_drivers =
                self.filesystem == Filesystem::Ext4 && self.synced_before().exists();
            assert!(may_be_drivers, "{amiss}");
            eprintln!("once more, with all lost that was not synced, as this was amiss: {amiss}");
            fs::remove_dir_all(self.media()).unwrap();
            fs::rename(self.synced_before(), self.media()).unwrap();
            fs::remove_dir_all(self.synced()).unwrap();
            fs::create_dir(self.synced()).unwrap();
        }
    }

    /// What an overlay's base was at first.
    fn base(&self) -> PathBuf {
        self.dir.path().join("base")
    }

    fn check_base(&self) {
        let is_kept =
            self.memory != Memory::Overlay || same(&self.media().join("disk"), &self.base());
        assert!(is_kept, "the base was changed");
    }

    /// A guest on what is at `path`, and the daemon between them.
    fn guest(&self, path: impl Fn(&str) -> PathBuf) -> (Option<Daemon>, VmBuilder<'lab>) {
        let arguments = match self.memory {
            Memory::Direct => vec!["--file".into(), path("disk")],
            Memory::Overlay => {
                vec!["--file".into(), path("disk"), "--overlay".into(), path("cow")]
            }
            Memory::Own => {
                let vm = guest(self.lab, self.filesystem, &[]);
                return (None, vm.own_virtio_pmem(path("disk"), SIZE));
            }
        };
        let daemon = Daemon::start(DAEMON, arguments).unwrap();
        let vm = guest(self.lab, self.filesystem, &[&daemon]);
        (Some(daemon), vm)
    }

    /// Runs a guest's script to its end, and returns what it has printed.
    fn run(&self, script: &str) -> Result<String, String> {
        let (_daemon, vm) = self.guest(|name| self.media().join(name));
        vm.script(script).run().map(|outcome| outcome.serial).map_err(|error| format!("{error:#}"))
    }

    /// Boots a guest and cuts the power at a moment after it has printed `begin`. Returns what it has
    /// printed, and what was lost; nothing where there is no FUSE to be had.
    fn run_until_cut(
        &self,
        script: &str,
        begin: &str,
        random: &mut Random,
    ) -> Result<Option<(String, String)>, String> {
        let disks =
            VolatileDisks::start("power::serve_disks", self.dir.path(), random.number(), &[]);
        let Some(mut disks) = disks.unwrap() else { return Ok(None) };
        let (daemon, vm) = self.guest(|name| disks.path(name));
        let vm = vm.script(script).boot().unwrap();
        vm.wait_for(begin).map_err(|error| format!("{error:#}"))?;
        let delay = Duration::from_millis(random.below(1500));
        std::thread::sleep(delay);
        match random.one_in(2) {
            true => disks.cut_after(random.below(100)).unwrap(),
            false => disks.cut_in_sync_after(random.below(10)).unwrap(),
        }
        let limit = Instant::now() + patience(CUT_LIMIT);
        let has_ended = || vm.serial().contains("MARK done") || Instant::now() > limit;
        let cut = disks.wait_for_cut_or(has_ended).unwrap();
        // It goes first, so that nothing that fails from now on reaches the guest.
        if let Some(daemon) = &daemon {
            daemon.signal(Signal::KILL).unwrap();
        }
        drop(disks);
        let serial = vm.kill().unwrap().serial;
        if let Some(daemon) = daemon {
            daemon.kill(PATIENCE).unwrap();
        }
        match cut {
            Some(cut) => Ok(Some((serial, format!("{delay:?} after {begin}, {cut}")))),
            None => Err(format!("the guest failed:\n{serial}")),
        }
    }
}
