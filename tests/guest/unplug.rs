// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that is taken away while its guest stores to it and flushes: by the guest
//! itself, by the daemon's end, by the store's. Whoever is not concerned goes on.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use guest_harness::{Daemon, Lab, Vm, VmBuilder, patience};
use pfn_blk::{MemoryStore, NrPages, Pfn, PfnSpace, Region};
use vhost_pmem::{Device, WindowChoice};

use crate::filesystem::Filesystem;
use crate::{guest, serve};

/// These guests are there for as long as two others boot.
const LIMIT: Duration = Duration::from_secs(300);

/// A guest whose first device is at `socket`, behind a port of its own, and can be unplugged.
fn pluggable<'lab>(lab: &'lab Lab, socket: &Path) -> VmBuilder<'lab> {
    let chardev = format!("socket,id=goes,path={}", socket.display());
    let vm = lab.vm().time_limit(LIMIT);
    vm.qemu_args(["-device", "pcie-root-port,id=goes-port,chassis=1,addr=10"]).qemu_args([
        "-chardev",
        &chardev,
        "-device",
        "vhost-user-test-device-pci,virtio-id=27,num_vqs=1,config_size=16,chardev=goes,bus=goes-port,id=goes",
    ])
}

/// Says each sync of `/mnt/stays`; after the eighth, does `then`.
fn sync_for_ever(then: &str) -> String {
    format!(
        "number=0
        while :; do
            number=$((number + 1))
            echo $number > /mnt/stays/number
            sync /mnt/stays/number
            echo MARK $number
            sleep 0.1
            if [ $number = 8 ]; then {then}; fi
        done"
    )
}

/// Syncs a file on the device that goes; then stores to another without an end, through one mapping,
/// and flushes, until that fails.
const HAMMER: &str = "
    goes=$(ls /sys/bus/pci/devices/0000:01:00.0/virtio*/ndbus*/region*/namespace*/block)
    mkdir /mnt/goes /mnt/stays
    for device in /dev/pmem*; do
        directory=/mnt/stays
        if [ $device = /dev/$goes ]; then directory=/mnt/goes; fi
        mkfs $device
        mount_dax $device $directory
    done
    xfs_io -fc 'pwrite -q -S 0xb3 0 1m' -c fsync -c 'truncate 2m' -c fsync /mnt/goes/kept
    truncate -s 4M /mnt/goes/mapped
    (
        echo mmap 0 4m
        while :; do
            echo mwrite -S 0xa7 0 4m
            echo mwrite -S 0xc5 0 4m
        done
    ) | xfs_io /mnt/goes/mapped > /dev/null 2>&1 &
    hammer=$!
    (
        while xfs_io -fc 'pwrite -q -S 0xd1 0 256k' -c fsync /mnt/goes/written; do :; done
        echo MARK refused
        kill $hammer
        umount /mnt/goes
    ) &\n";

/// Boots a guest that hammers at what is at `socket`, beside a device that stays.
fn hammer(lab: &Lab, socket: &Path, stays: &Daemon) -> Vm {
    let script = Filesystem::Ext4.script(&format!("{HAMMER}{}", sync_for_ever(":")));
    let vm = pluggable(lab, socket).vhost_user_pmem(stays.socket()).script(&script).boot().unwrap();
    vm.wait_for("MARK 8").unwrap();
    vm
}

/// Waits for a guest to have synced a few times more.
fn goes_on(vm: &Vm) {
    let said = vm.serial().matches("MARK ").count();
    vm.wait_for(&format!("MARK {}", said + 4)).unwrap();
}

/// Boots the next guest on a device, which finds what was synced.
fn serves_the_next(lab: &Lab, daemon: &Daemon) {
    let script = Filesystem::Ext4.script(
        "mount_dax /dev/pmem0
        head -c 1m /dev/zero | tr '\\0' '\\263' > expected
        head -c 1m /mnt/kept | cmp - expected
        umount /mnt
        fsck /dev/pmem0",
    );
    guest(lab, Filesystem::Ext4, &[daemon]).script(&script).run().unwrap();
}

#[test]
fn device_torn_out_by_its_guest_is_free_for_the_next() {
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [goes, stays] = ["goes", "stays"].map(|name| serve(&dir.path().join(name)));
    let other = format!(
        "mkdir /mnt/stays; mkfs /dev/pmem0; mount_dax /dev/pmem0 /mnt/stays; {}",
        sync_for_ever(":")
    );
    let other = Filesystem::Ext4.script(&other);
    let other =
        guest(&lab, Filesystem::Ext4, &[&stays]).time_limit(LIMIT).script(&other).boot().unwrap();
    // Slot Control, at 0x6c of QEMU's port: power and its indicator off, without a word to a driver.
    let port = "/sys/bus/pci/devices/0000:00:10.0/config";
    let tear_out = format!("printf '\\000\\007' | dd of={port} bs=2 seek=54 count=1 conv=notrunc");
    let script = format!("{HAMMER}{}", sync_for_ever(&tear_out));
    let vm = pluggable(&lab, goes.socket())
        .qemu_args(["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"])
        .script(&Filesystem::Ext4.script(&script))
        .boot()
        .unwrap();
    vm.wait_for("MARK 8").unwrap();
    goes.wait_for_log("frontend left").unwrap();
    goes_on(&other);
    serves_the_next(&lab, &goes);
    goes_on(&other);
    // QEMU 11.1 aborts, as it takes the device apart with pages mapped in it.
    vm.kill().unwrap();
    other.kill().unwrap();
}

/// The guest's stores go on for as long as its filesystem needs no flush: which may be no time at all.
#[test]
fn daemon_killed_under_stores_harms_no_other_device() {
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("goes");
    let [goes, stays] = [serve(&file), serve(&dir.path().join("stays"))];
    let vm = hammer(&lab, goes.socket(), &stays);
    goes.kill(Duration::from_secs(20)).unwrap();
    goes_on(&vm);
    goes_on(&vm);
    vm.kill().unwrap();
    serves_the_next(&lab, &serve(&file));
}

#[test]
fn store_disabled_under_stores_is_taken_from_the_guest() {
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let stays = serve(&dir.path().join("stays"));
    let socket = dir.path().join("socket");
    let (mut space, pfn) = serve_disposable(&socket);
    let vm = hammer(&lab, &socket, &stays);
    // The VMM has unmapped the pages when this returns.
    space.disable(pfn, patience(Duration::from_secs(60))).unwrap();
    vm.wait_for("MARK refused").unwrap();
    goes_on(&vm);
    vm.kill().unwrap();
}

/// Serves memory from this process, and returns what disables it.
fn serve_disposable(socket: &PathBuf) -> (PfnSpace, Pfn) {
    let nr_pages = NrPages::try_from_bytes(512 << 20).unwrap();
    let mut space = PfnSpace::new();
    let store = MemoryStore::new("disposable", nr_pages).unwrap();
    let pagemap = space.add(Box::new(store)).unwrap();
    let pfn = pagemap.pfns().start();
    let region = Region::try_new(pagemap).unwrap();
    let device = Arc::new(Device::try_new(region, WindowChoice::Auto).unwrap());
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || device.serve_next(listener));
    (space, pfn)
}
