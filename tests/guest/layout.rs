// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! More than one device, and devices of more than one file.

use guest_harness::{Daemon, Lab};

use crate::filesystem::Filesystem;
use crate::loop_device::LoopDevice;
use crate::{DAEMON, guest, on_ext4_and_xfs, pages_of, serve, serve_table, sparse_file};

on_ext4_and_xfs! {
    two_devices_in_one_guest_stay_apart
    files_joined_by_a_linear_table_are_one_device
}

fn two_devices_in_one_guest_stay_apart(filesystem: Filesystem) {
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let files = ["a", "b"].map(|name| dir.path().join(name));
    let daemons = files.each_ref().map(|file| serve(file));
    let script = filesystem.script(
        "mkdir /mnt/a /mnt/b
        for device in 0 1; do mkfs /dev/pmem$device; done
        mount_dax /dev/pmem0 /mnt/a
        mount_dax /dev/pmem1 /mnt/b
        xfs_io -fc 'pwrite -q -S 0xa7 0 256k' -c fsync /mnt/a/file
        xfs_io -fc 'pwrite -q -S 0xb3 0 128k' -c fsync /mnt/b/file
        umount /mnt/a /mnt/b
        for device in 0 1; do fsck /dev/pmem$device; done",
    );
    guest(&lab, filesystem, &daemons.each_ref()).script(&script).run().unwrap();
    // Which device is pmem0 is the guest's own affair.
    let mut found = files.each_ref().map(|file| (pages_of(0xa7, file), pages_of(0xb3, file)));
    found.sort_unstable();
    assert_eq!(found, [(0, 32), (64, 0)]);
}

fn files_joined_by_a_linear_table_are_one_device(filesystem: Filesystem) {
    const PIECE: u64 = 128 << 20;
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let pieces = [0u64, 1, 2, 3].map(|index| dir.path().join(format!("piece {index}")));
    let mut text = "# start length target path start\n".to_owned();
    for (index, piece) in (0..).zip(&pieces) {
        sparse_file(piece, PIECE);
        let path = piece.to_str().unwrap().replace(' ', "\\ ");
        text += &format!("{} {} linear {path} 0\n", index * PIECE / 512, PIECE / 512);
    }
    let daemon = serve_table(&dir, &text);

    // More than three pieces hold, as where the filesystem puts what is its own affair. A page in each
    // MiB shows where that is.
    let script = filesystem.script(
        "mkfs /dev/pmem0
        mount_dax /dev/pmem0
        for id in 1 2 3 4; do
            fallocate -l 100M /mnt/$id
            for at in $(seq 0 99); do echo pwrite -q -S 0xa7 ${at}m 4k; done | xfs_io /mnt/$id
        done
        umount /mnt
        fsck /dev/pmem0
        mount_dax /dev/pmem0
        head -c 4k /dev/zero | tr '\\0' '\\247' > expected
        for id in 1 2 3 4; do
            for at in $(seq 0 9 99); do
                dd if=/mnt/$id bs=1M skip=$at count=1 status=none | head -c 4k | cmp - expected
            done
        done",
    );
    guest(&lab, filesystem, &[&daemon]).script(&script).run().unwrap();
    let pages = pieces.each_ref().map(|piece| pages_of(0xa7, piece));
    assert_eq!(pages.iter().sum::<usize>(), 4 * 100);
    assert!(pages.iter().all(|&pages| pages > 0), "{pages:?}");
}

#[test]
fn block_device_serves_as_a_file_does() {
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk");
    sparse_file(&file, 512 << 20);
    let Some(device) = LoopDevice::over(&file) else {
        eprintln!("not tested: no loop device can be made here, which takes root");
        return;
    };
    let daemon = Daemon::start(DAEMON, ["--file".as_ref(), device.path()]).unwrap();
    let second =
        Daemon::start(DAEMON, ["--file".as_ref(), device.path()]).err().unwrap().to_string();
    assert!(second.contains("busy: mounted, or in use"), "{second}");

    let script = Filesystem::Ext4.script(
        "mkfs /dev/pmem0
        mount_dax /dev/pmem0
        xfs_io -fc 'truncate 1m' -c 'mmap 0 1m' -c 'mwrite -S 0xa7 0 256k' -c 'msync -s' /mnt/mapped
        echo MARK synced
        read forever < /dev/ttyS0",
    );
    let vm = guest(&lab, Filesystem::Ext4, &[&daemon]).script(&script).boot().unwrap();
    vm.wait_for("MARK synced").unwrap();
    // Beneath the device's page cache: a page is there only if the flush has brought it down.
    assert_eq!(pages_of(0xa7, &file), 64);
    vm.kill().unwrap();
}

#[test]
fn region_of_64_extents_is_one_device() {
    const PIECE: u64 = 8 << 20;
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pmem");
    sparse_file(&file, 64 * PIECE);
    // One file back to front, so that no piece continues the one before.
    let sectors = PIECE / 512;
    let line = |index| {
        format!(
            "{} {sectors} linear {} {}\n",
            index * sectors,
            file.display(),
            (63 - index) * sectors
        )
    };
    let daemon = serve_table(&dir, &(0..64).map(line).collect::<String>());
    assert!(daemon.log().contains("in 64 mappings"), "{}", daemon.log());

    let script = Filesystem::Ext4.script(
        "mkfs /dev/pmem0
        mount_dax /dev/pmem0
        # A page in each MiB: they lie in as many mappings as all would.
        fallocate -l 400M /mnt/file
        for at in $(seq 0 399); do echo pwrite -q -S 0xa7 ${at}m 4k; done | xfs_io /mnt/file
        umount /mnt
        fsck /dev/pmem0",
    );
    guest(&lab, Filesystem::Ext4, &[&daemon]).script(&script).run().unwrap();
    assert_eq!(pages_of(0xa7, &file), 400);
}

#[test]
fn files_striped_in_large_chunks_are_one_device() {
    const PIECE: u64 = 256 << 20;
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let pieces = ["a", "b"].map(|name| dir.path().join(name));
    for piece in &pieces {
        sparse_file(piece, PIECE);
    }
    let [a, b] = pieces.each_ref().map(|piece| piece.display());
    let (length, chunk) = (2 * PIECE / 512, (16 << 20) / 512);
    let daemon = serve_table(&dir, &format!("0 {length} striped 2 {chunk} {a} 0 {b} 0"));
    assert!(daemon.log().contains("in 32 mappings"), "{}", daemon.log());

    let script = Filesystem::Ext4.script(
        "mkfs /dev/pmem0
        mount_dax /dev/pmem0
        xfs_io -fc 'pwrite -q -S 0xa7 0 64m' -c fsync /mnt/file
        umount /mnt
        fsck /dev/pmem0",
    );
    guest(&lab, Filesystem::Ext4, &[&daemon]).script(&script).run().unwrap();
    let pages = pieces.each_ref().map(|piece| pages_of(0xa7, piece));
    assert_eq!(pages.iter().sum::<usize>(), 64 * 256);
    assert!(pages.iter().all(|&pages| pages > 16 * 256), "{pages:?}");
}
