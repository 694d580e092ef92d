// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! docs/no-dax.md: what it has a guest type, and the messages by which it tells what is wrong.

use std::ffi::OsString;
use std::path::Path;

use guest_harness::{Daemon, Lab};

use crate::{DAEMON, serve};

const PAGE: &str = include_str!("../../docs/no-dax.md");

/// What a guest says last; without it the page's messages may be missing for another reason.
const END: &str = "MARK the end";

fn serve_sized(file: &Path, size: &str) -> Daemon {
    let args: [OsString; 4] = ["--file".into(), file.into(), "--size".into(), size.into()];
    Daemon::start(DAEMON, args).unwrap()
}

/// That the page and the guest have these messages.
fn has(serial: &str, messages: &[&str]) {
    for message in messages {
        assert!(PAGE.contains(&format!("`{message}`")), "not in the page: {message}");
        assert!(serial.contains(message), "no {message:?} in:\n{serial}");
    }
}

#[test]
fn dax_is_found_as_the_page_says() {
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir.path().join("file"));
    let mut script = "set -eu
        mkfs.ext4 -q -b 4096 /dev/pmem0
        mount -o dax=always /dev/pmem0 /mnt
        echo content > /mnt/file
        expect() { [ \"$1\" = \"$2\" ] || { echo \"$1, not $2\"; exit 1; }; }
        "
    .to_owned();
    let console = PAGE.split("```console\n").nth(1).unwrap().split("```").next().unwrap();
    let lines: Vec<_> = console.lines().collect();
    for pair in lines.chunks(2) {
        let command = pair[0].strip_prefix("# ").unwrap();
        script += &format!("expect \"$({command})\" '{}'\n", pair[1]);
    }
    script += &format!("echo {END}\n");
    let serial = lab.vm().vhost_user_pmem(daemon.socket()).script(&script).run().unwrap().serial;
    assert!(lines.len() == 8 && serial.contains(END), "{serial}");
}

#[test]
fn mounts_and_calls_fail_with_the_messages_of_the_page() {
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir.path().join("file"));
    let script = format!(
        "fails() {{ if \"$@\" 2>&1; then echo it succeeds: \"$@\"; exit 1; fi; }}
        mkfs.ext4 -q -b 1024 /dev/pmem0 16M
        fails mount -o dax=always /dev/pmem0 /mnt
        mkfs.ext4 -qF -b 4096 /dev/pmem0
        mount /dev/pmem0 /mnt
        fails grep ' /mnt .*dax=' /proc/mounts
        echo content > /mnt/plain
        mkdir /mnt/dir
        chattr +x /mnt/dir
        echo content > /mnt/dir/asking
        for file in plain dir/asking; do xfs_io -rc 'statx -r' /mnt/$file | grep 'attributes ='; done
        fails fstrim /mnt
        umount /mnt
        mount -o dax=always /dev/pmem0 /mnt
        xfs_io -fc 'pwrite -q 0 4096' -c 'mmap -S 0 4096' /mnt/mapped 2>&1
        umount /mnt
        dd if=/dev/zero of=/dev/pmem0 bs=1M count=1 2>/dev/null
        printf 'n\\np\\n1\\n63\\n+200000\\nw\\n' | fdisk -u /dev/pmem0 >/dev/null
        mkfs.ext4 -qF -b 4096 /dev/pmem0p1
        fails mount -o dax=always /dev/pmem0p1 /mnt
        dd if=/dev/zero of=/dev/pmem0 bs=1M count=1 2>/dev/null
        printf 'n\\np\\n1\\n4096\\n\\nw\\n' | fdisk -u /dev/pmem0 >/dev/null
        mkfs.ext4 -qF -b 4096 /dev/pmem0p1
        mount -o dax=always /dev/pmem0p1 /mnt || exit 1
        dmesg
        echo {END}"
    );
    let serial = lab.vm().vhost_user_pmem(daemon.socket()).script(&script).run().unwrap().serial;
    let messages = [
        "EXT4-fs (pmem0): unsupported blocksize for DAX",
        "pmem0p1: error: unaligned partition for dax",
        "Operation not supported",
    ];
    has(&serial, &messages);
    assert!(serial.contains(END), "{serial}");
    assert!(serial.contains("FITRIM: Operation not supported"), "{serial}");
    assert!(serial.contains("mmap: Operation not supported"), "{serial}");
    let attributes: Vec<_> = serial.lines().filter(|line| line.contains("attributes =")).collect();
    assert_eq!(attributes, ["stat.attributes = 0x0", "stat.attributes = 0x200000"]);
}

#[test]
fn device_that_is_too_small_or_too_large_has_the_messages_of_the_page() {
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let failed = |errno| format!("probe with driver nd_pmem failed with error {errno}");
    // The guest has 512 MiB; its page structs alone would take 1 GiB.
    for (size, message, errno) in
        [("1M", "misaligned, unable to map", -95), ("64G", "vmemmap alloc failure", -12)]
    {
        let daemon = serve_sized(&dir.path().join(size), size);
        let vm = lab.vm().vhost_user_pmem(daemon.socket()).script("exit 0");
        // It may have no memory left to go on with.
        let serial = vm.boot().unwrap().wait().unwrap().serial;
        has(&serial, &[message, &failed(errno)]);
    }
}

#[test]
fn viommu_of_others_leaves_dax_and_one_of_its_own_is_refused() {
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir.path().join("file"));
    let vm = |args: &[&str]| {
        let vm = lab.vm().qemu_args(args).vhost_user_pmem(daemon.socket());
        vm.kernel_argument("intel_iommu=on").script(&format!(
            "set -eu
            mkfs.ext4 -q -b 4096 /dev/pmem0
            mount -o dax=always /dev/pmem0 /mnt
            xfs_io -fc 'pwrite -q 0 1m' -c fsync /mnt/file
            dmesg
            echo {END}"
        ))
    };
    let serial = vm(&["-device", "intel-iommu"]).run().unwrap().serial;
    assert!(serial.contains("DMAR: IOMMU enabled") && serial.contains(END), "{serial}");
    let refused = vm(&["-device", "intel-iommu", "-global", "virtio-pci.iommu_platform=on"]);
    let refused = refused.boot().unwrap().wait().unwrap();
    let message = "iommu_platform=true is not supported by the device";
    assert!(PAGE.contains(message));
    assert!(refused.qemu_stderr.contains(message), "{}", refused.qemu_stderr);
}
