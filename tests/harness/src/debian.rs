// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A Debian that is installed, as on a machine of its own, and boots with systemd.
//!
//! [`Lab::root_disk`] has files of packages; here dpkg knows them, their maintainer scripts have run,
//! and users are there. mmdebstrap makes it, of Debian's package and not the machine's, as root or in
//! a user namespace.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::apt::{self, KEYRING};
use crate::builder::VmBuilder;
use crate::disk;
use crate::kernel::Kernel;
use crate::lab::{self, Lab};
use crate::progress::Step;
use crate::run;
use crate::store::Store;
use crate::tree::Tree;

/// What Debian's smallest has not, and a machine has: udev gives `/dev/fuse` its mode, and systemd
/// limits what units do by BPF, too.
const PACKAGES: [&str; 3] = ["systemd-sysv", "udev", "libbpf1"];

/// Nearly all of the disk is a hole.
const DISK_BYTES: u64 = 2 << 30;

/// The first process: does what the initramfs's own `/init` does, and gives its place to systemd.
const SWITCH: &str = include_str!("debian.sh");

impl Lab {
    /// A disk for [`VmBuilder::debian`]: a minimal Debian 13, with systemd and the packages `more`,
    /// installed. QEMU is the one of backports. The disk is kept as `name`, and not to be written to.
    ///
    /// # Errors
    ///
    /// As [`Lab::open`]; or when mmdebstrap fails, which takes perl, and root or user namespaces.
    pub fn debian_disk(&self, name: &str, more: &[&str]) -> Result<PathBuf> {
        let store = Store::lock()?;
        let packages = [&PACKAGES, more].concat().join(",");
        let part = store.part(name, &packages, |part| {
            let scratch = store.scratch().join("mmdebstrap");
            let apt = lab::apt(&store, Kernel::Trixie.suites())?;
            let tree = Tree::unpack(&scratch, &apt.fetch(&["mmdebstrap"])?)?;
            let tar = store.scratch().join("debian.tar");
            let _step = Step::spinner("installing Debian 13");
            let mut mmdebstrap = Command::new("perl");
            mmdebstrap.arg(tree.path("usr/bin/mmdebstrap"));
            mmdebstrap.args(["--quiet", "--variant=minbase", "--format=tar", "--skip=output/dev"]);
            mmdebstrap.arg(r#"--setup-hook=cp "$PREFERENCES" "$1/etc/apt/preferences.d/lab""#);
            mmdebstrap.env("PREFERENCES", apt.preferences());
            mmdebstrap.args(["--include", &packages, "trixie"]).arg(&tar);
            let mirror = apt::mirror()?;
            for suite in ["trixie", "trixie-backports"] {
                mmdebstrap.arg(format!("deb [signed-by={KEYRING}] {mirror} {suite} main"));
            }
            run::output(&mut mmdebstrap)?;
            disk::of_tar(&tar, DISK_BYTES, &part.join("root.img"), self.userland())
        })?;
        Ok(part.join("root.img"))
    }
}

impl VmBuilder<'_> {
    /// Boots what is on the disk `device`, such as `/dev/vda`, with systemd; it is a copy of
    /// [`Lab::debian_disk`]. `script` runs there when the system is up, by dash, as root, and then the
    /// guest powers off; with [`VmBuilder::allow_reboot`] it runs again after a reboot. What [`VmBuilder::file`] brought as `brought/NAME` is there at `/brought/NAME`.
    #[must_use]
    pub fn debian(self, device: &str, script: &str) -> Self {
        // Nothing but the script is to write to the serial line.
        self.kernel_argument("systemd.getty_auto=0 systemd.show_status=0")
            .first_process(&SWITCH.replace("@DEVICE@", device).replace("@SCRIPT@", script))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switch_has_a_place_for_disk_and_script() {
        assert_eq!(["@DEVICE@", "@SCRIPT@"].map(|place| SWITCH.matches(place).count()), [1, 1]);
    }
}
