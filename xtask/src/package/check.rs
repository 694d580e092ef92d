// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask package --check`: the package on two Debians of its own, booted with systemd.
//!
//! Each is a guest under TCG, with KVM by its emulated CPU. The first has nothing but what the package
//! depends on, and what `cargo xtask guest` does is done there. The second has QEMU and libvirt, and
//! shows what becomes of guests when the package is upgraded and the machine shuts down. Their unit
//! and domain are those of the pages.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use guest_harness::{Access, InstalledKvmHost, KvmHost, Lab, VmBuilder, target_dir};

use super::page;

/// What is done on the Debians.
const SCRIPTS: [&str; 2] = [include_str!("machine.sh"), include_str!("guests.sh")];

/// What each guest on the second runs.
const GUEST: &str = include_str!("guest.sh");

/// Where the sockets are, for one who sees nothing of the Debian but its `/proc`.
const SOCKETS: [&str; 3] =
    ["vhost-pmem/first.sock", "vhost-pmem/second.sock", "vhost-pmem-one.sock"];

/// What the second Debian has: what the pages suppose, and what would restart the service.
const HOST: [&str; 6] = [
    "apparmor",
    "libvirt-clients",
    "libvirt-daemon-system",
    "needrestart",
    "qemu-system-x86",
    "socat",
];

/// Much more than they take where nothing else runs.
const LIMIT: Duration = Duration::from_secs(1500);

/// Installs `package`, and shows what its services do.
pub(super) fn run(package: &Path) -> Result<()> {
    let lab = Lab::open()?;
    let xtask = std::env::current_exe()?;
    let host = KvmHost::new(&lab)?.program(&xtask).install()?;

    let began = Instant::now();
    let mut guest = Command::new(xtask);
    guest.arg("guest").args(SOCKETS.map(|socket| format!("/proc/1/root/run/{socket}")));
    let script = SCRIPTS[0].replace("@GUEST@", &host.script(&guest));
    let debian = lab.debian_disk("debian", &[])?;
    boot(&host, &debian, &script, |vm| vm.file(package, "brought/package.deb"))?;
    println!(
        "the package was installed, had a guest attached and was removed, in {:.0?}",
        began.elapsed()
    );

    let began = Instant::now();
    let own = tempfile::Builder::new().prefix("guests-").tempdir_in(target_dir())?;
    let command_line = lab.vm().script(GUEST).write_boot_files(own.path())?;
    fs::write(own.path().join("command-line"), command_line)?;
    for (name, content) in page::blocks()? {
        fs::write(own.path().join(name), content)?;
    }
    let debian = lab.debian_disk("debian-host", &HOST)?;
    boot(&host, &debian, SCRIPTS[1], |mut vm| {
        for name in ["kernel", "initramfs", "command-line"].into_iter().chain(page::NAMES) {
            vm = vm.file(own.path().join(name), &format!("brought/{name}"));
        }
        vm.file(package, "brought/package.deb").allow_reboot()
    })?;
    println!(
        "guests outlived an upgrade and shut down before their devices, in {:.0?}",
        began.elapsed()
    );
    Ok(())
}

/// Boots a copy of `debian`, with KVM, and runs `script` there.
fn boot<'lab>(
    host: &'lab InstalledKvmHost<'lab>,
    debian: &Path,
    script: &str,
    with: impl FnOnce(VmBuilder<'lab>) -> VmBuilder<'lab>,
) -> Result<()> {
    let own = tempfile::Builder::new().prefix("package-").tempdir_in(target_dir())?;
    let root = own.path().join("root");
    let mut copy = Command::new("cp");
    crate::process::run(copy.arg("--sparse=always").arg(debian).arg(&root))?;
    let echo = |line: &str| {
        if !line.starts_with('[') && !line.starts_with("MARK ") {
            println!("    {line}");
        }
    };
    let vm = host.vm(&own.path().join("disk"))?.disk(&root, Access::ReadWrite).module("fuse");
    with(vm.debian("/dev/vdb", script))
        .time_limit(LIMIT)
        .on_line(echo)
        .run()
        .context("the package doesn't do what it should")
        .map(drop)
}
