// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A block device to test on. The tests of `pfn-blk` use it too.

use std::path::Path;
use std::process::Command;

/// A loop device over a file; only root can make one.
pub(crate) struct LoopDevice(String);

impl LoopDevice {
    pub(crate) fn over(file: &Path) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        let name = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        made.status.success().then_some(Self(name))
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").args(["--detach", &self.0]).status();
        assert!(detached.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}
