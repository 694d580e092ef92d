// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! docs/root.md, with a small tree as the root: its commands make the images, its words are the daemon's
//! and the kernel's, and its QEMU arguments attach a base that guests share.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use guest_harness::{Daemon, Lab, Outcome, VmBuilder, host_program, target_dir};
use tempfile::TempDir;

use crate::DAEMON;
use crate::served::{can_serve, same};

const PAGE: &str = include_str!("../../docs/root.md");

/// Does what an initramfs does, by the kernel's command line.
const INITRAMFS: &str = "#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/applets
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
for module in $(cat /modules/*.list); do
    [ -d /sys/module/$module ] || insmod /modules/$module.ko
done
for word in $(cat /proc/cmdline); do
    case $word in
    root=*) root=${word#*=} ;;
    rootfstype=*) type=${word#*=} ;;
    rootflags=*) flags=${word#*=} ;;
    ro|rw) access=$word ;;
    esac
done
mount -t $type -o $access,$flags $root /mnt
umount /proc /sys /dev
exec /applets/switch_root /mnt /sbin/init";

/// The first process in the root. What it counts is there in the next boot, if it can be written.
const INIT: &str = "#!/bin/busybox sh
export PATH=/bin
busybox mount -t proc proc /proc
busybox mount -t devtmpfs devtmpfs /dev 2>/dev/null
busybox grep ' / ' /proc/mounts
if echo boot >>/boots; then
    echo MARK boots $(busybox wc -l </boots)
    busybox sync
fi
echo MARK done rc=0
busybox mount -o remount,ro /
busybox poweroff -f
";

/// One that needs no libraries.
fn busybox() -> PathBuf {
    target_dir().join("guest/userland/usr/bin/busybox")
}

/// A tree to be a root, `rootfs` in `dir`.
fn make_tree(dir: &Path) {
    let root = dir.join("rootfs");
    for name in ["bin", "sbin", "dev", "proc"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy(busybox(), root.join("bin/busybox")).unwrap();
    symlink("busybox", root.join("bin/sh")).unwrap();
    let init = root.join("sbin/init");
    fs::write(&init, INIT).unwrap();
    fs::set_permissions(init, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs the page's command that makes `image`, and what comes before it in its console, in `dir`.
fn make_image(lab: &Lab, dir: &Path, image: &str) {
    let mut consoles =
        PAGE.split("```console\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let makes = |line: &str| line.starts_with("$ mkfs.") && line.contains(image);
    let console = consoles.find(|console| console.lines().any(makes)).unwrap();
    for line in console.lines() {
        let mut words = line.strip_prefix("$ ").unwrap().split(' ');
        let name = words.next().unwrap();
        let mut command = match name {
            "mkfs.ext4" => lab.host_tool(name).unwrap(),
            "mkfs.erofs" => host_program("erofs-utils", name).unwrap(),
            // The machine of the KVM lane has few programs of its own.
            applet => {
                let mut command = Command::new(busybox());
                command.arg(applet);
                command
            }
        };
        let output = command.args(words).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
    }
}

/// The page's ways to boot: the daemon's words, and the kernel's.
fn ways() -> Vec<[&'static str; 2]> {
    let rows = PAGE.lines().filter(|line| line.starts_with('|') && line.contains("`root="));
    let cells = rows.map(|row| row.split('`').skip(1).step_by(2).collect::<Vec<_>>());
    cells.map(|cells| cells.try_into().unwrap()).collect()
}

/// The daemon, with the page's words, in `dir`.
fn serve_as(dir: &Path, words: &str) -> Daemon {
    let at = |word: &str| match word.starts_with("--") {
        true => word.into(),
        false => dir.join(word),
    };
    Daemon::start(DAEMON, words.split(' ').map(at)).unwrap()
}

/// Boots a guest whose root is on the device.
fn boot(lab: &Lab, daemon: &Daemon, kernel: &str) -> Outcome {
    let vm = lab.vm().vhost_user_pmem(daemon.socket()).script(INITRAMFS).module("erofs");
    vm.kernel_argument("rdinit=/script").kernel_argument(kernel).run().unwrap()
}

/// A tree and its image, booted in the page's way whose daemon gets `words`.
fn root_boots(image: &str, words: &str) -> Vec<Outcome> {
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    make_tree(dir.path());
    make_image(&lab, dir.path(), image);
    let (file, copy) = (dir.path().join(image), dir.path().join("copy"));
    fs::copy(&file, &copy).unwrap();
    let ways = ways();
    let [_, kernel] = ways.iter().find(|[daemon, _]| *daemon == words).unwrap();
    let daemon = serve_as(dir.path(), words);
    let outcomes: Vec<_> = (0..2).map(|_| boot(&lab, &daemon, kernel)).collect();
    for Outcome { serial, .. } in &outcomes {
        let mount = serial.lines().find(|line| line.contains(" / ")).unwrap();
        assert!(mount.contains("dax=always"), "{mount}");
    }
    let (status, log) = daemon.terminate().unwrap();
    assert!(status.success(), "{log}");
    // The base of an overlay isn't touched.
    assert_eq!(same(&file, &copy), words.contains(" --"), "{words}");
    outcomes
}

fn counts(outcomes: &[Outcome]) {
    for (count, Outcome { serial, .. }) in (1..).zip(outcomes) {
        assert!(serial.contains(&format!("MARK boots {count}")), "{serial}");
    }
}

#[test]
fn all_ways_of_the_page_are_tried() {
    assert_eq!(ways().len(), 3);
}

#[test]
fn ext4_root_is_booted_from_and_kept() {
    counts(&root_boots("root.img", "--file root.img"));
}

#[test]
fn ext4_root_with_an_overlay_is_booted_from_and_kept() {
    if can_serve() {
        counts(&root_boots("root.img", "--file root.img --overlay vm1.cow"));
    }
}

#[test]
fn erofs_root_is_booted_from_and_not_written() {
    if !can_serve() {
        return;
    }
    for Outcome { serial, .. } in root_boots("root.erofs", "--file root.erofs --read-only") {
        assert!(serial.contains("Read-only file system"), "{serial}");
    }
}

/// QEMU's arguments for a shared base, as the page has them, with a base and a socket of ours.
fn shared_base<'lab>(lab: &'lab Lab, dir: &TempDir, daemon: &Daemon) -> VmBuilder<'lab> {
    let block = PAGE.split("```\n").find(|block| block.contains("rom=on")).unwrap();
    let base = dir.path().join("base.img");
    let here = block
        .replace("-m 2G,", "-m ")
        .replace("/srv/base.img", base.to_str().unwrap())
        .replace("/run/vm1.sock", daemon.socket().to_str().unwrap());
    lab.vm().qemu_args(here.split_whitespace())
}

#[test]
fn guests_share_a_base_that_they_cannot_change() {
    let lab = Lab::open().unwrap();
    let dir = tempfile::tempdir().unwrap();
    make_tree(dir.path());
    make_image(&lab, dir.path(), "root.erofs");
    let [base, copy] = ["base.img", "copy"].map(|name| dir.path().join(name));
    fs::rename(dir.path().join("root.erofs"), &base).unwrap();
    fs::File::options().write(true).open(&base).unwrap().set_len(256 << 20).unwrap();
    fs::copy(&base, &copy).unwrap();
    let daemon = crate::serve(&dir.path().join("own.img"));

    let console = PAGE.split("```console\n").find(|console| console.contains("lowerdir=")).unwrap();
    let console = console.split("```").next().unwrap();
    let commands: String =
        console.lines().map(|line| line.strip_prefix("# ").unwrap().to_owned() + "\n").collect();
    let script = format!(
        "set -eu
        mkdir -p /base /own
        blkid /dev/pmem1 || mkfs.ext4 -q -b 4096 /dev/pmem1
        {commands}
        grep ' /base .*dax=always' /proc/mounts
        cmp /mnt/bin/busybox /usr/bin/busybox
        echo line >> /mnt/lines
        echo MARK lines $(wc -l < /mnt/lines)
        umount /mnt /own /base
        # To the base itself. Not much: under KVM each store has QEMU look at it.
        sum() {{ dd if=/dev/pmem0 bs=4k count=4 iflag=direct status=none | sha256sum; }}
        before=$(sum)
        dd if=/dev/urandom of=/dev/pmem0 bs=4k count=4 oflag=direct conv=fsync 2>&1
        [ \"$(sum)\" = \"$before\" ]
        echo MARK it lives"
    );
    for count in 1..=2 {
        let vm = shared_base(&lab, &dir, &daemon);
        let vm = vm.module("erofs").module("overlay").script(&script);
        let serial = vm.run().unwrap().serial;
        assert!(serial.contains(&format!("MARK lines {count}")), "{serial}");
        assert!(serial.contains("MARK it lives"), "{serial}");
        assert!(same(&base, &copy), "the base was changed");
    }
}
