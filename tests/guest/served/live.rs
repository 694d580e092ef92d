// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is done to a region while its guest runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use guest_harness::{Daemon, Lab};

use super::{
    SECTORS, SIZE, can_serve, last_mark, operate, same, serve_overlay, wait_for_more, word,
};
use crate::filesystem::Filesystem;
use crate::tmpfs::Tmpfs;
use crate::{DAEMON, guest, on_ext4_and_xfs, serve_table, sparse_file};

on_ext4_and_xfs! {
    snapshot_taken_while_fio_runs_mounts_clean_and_merges
    mirror_goes_on_without_a_leg_and_is_made_whole_again
}

/// Files written and synced without an end, each with its sum, and said so.
pub(super) const SYNC_FILES: &str = "
    number=0
    while :; do
        number=$((number + 1))
        head -c 16k /dev/urandom > noise
        (md5sum < noise; cat noise) > /mnt/$number
        sync /mnt/$number /mnt
        echo MARK $number
    done";

/// Checks the files up to the last one that was said to be synced.
pub(super) fn check_files(mount: &str, last: u32) -> String {
    format!(
        "for number in $(seq 1 {last}); do
            (head -n 1 {mount}/$number; tail -n +2 {mount}/$number | md5sum) | uniq | wc -l |
                grep -qx 1
        done\n"
    )
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("--sparse=always").args([from, to]).status().unwrap();
    assert!(copied.success());
}

fn snapshot_taken_while_fio_runs_mounts_clean_and_merges(filesystem: Filesystem) {
    if !can_serve() {
        return;
    }
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let [file, frozen, control] = ["file", "frozen", "control"].map(path);
    let args = ["--size", "512M", "--window", "served", "--file"].map(Into::into);
    let args = args.into_iter().chain([file.clone(), "--control".into(), control]);
    let daemon = Daemon::start(DAEMON, args.map(PathBuf::into_os_string)).unwrap();
    let script = filesystem.script(&format!(
        "mkfs /dev/pmem0
        mount_dax /dev/pmem0
        for engine in mmap sync; do
            fio --name=$engine --ioengine=$engine --filename=/mnt/$engine --size=32m --bs=4k \\
                --rw=randwrite --fsync=64 --verify=crc32c --do_verify=0 --loops=1000 > /dev/null &
        done
        {SYNC_FILES}"
    ));
    let vm = guest(&lab, filesystem, &[&daemon]).program("fio").script(&script).boot().unwrap();
    vm.wait_for("MARK 4").unwrap();
    wait_for_more(&vm);

    // A backup, while the guest goes on; and what was written meanwhile is merged, while it goes on.
    let synced = last_mark(&vm.serial());
    operate(&dir, &["snapshot", path("one").to_str().unwrap()]);
    wait_for_more(&vm);
    copy(&file, &frozen);
    wait_for_more(&vm);
    assert!(same(&file, &frozen), "what is beneath a snapshot has changed");
    operate(&dir, &["merge"]);
    wait_for_more(&vm);
    // The power is cut after a second one.
    operate(&dir, &["snapshot", path("two").to_str().unwrap()]);
    wait_for_more(&vm);
    let serial = vm.kill().unwrap().serial;
    assert!(!serial.contains("MARK done"), "{serial}");
    let last = last_mark(&serial);
    daemon.terminate().unwrap();

    let backup = serve_overlay(&frozen, Path::new("memory"));
    let present = serve_overlay(&file, &path("two"));
    let verify = filesystem.script(&format!(
        "for device in 0 1; do
            mkdir -p /mnt/$device
            mount_copy /dev/pmem$device /mnt/$device
        done
        {}{}
        umount /mnt/0 /mnt/1
        fsck /dev/pmem0
        fsck /dev/pmem1",
        check_files("/mnt/0", synced),
        check_files("/mnt/1", last)
    ));
    guest(&lab, filesystem, &[&backup, &present]).script(&verify).run().unwrap();
}

fn mirror_goes_on_without_a_leg_and_is_made_whole_again(filesystem: Filesystem) {
    if !can_serve() {
        return;
    }
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    // Large enough for the filesystem, and too small for what is written to it.
    let Some(small) = Tmpfs::new(dir.path().join("small"), "64m") else {
        eprintln!("skipped: cannot mount a tmpfs; run as root");
        return;
    };
    let legs = [dir.path().join("leg"), small.path().join("leg")];
    let log = dir.path().join("log");
    legs.iter().for_each(|leg| sparse_file(leg, SIZE));
    sparse_file(&log, 8192);
    let [one, other, log] = [&legs[0], &legs[1], &log].map(|path| word(path));
    let table = format!("0 {SECTORS} mirror disk 3 {log} 1024 nosync 2 {one} 0 {other} 0\n");
    let daemon = serve_table(&dir, &table);
    let script = filesystem.script(&format!(
        "mkfs /dev/pmem0
        mount_dax /dev/pmem0
        xfs_io -fc 'pwrite -q -S 0xa7 0 100m' -c fsync /mnt/file
        {SYNC_FILES}"
    ));
    let vm = guest(&lab, filesystem, &[&daemon]).script(&script).boot().unwrap();
    vm.wait_for("MARK 4").unwrap();
    let degraded = operate(&dir, &["status"]);
    assert!(degraded.contains("leg healthy, ") && degraded.contains("leg failed, "), "{degraded}");
    assert!(daemon.log().contains("mirror: a leg failed and was dropped"), "{}", daemon.log());
    small.resize("600m");
    let whole = operate(&dir, &["resync"]);
    assert!(whole.matches("leg healthy, ").count() == 2 && whole.contains(" 0 of "), "{whole}");
    wait_for_more(&vm);
    let serial = vm.kill().unwrap().serial;
    assert!(!serial.contains("MARK done"), "{serial}");
    daemon.terminate().unwrap();
    assert!(same(&legs[0], &legs[1]));

    let daemon = serve_table(&dir, &table);
    let script = filesystem.script(&format!(
        "mount_dax /dev/pmem0
        head -c 100m /dev/zero | tr '\\0' '\\247' | cmp - /mnt/file
        {}umount /mnt
        fsck /dev/pmem0",
        check_files("/mnt", last_mark(&serial))
    ));
    guest(&lab, filesystem, &[&daemon]).script(&script).run().unwrap();
}
