// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the tests run on: two persistent memory devices, of ours or of QEMU's own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use guest_harness::{Daemon, VmBuilder};

/// What xfstests calls the devices, `TEST_DEV` and `SCRATCH_DEV`.
const NAMES: [&str; 2] = ["test", "scratch"];

/// Where a guest's devices come from.
pub(crate) enum Device {
    /// `vhost-pmemd`, by this executable.
    Ours(PathBuf),
    /// QEMU's `virtio-pmem-pci`.
    Baseline,
}

impl Device {
    /// Its name in what is printed and as a directory.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Ours(_) => "vhost-pmemd",
            Self::Baseline => "virtio-pmem-pci",
        }
    }

    /// Attaches two of `mib`, on new files in `dir`.
    pub(crate) fn attach<'lab>(
        &self,
        mut vm: VmBuilder<'lab>,
        dir: &Path,
        mib: u64,
    ) -> Result<(VmBuilder<'lab>, Devices)> {
        let mut devices = Devices { files: Vec::new(), daemons: Vec::new() };
        for name in NAMES {
            let path = dir.join(format!("{name}.img"));
            let file = File::create(&path).with_context(|| path.display().to_string())?;
            file.set_len(mib << 20)?;
            vm = match self {
                Self::Ours(program) => {
                    let daemon = Daemon::start(program, [OsStr::new("--file"), path.as_os_str()])?;
                    let vm = vm.vhost_user_pmem(daemon.socket());
                    devices.daemons.push(daemon);
                    vm
                }
                Self::Baseline => vm.own_virtio_pmem(&path, mib << 20),
            };
            devices.files.push(path);
        }
        Ok((vm, devices))
    }
}

/// The devices of a guest.
pub(crate) struct Devices {
    files: Vec<PathBuf>,
    daemons: Vec<Daemon>,
}

impl Devices {
    /// Removes the files, leaves the daemons' logs in `dir`, and tells of a daemon that ended before
    /// its guest.
    pub(crate) fn finish(self, dir: &Path) -> Result<Option<String>> {
        let mut trouble = None;
        for (name, mut daemon) in NAMES.iter().zip(self.daemons) {
            fs::write(dir.join(format!("vhost-pmemd-{name}.log")), daemon.log())?;
            trouble = match daemon.ended()? {
                Some(status) => Some(format!("vhost-pmemd ended ({status})")),
                // One that hangs is to stop nobody, so this isn't left to its own good will.
                None => daemon.kill(Duration::from_secs(10)).err().map(|error| error.to_string()),
            }
            .or(trouble);
        }
        for file in self.files {
            fs::remove_file(file)?;
        }
        Ok(trouble)
    }
}
