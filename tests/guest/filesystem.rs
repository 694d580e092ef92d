// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The filesystems that guests mount with DAX.

use std::path::Path;

use guest_harness::Lab;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filesystem {
    Ext4,
    Xfs,
}

impl Filesystem {
    /// A script for a guest, with `mkfs`, `mount_dax`, `fsck` and, for one of two copies,
    /// `mount_copy` as commands that take a device, and end it where they fail.
    pub(crate) fn script(self, body: &str) -> String {
        // XFS wants to be told that there are two of one name.
        let beside = if self == Self::Xfs { ",nouuid" } else { "" };
        let norecovery = if self == Self::Xfs { "norecovery" } else { "noload" };
        let mkfs = self.mkfs().join(" ");
        let fsck = if self == Self::Xfs { "xfs_repair -n" } else { "e2fsck -fn" };
        format!(
            "set -eu
            mkfs() {{ {mkfs} $1; }}
            fsck() {{ {fsck} $1; }}
            mount_dax() {{ mount -o dax=always $1 ${{2:-/mnt}}; }}
            norecovery={norecovery}
            mount_copy() {{ mount -o dax=always{beside} $1 $2; }}
            {body}"
        )
    }

    /// Makes one in a file, on the host.
    pub(crate) fn make(self, lab: &Lab, file: &Path) {
        let (program, arguments) = self.mkfs().split_first().unwrap();
        let made = lab.host_tool(program).unwrap().args(arguments).arg(file).output().unwrap();
        assert!(made.status.success(), "{made:?}");
    }

    fn mkfs(self) -> &'static [&'static str] {
        match self {
            // DAX wants blocks as large as pages; a small device would get smaller ones.
            Self::Ext4 => &["mkfs.ext4", "-qF", "-b", "4096"],
            Self::Xfs => &["mkfs.xfs", "-qf"],
        }
    }
}
