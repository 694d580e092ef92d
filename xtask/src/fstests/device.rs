// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the tests run on: two persistent memory devices, of ours or of QEMU's own.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guest_harness::{Daemon, VmBuilder};

use super::options::Window;

/// What xfstests calls the devices, `TEST_DEV` and `SCRATCH_DEV`.
const NAMES: [&str; 2] = ["test", "scratch"];

/// The directory of a device's files, in a table.
const DIRECTORY: &str = "{dir}";

/// Where a guest's devices come from.
pub(crate) enum Device {
    /// `vhost-pmemd`.
    Ours(Ours),
    /// QEMU's `virtio-pmem-pci`.
    Baseline,
}

/// How to serve a device.
pub(crate) struct Ours {
    /// The executable.
    pub(crate) program: PathBuf,
    pub(crate) window: Window,
    /// What it is made of, if not of one file.
    pub(crate) table: Option<Table>,
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
        let mut devices = Devices { dirs: Vec::new(), daemons: Vec::new() };
        for name in NAMES {
            let dir = dir.join(name);
            fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
            devices.dirs.push(dir.clone());
            vm = match self {
                Self::Ours(ours) => {
                    let daemon = ours.serve(&dir, mib)?;
                    let vm = vm.vhost_user_pmem(daemon.socket());
                    devices.daemons.push(daemon);
                    vm
                }
                Self::Baseline => vm.own_virtio_pmem(sparse_file(&dir, "pmem", mib)?, mib << 20),
            };
        }
        Ok((vm, devices))
    }
}

impl Ours {
    fn serve(&self, dir: &Path, mib: u64) -> Result<Daemon> {
        let (option, path) = match &self.table {
            Some(table) => ("--table", table.write(dir, mib)?),
            None => ("--file", sparse_file(dir, "pmem", mib)?),
        };
        let window = self.window.argument();
        let arguments: [OsString; 4] =
            [option.into(), path.into(), "--window".into(), window.into()];
        Daemon::start(&self.program, arguments)
    }
}

fn sparse_file(dir: &Path, name: &str, mib: u64) -> Result<PathBuf> {
    let path = dir.join(name);
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    file.set_len(mib << 20)?;
    Ok(path)
}

/// A table for each device, on files of its own.
pub(crate) struct Table(String);

impl Table {
    /// Reads it from `path`.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let table = Self(text);
        ensure!(
            !table.files().is_empty(),
            "{} names no file {DIRECTORY}/NAME, and two devices can't share files",
            path.display()
        );
        Ok(table)
    }

    /// The names of the files in the device's directory.
    fn files(&self) -> Vec<&str> {
        let mut files: Vec<_> = self
            .0
            .split_whitespace()
            .filter_map(|word| word.strip_prefix(DIRECTORY)?.strip_prefix('/'))
            .collect();
        files.sort_unstable();
        files.dedup();
        files
    }

    /// Writes it for the device whose directory is `dir`, and makes its files.
    fn write(&self, dir: &Path, mib: u64) -> Result<PathBuf> {
        for name in self.files() {
            sparse_file(dir, name, mib)?;
        }
        let path = dir.join("table");
        fs::write(&path, self.text(dir)).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    fn text(&self, dir: &Path) -> String {
        let dir = dir.to_string_lossy().replace('\\', "\\\\").replace(' ', "\\ ");
        self.0.replace(DIRECTORY, &dir)
    }
}

/// The devices of a guest; dropping them ends the daemons and removes the files.
pub(crate) struct Devices {
    dirs: Vec<PathBuf>,
    daemons: Vec<Daemon>,
}

impl Devices {
    /// Leaves the daemons' logs in `dir`, and tells of a daemon that ended before its guest.
    pub(crate) fn finish(mut self, dir: &Path) -> Result<Option<String>> {
        let mut trouble = None;
        for (name, mut daemon) in NAMES.iter().zip(self.daemons.drain(..)) {
            fs::write(dir.join(format!("vhost-pmemd-{name}.log")), daemon.log())?;
            trouble = match daemon.ended()? {
                Some(status) => Some(format!("vhost-pmemd ended ({status})")),
                // One that hangs must stop no one, so this isn't left to its own good will.
                None => daemon.kill(Duration::from_secs(10)).err().map(|error| error.to_string()),
            }
            .or(trouble);
        }
        Ok(trouble)
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        self.daemons.clear();
        for dir in &self.dirs {
            // What is left is sparse, and found by name.
            let _ = fs::remove_dir_all(dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_files_of_each_device() {
        let table =
            Table("0 8 mirror core 1 8 2 {dir}/b 0 {dir}/a 0\n8 8 linear {dir}/a 8\n".into());
        assert_eq!(table.files(), ["a", "b"]);
        let expected = "0 8 mirror core 1 8 2 /x\\ y/b 0 /x\\ y/a 0\n8 8 linear /x\\ y/a 8\n";
        assert_eq!(table.text(Path::new("/x y")), expected);
    }
}
