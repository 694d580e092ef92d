// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A machine with KVM, for machines without: a guest whose CPU, emulated by TCG, has AMD's SVM.
//!
//! Its disk holds the cache and programs of this machine, all at the paths they have here. So a
//! test that was built here runs there, and its guests are that guest's, under real KVM.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::accelerator;
use crate::builder::{Access, VmBuilder};
use crate::kernel::Kernel;
use crate::lab::Lab;
use crate::outcome::Outcome;
use crate::progress::Step;
use crate::run;
use crate::store::{Store, target_dir};

/// What the harness and the tests run of the machine they are on.
const PROGRAMS: [&str; 5] = ["cp", "losetup", "mount", "setpriv", "umount"];

/// Where these are.
const PLACES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

const CPU: [&str; 4] = ["-accel", "tcg", "-cpu", "EPYC,svm=on,npt=on"];

/// One, though the daemon and the VMM could run at once. With two, an interrupt from one to the other
/// is now and then taken just behind `vmrun`, where SVM keeps interrupts back (GIF is 0) until the
/// host has its own GS again: the kernel faults without an end, or its stacks are overwritten.
const CPUS: u32 = 1;

/// Each of its guests has 512 MiB of this.
const MEMORY_MIB: u32 = 4096;

/// Nearly all of the disk is a hole.
const DISK_BYTES: u64 = 16 << 30;

/// What it is called.
const DISK: &str = "disk";

/// A machine with KVM to be.
pub struct KvmHost<'lab> {
    lab: &'lab Lab,
    parts: BTreeSet<PathBuf>,
    programs: Vec<PathBuf>,
}

impl<'lab> KvmHost<'lab> {
    /// One whose guests have the default kernel and no further programs.
    ///
    /// # Errors
    ///
    /// As [`Lab::open`].
    pub fn new(lab: &'lab Lab) -> Result<Self> {
        let mut host = Self { lab, parts: BTreeSet::new(), programs: Vec::new() };
        host.parts.insert(lab.userland().path(""));
        // Not the host's own, whose data may be anywhere.
        host.parts.insert(lab.unpacked_qemu()?.path(""));
        host.kernel(Kernel::default())
    }

    /// Lets its guests have `kernel`.
    ///
    /// # Errors
    ///
    /// As [`Lab::open`].
    pub fn kernel(mut self, kernel: Kernel) -> Result<Self> {
        let (kernel, initramfs) = self.lab.kernel(kernel)?;
        self.parts.insert(kernel.tree.path(""));
        self.parts.extend(initramfs.parent().map(Path::to_owned));
        Ok(self)
    }

    /// Lets its guests have the program of the Debian package `name`.
    ///
    /// # Errors
    ///
    /// As [`Lab::open`].
    pub fn package(mut self, name: &str) -> Result<Self> {
        self.parts.insert(self.lab.package(name)?.path(""));
        Ok(self)
    }

    /// Brings along the executable at the absolute path `program`, with its libraries.
    #[must_use]
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.programs.push(program.into());
        self
    }

    /// Makes its disk.
    ///
    /// # Errors
    ///
    /// When a file can't be read, or there is no room.
    pub fn install(self) -> Result<InstalledKvmHost<'lab>> {
        // Not in the system's place for such, which may be in memory.
        let target = target_dir().canonicalize()?;
        let dir = tempfile::Builder::new().prefix("kvm-host-").tempdir_in(&target)?;
        self.make_disk(&dir.path().join("tree"), &dir.path().join(DISK))?;
        Ok(InstalledKvmHost { lab: self.lab, target, dir })
    }

    fn make_disk(&self, tree: &Path, disk: &Path) -> Result<()> {
        let _step = Step::spinner("making the disk of a machine with KVM");
        // As the parts stay what they are for as long as the store is locked.
        let _store = Store::lock()?;
        for directory in ["dev", "proc", "run", "sys", "tmp"] {
            fs::create_dir_all(tree.join(directory))?;
        }
        for part in &self.parts {
            copy(&["--archive", "--link"], part, tree)?;
        }
        let mut files = BTreeSet::new();
        for name in PROGRAMS {
            files.insert(found(name)?);
        }
        files.extend(self.programs.iter().cloned());
        for program in files.clone() {
            files.extend(libraries(&program)?);
        }
        for file in &files {
            copy(&["--dereference", "--preserve=mode"], file, tree)?;
        }
        File::create(disk)?.set_len(DISK_BYTES)?;
        let mut mkfs = self.lab.host_tool("mke2fs")?;
        mkfs.args(["-q", "-t", "ext4", "-E", "root_owner=0:0", "-d"]).arg(tree).arg(disk);
        run::output(&mut mkfs)?;
        Ok(fs::remove_dir_all(tree)?)
    }
}

/// A machine with KVM that can be booted: any number of times, and several at once.
pub struct InstalledKvmHost<'lab> {
    lab: &'lab Lab,
    target: PathBuf,
    dir: TempDir,
}

impl InstalledKvmHost<'_> {
    /// Boots it, runs `command` in it and powers off; calls `on_line` with each line that is printed.
    /// The script's status of what is returned is `command`'s. What is written to the disk is gone
    /// afterwards.
    ///
    /// # Errors
    ///
    /// As [`VmBuilder::boot`].
    pub fn run(
        &self,
        command: &Command,
        limit: Duration,
        on_line: impl FnMut(&str) + Send + 'static,
    ) -> Result<Outcome> {
        let own = tempfile::Builder::new().prefix("run-").tempdir_in(&self.dir)?;
        let disk = own.path().join(DISK);
        let script = self.script(command);
        self.vm(&disk)?.script(&script).time_limit(limit).on_line(on_line).boot()?.wait()
    }

    /// Describes it, with a disk `/dev/vda` that is copied to `disk`, for other scripts and devices.
    ///
    /// # Errors
    ///
    /// When there is no room.
    pub fn vm(&self, disk: &Path) -> Result<VmBuilder<'_>> {
        run::output(
            Command::new("cp").arg("--sparse=always").arg(self.dir.path().join(DISK)).arg(disk),
        )?;
        let vm = self.lab.vm().cpu(&CPU).cpus(CPUS).memory_mib(MEMORY_MIB);
        // Warnings would end up in the middle of what the tests print.
        let vm = vm.kernel_argument("loglevel=3 oops=panic");
        Ok(vm.module("kvm-amd").module("loop").disk(disk, Access::ReadWrite))
    }

    /// What runs `command` there, by a shell: the disk is mounted on `/mnt`, and is all that it has,
    /// but for the kernel's own file systems.
    #[must_use]
    pub fn script(&self, command: &Command) -> String {
        script(command, &self.target)
    }
}

/// Runs `command` on what is on the disk, with no more of an environment than it wants.
fn script(command: &Command, target: &Path) -> String {
    let mut words =
        vec![format!("PATH={}", PLACES.join(":")), format!("{}=kvm", accelerator::VARIABLE)];
    words.push(format!("CARGO_TARGET_DIR={}", target.display()));
    for (name, value) in command.get_envs() {
        words.push(format!(
            "{}={}",
            name.to_string_lossy(),
            value.unwrap_or_default().to_string_lossy()
        ));
    }
    words.extend(["chroot", "/mnt"].map(str::to_owned));
    let program = std::iter::once(command.get_program()).chain(command.get_args());
    words.extend(program.map(|word| word.to_string_lossy().into_owned()));
    let words: Vec<_> = words.iter().map(|word| quoted(word)).collect();
    format!(
        "set -eu
        mount -t ext4 -o noatime /dev/vda /mnt
        mount -t proc proc /mnt/proc
        mount -t sysfs sysfs /mnt/sys
        mount -t devtmpfs devtmpfs /mnt/dev
        test -c /dev/kvm
        exec env -i {}",
        words.join(" ")
    )
}

/// `word` as the shell takes it for one.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Copies `from` to the path it has, beneath `root`.
fn copy(options: &[&str], from: &Path, root: &Path) -> Result<()> {
    let to = root.join(from.strip_prefix("/").context("not an absolute path")?);
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    run::output(Command::new("cp").args(options).arg("--no-target-directory").arg(from).arg(to))
        .map(drop)
}

/// Where the program `name` of this machine is.
fn found(name: &str) -> Result<PathBuf> {
    let mut files = PLACES.iter().map(|place| Path::new(place).join(name));
    files
        .find(|file| file.is_file())
        .with_context(|| format!("{name} is in none of {}", PLACES.join(", ")))
}

/// The shared libraries that `program` needs, the loader among them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let ldd = Command::new("ldd").arg(program).output()?;
    // One that is linked statically needs none, and ldd fails.
    if !ldd.status.success() && String::from_utf8_lossy(&ldd.stderr).contains("not a dynamic") {
        return Ok(Vec::new());
    }
    Ok(listed(&run::text(Command::new("ldd").arg(program))?))
}

/// The paths in what ldd prints.
fn listed(listing: &str) -> Vec<PathBuf> {
    let paths = listing.lines().filter_map(|line| {
        let found = line.split_once("=> ").map_or(line, |(_, found)| found);
        found.trim().split(" (").next().filter(|path| path.starts_with('/'))
    });
    paths.map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listing_with_loader_and_vdso_is_read() {
        let listing = "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n\t/lib64/ld.so (0x7f)\n";
        assert_eq!(listed(listing), ["/lib/libc.so.6", "/lib64/ld.so"].map(PathBuf::from));
    }

    #[test]
    fn word_with_quote_is_one_word() {
        let printed =
            run::text(Command::new("sh").arg("-c").arg(format!("echo {}", quoted("a 'b' $c"))));
        assert_eq!(printed.unwrap(), "a 'b' $c\n");
    }
}
