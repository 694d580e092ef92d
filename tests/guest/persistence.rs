// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest has synced is there: in the file, after a reboot, after a power-off, after a kill.

use std::path::PathBuf;
use std::time::Duration;

use guest_harness::{Daemon, Kernel, Lab, VmBuilder};
use tempfile::TempDir;

use crate::filesystem::Filesystem;
use crate::served::can_publish;
use crate::{DAEMON, guest, pages_of, serve, sparse_file};

/// Runs each of the functions as a test on both filesystems, and on each kind of memory.
macro_rules! on_all {
    ($($name:ident)*) => {
        mod ext4 {
            on_all!(@ Ext4 $($name)*);
        }
        mod xfs {
            on_all!(@ Xfs $($name)*);
        }
    };
    (@ $filesystem:ident $($name:ident)*) => {
        use crate::filesystem::Filesystem::$filesystem;
        $(#[test] fn $name() { super::on_device(super::$name, $filesystem); })*
        mod published {
            use super::$filesystem;
            use crate::persistence::on_published;
            $(#[test] fn $name() { on_published(crate::persistence::$name, $filesystem); })*
        }
        mod gpa {
            use super::$filesystem;
            use crate::persistence::on_gpa;
            $(#[test] fn $name() { on_gpa(crate::persistence::$name, $filesystem); })*
        }
    };
}

on_all! {
    mounted_with_dax_writes_land_in_the_host_file
    rebooted_within_one_qemu_finds_everything
    powered_off_and_booted_again_finds_everything
    killed_right_after_fsync_finds_what_was_synced_in_a_clean_filesystem
    eight_writers_with_fsync_at_once_lose_nothing
}

type Test = fn(&mut Memory, Filesystem);

fn on_device(test: Test, filesystem: Filesystem) {
    test(&mut Memory::new(Kind::Direct), filesystem);
}

fn on_gpa(test: Test, filesystem: Filesystem) {
    // One that knows no other window, and one that does.
    let kernel = if filesystem == Filesystem::Ext4 { Kernel::Bookworm } else { Kernel::Trixie };
    on_gpa_of(kernel, test, filesystem);
}

fn on_gpa_of(kernel: Kernel, test: Test, filesystem: Filesystem) {
    let mut memory = Memory::new(Kind::Gpa(kernel));
    test(&mut memory, filesystem);
    // Its flushes have come here, and were no failures.
    memory.daemon().wait_for_log("the guest has the window as its memory").unwrap();
}

/// What matters most, with the kernel that `on_all!` doesn't have for this filesystem.
fn on_gpa_of_other_kernel(kernel: Kernel, filesystem: Filesystem) {
    on_gpa_of(kernel, mounted_with_dax_writes_land_in_the_host_file, filesystem);
    let killed = killed_right_after_fsync_finds_what_was_synced_in_a_clean_filesystem;
    on_gpa_of(kernel, killed, filesystem);
}

#[test]
fn ext4_of_linux_6_12_on_guest_memory_keeps_what_was_synced() {
    on_gpa_of_other_kernel(Kernel::Trixie, Filesystem::Ext4);
}

#[test]
fn xfs_of_linux_6_1_on_guest_memory_keeps_what_was_synced() {
    on_gpa_of_other_kernel(Kernel::Bookworm, Filesystem::Xfs);
}

#[test]
fn killed_on_published_guest_memory_finds_what_was_synced() {
    if can_publish() {
        let mut memory = Memory::new(Kind::GpaPublished);
        let filesystem = Filesystem::Ext4;
        killed_right_after_fsync_finds_what_was_synced_in_a_clean_filesystem(
            &mut memory,
            filesystem,
        );
        assert_eq!(pages_of(0, &memory.base()), PAGES, "the base was changed");
    }
}

fn on_published(test: Test, filesystem: Filesystem) {
    if can_publish() {
        let mut memory = Memory::new(Kind::Published);
        test(&mut memory, filesystem);
        assert_eq!(pages_of(0, &memory.base()), PAGES, "the base was changed");
    }
}

const SIZE: u64 = 512 << 20;
/// Of a guest whose persistent memory lies behind it.
const MEMORY_MIB: u32 = 512;
const PAGES: usize = 512 << 20 >> 12;

/// Where the guest gets its pages from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Our device maps a file.
    Direct,
    /// QEMU's own device maps what was changed of a file, which the daemon publishes.
    Published,
    /// QEMU maps a file as memory of the guest, which has this kernel.
    Gpa(Kernel),
    /// QEMU maps as memory of the guest what the daemon publishes.
    GpaPublished,
}

impl Kind {
    fn is_published(self) -> bool {
        matches!(self, Self::Published | Self::GpaPublished)
    }
}

/// Persistent memory.
struct Memory {
    kind: Kind,
    dir: TempDir,
    daemon: Option<Daemon>,
}

impl Memory {
    fn new(kind: Kind) -> Self {
        let mut memory = Self { kind, dir: tempfile::tempdir().unwrap(), daemon: None };
        if kind.is_published() {
            sparse_file(&memory.base(), SIZE);
        }
        memory.start();
        memory
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn base(&self) -> PathBuf {
        self.path("base")
    }

    /// Where the pages are that the guest has synced.
    fn file(&self) -> PathBuf {
        self.path("pmem")
    }

    fn start(&mut self) {
        let published = || {
            let args = ["--publish", "--file", "--overlay"].map(Into::into);
            let paths =
                [self.path("window"), self.base(), self.file()].map(PathBuf::into_os_string);
            args.into_iter().zip(paths).flat_map(|(arg, path)| [arg, path])
        };
        let gpa = ["--window".into(), format!("gpa={MEMORY_MIB}M").into()];
        let file = ["--file".into(), self.file().into(), "--size".into(), "512M".into()];
        let daemon = match self.kind {
            Kind::Direct => Ok(serve(&self.file())),
            Kind::Published => Daemon::start(DAEMON, published()),
            Kind::Gpa(_) => Daemon::start(DAEMON, gpa.into_iter().chain(file)),
            Kind::GpaPublished => Daemon::start(DAEMON, published().chain(gpa)),
        };
        let daemon = daemon.unwrap();
        self.daemon = Some(daemon);
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    /// Ends the daemon in order, and starts the next one.
    fn restart(&mut self) {
        let (status, _) = self.daemon.take().unwrap().terminate().unwrap();
        assert!(status.success());
        self.start();
    }

    /// After the VMM was killed: nothing is left of what was not synced, as far as we can help it.
    fn lose_power(&mut self) {
        if self.kind.is_published() {
            self.daemon.take().unwrap().kill(Duration::from_secs(20)).unwrap();
            self.start();
        } else {
            self.daemon().wait_for_log("frontend left").unwrap();
        }
    }

    fn guest<'lab>(&self, lab: &'lab Lab, filesystem: Filesystem) -> VmBuilder<'lab> {
        let ours = || guest(lab, filesystem, &[self.daemon()]);
        let mapped = |path| ours().memory_mib(MEMORY_MIB).file_memory(path, 512);
        match self.kind {
            Kind::Direct => ours(),
            Kind::Published => {
                guest(lab, filesystem, &[]).own_virtio_pmem(self.path("window"), SIZE)
            }
            Kind::Gpa(kernel) => mapped(self.file()).kernel(kernel),
            Kind::GpaPublished => mapped(self.path("window")),
        }
    }

    /// Boots a guest that does `body`, and powers off.
    fn run(&self, lab: &Lab, filesystem: Filesystem, body: &str) -> String {
        self.guest(lab, filesystem).script(&filesystem.script(body)).run().unwrap().serial
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // In order, so that nothing stays mounted.
        if let Some(daemon) = self.daemon.take() {
            let _ = daemon.terminate();
        }
    }
}

fn mounted_with_dax_writes_land_in_the_host_file(memory: &mut Memory, filesystem: Filesystem) {
    let lab = Lab::open().unwrap();
    let script = filesystem.script(
        "mkfs /dev/pmem0
        mount_dax /dev/pmem0
        grep ' /mnt ' /proc/mounts
        xfs_io -fc 'truncate 1m' -c 'mmap 0 1m' -c 'mwrite -S 0xa7 0 256k' -c 'msync -s' /mnt/mapped
        xfs_io -fc 'pwrite -q -S 0xb3 0 128k' -c fsync /mnt/written
        echo MARK synced
        read forever < /dev/ttyS0",
    );
    let vm = memory.guest(&lab, filesystem).script(&script).boot().unwrap();
    vm.wait_for("MARK synced").unwrap();
    let serial = vm.serial();
    let mount = serial.lines().find(|line| line.contains(" /mnt ")).unwrap();
    assert!(mount.contains("dax=always"), "{mount}");
    let file = memory.file();
    assert_eq!((pages_of(0xa7, &file), pages_of(0xb3, &file)), (64, 32));
    vm.kill().unwrap();
}

/// Writes 8 MiB of noise and its checksum.
const WRITE: &str = "
    mkdir /mnt/dir
    dd if=/dev/urandom of=/mnt/dir/noise bs=1M count=8 conv=fsync status=none
    (cd /mnt && md5sum dir/noise > sums && sync sums)";

/// Checks what [`WRITE`] wrote.
const VERIFY: &str = "(cd /mnt && md5sum -c sums)";

fn rebooted_within_one_qemu_finds_everything(memory: &mut Memory, filesystem: Filesystem) {
    let lab = Lab::open().unwrap();
    let script = filesystem.script(&format!(
        "if mount_dax /dev/pmem0 2>/dev/null; then
            {VERIFY}
            if [ -e /mnt/third ]; then exit 0; fi
            : > /mnt/third
            umount /mnt
            echo MARK reset me
            read forever < /dev/ttyS0
        fi
        mkfs /dev/pmem0
        mount_dax /dev/pmem0
        {WRITE}
        umount /mnt
        reboot -f"
    ));
    let vm = memory.guest(&lab, filesystem).allow_reboot().script(&script).boot().unwrap();
    vm.wait_for("MARK reset me").unwrap();
    vm.system_reset().unwrap();
    let outcome = vm.wait().unwrap().expect_success().unwrap();
    assert_eq!(outcome.serial.matches("dir/noise: OK").count(), 2);
    if memory.kind == Kind::Direct {
        let log = memory.daemon().log();
        assert_eq!(log.matches("guest activated the device").count(), 3, "{log}");
    }
}

fn powered_off_and_booted_again_finds_everything(memory: &mut Memory, filesystem: Filesystem) {
    let lab = Lab::open().unwrap();
    let write = format!("mkfs /dev/pmem0; mount_dax /dev/pmem0; {WRITE}; umount /mnt");
    memory.run(&lab, filesystem, &write);
    // The next frontend may as well meet the next daemon.
    memory.restart();
    let verify = format!("mount_dax /dev/pmem0; {VERIFY}; umount /mnt; fsck /dev/pmem0");
    memory.run(&lab, filesystem, &verify);
}

fn killed_right_after_fsync_finds_what_was_synced_in_a_clean_filesystem(
    memory: &mut Memory,
    filesystem: Filesystem,
) {
    let lab = Lab::open().unwrap();
    let script = filesystem.script(&format!(
        "mkfs /dev/pmem0
        mount_dax /dev/pmem0
        {WRITE}
        sync
        echo MARK synced
        while :; do dd if=/dev/urandom of=/mnt/unsynced bs=64k count=4 status=none; done"
    ));
    let vm = memory.guest(&lab, filesystem).script(&script).boot().unwrap();
    vm.wait_for("MARK synced").unwrap();
    vm.kill().unwrap();
    memory.lose_power();
    let verify = format!("mount_dax /dev/pmem0; {VERIFY}; umount /mnt; fsck /dev/pmem0");
    memory.run(&lab, filesystem, &verify);
}

fn eight_writers_with_fsync_at_once_lose_nothing(memory: &mut Memory, filesystem: Filesystem) {
    let lab = Lab::open().unwrap();
    let serial = memory.run(
        &lab,
        filesystem,
        "mkfs /dev/pmem0
        mount_dax /dev/pmem0
        writer() {
            for round in 1 2 3 4 5 6 7 8; do
                xfs_io -fc \"pwrite -q -S $1 $((round * 64))k 64k\" -c fsync /mnt/$1
            done
        }
        for id in 1 2 3 4 5 6 7 8; do writer $id & done
        wait
        umount /mnt
        fsck /dev/pmem0
        mount_dax /dev/pmem0
        for id in 1 2 3 4 5 6 7 8; do
            head -c 512k /dev/zero | tr '\\0' \"$(printf '\\\\%03o' $id)\" > expected
            tail -c 512k /mnt/$id | cmp - expected && echo \"RES writer $id intact\"
        done",
    );
    assert_eq!(serial.matches("intact").count(), 8, "{serial}");
}
