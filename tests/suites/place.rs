// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where a suite runs: on which filesystem, and on which device.

use std::fmt;
use std::fs::File;

use anyhow::Result;
use guest_harness::{Daemon, Lab, Outcome, VmBuilder};
use tempfile::TempDir;

const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-pmemd");

const SIZE: u64 = 512 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filesystem {
    Ext4,
    Xfs,
}

impl Filesystem {
    /// As `mount -t` and the lists spell it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    /// A script that runs `body` with the filesystem mounted on `/mnt`, with DAX, and the device full
    /// of it. In the end the filesystem's own tool looks at it, as the case `fsck`.
    pub(crate) fn with_dax(self, body: &str) -> String {
        let (mkfs, fsck) = match self {
            // DAX wants blocks as large as pages; a small device would get smaller ones.
            Self::Ext4 => ("mkfs.ext4 -qF -b 4096", "e2fsck -fn"),
            Self::Xfs => ("mkfs.xfs -qf", "xfs_repair -n"),
        };
        format!(
            "{mkfs} /dev/pmem0
            mount -o dax=always /dev/pmem0 /mnt
            grep ' /mnt .*dax=always' /proc/mounts
            {body}
            umount /mnt
            if {fsck} /dev/pmem0 >fsck 2>&1; then
                echo ok fsck
            else
                cat fsck
                echo 'FAIL fsck: the filesystem is damaged'
            fi"
        )
    }
}

/// The device that is under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    /// Ours, in a direct window.
    Direct,
    /// Ours, in a served window.
    Served,
    /// QEMU's own `virtio-pmem-pci`: what fails there is not our doing.
    Baseline,
}

impl Window {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Served => "served",
            Self::Baseline => "baseline",
        }
    }
}

/// A filesystem in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) filesystem: Filesystem,
    pub(crate) window: Window,
}

impl Place {
    /// Boots what `vm` makes of a guest that has the device as `/dev/pmem0`, and waits for its end;
    /// `None` where this machine lets nobody have such a window.
    pub(crate) fn run(
        self,
        lab: &Lab,
        vm: impl FnOnce(VmBuilder<'_>) -> Result<VmBuilder<'_>>,
    ) -> Result<Option<Outcome>> {
        let dir = tempfile::tempdir()?;
        let mut guest = lab.vm();
        if self.filesystem == Filesystem::Xfs {
            guest = guest.module("xfs");
        }
        let file = dir.path().join("pmem");
        if self.window == Window::Baseline {
            File::create(&file)?.set_len(SIZE)?;
            return vm(guest.own_virtio_pmem(&file, SIZE))?.boot()?.wait().map(Some);
        }
        let Some(daemon) = self.daemon(&dir)? else { return Ok(None) };
        let outcome = vm(guest.vhost_user_pmem(daemon.socket()))?.boot()?.wait()?;
        Ok(Some(outcome))
    }

    fn daemon(self, dir: &TempDir) -> Result<Option<Daemon>> {
        let (file, size) = (dir.path().join("pmem"), SIZE.to_string());
        let args = ["--window", self.window.name(), "--size", &size, "--file"];
        let args = args.iter().map(AsRef::as_ref).chain([file.as_os_str()]);
        Daemon::start_served(DAEMON, args)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.filesystem.name(), self.window.name())
    }
}
