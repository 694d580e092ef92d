// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask package --check`: the package on a Debian 13 that has nothing else, booted with
//! systemd, and a guest that attaches.
//!
//! Two machines, one in the other: a guest under TCG is the Debian, with KVM by its emulated CPU; and
//! what `cargo xtask guest` does, done there, boots the guest that attaches and writes.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use guest_harness::{Access, KvmHost, Lab, target_dir};

/// What is done on the Debian.
const SCRIPT: &str = include_str!("machine.sh");

/// Where the sockets are, for one who sees nothing of the Debian but its `/proc`.
const SOCKETS: [&str; 3] =
    ["vhost-pmem/first.sock", "vhost-pmem/second.sock", "vhost-pmem-one.sock"];

const LIMIT: Duration = Duration::from_secs(600);

/// Installs `package`, and shows what its services do.
pub(super) fn run(package: &Path) -> Result<()> {
    let began = Instant::now();
    let lab = Lab::open()?;
    let debian = lab.debian_disk("debian", &[])?;
    let xtask = std::env::current_exe()?;
    let host = KvmHost::new(&lab)?.program(&xtask).install()?;
    let own = tempfile::Builder::new().prefix("package-").tempdir_in(target_dir())?;
    let root = own.path().join("root");
    let mut copy = Command::new("cp");
    crate::process::run(copy.arg("--sparse=always").arg(debian).arg(&root))?;

    let mut guest = Command::new(xtask);
    guest.arg("guest").args(SOCKETS.map(|socket| format!("/proc/1/root/run/{socket}")));
    let script = SCRIPT.replace("@GUEST@", &host.script(&guest));
    let echo = |line: &str| {
        if !line.starts_with('[') && !line.starts_with("MARK ") {
            println!("    {line}");
        }
    };
    host.vm(&own.path().join("disk"))?
        .disk(&root, Access::ReadWrite)
        .module("fuse")
        .file(package, "brought/package.deb")
        .debian("/dev/vdb", &script)
        .time_limit(LIMIT)
        .on_line(echo)
        .run()
        .context("the package doesn't do what it should")?;
    println!(
        "the package was installed, had a guest attached and was removed, in {:.0?}",
        began.elapsed()
    );
    Ok(())
}
