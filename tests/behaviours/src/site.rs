// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where cases run: a filesystem on a device.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statx};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::case::skip;
use crate::data::{Bytes, noise};
use crate::sys::thaw;

/// A kind of filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filesystem {
    Ext4,
    Xfs,
}

impl FromStr for Filesystem {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "ext4" => Ok(Self::Ext4),
            "xfs" => Ok(Self::Xfs),
            _ => bail!("{name} is no filesystem that this knows; there are ext4 and xfs"),
        }
    }
}

/// The filesystem and its device.
pub(crate) struct Site {
    pub(crate) fs: Filesystem,
    /// Whether it is to be mounted with DAX.
    pub(crate) dax: bool,
    pub(crate) device: PathBuf,
    /// Where it is mounted.
    pub(crate) root: PathBuf,
    /// Repeats what is random.
    pub(crate) seed: u64,
}

impl Site {
    /// A path on the filesystem.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A new, empty file.
    pub(crate) fn file(&self, name: &str) -> Result<File> {
        let path = self.path(name);
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        file.with_context(|| format!("cannot create {}", path.display()))
    }

    /// A new file, all of it a hole.
    pub(crate) fn sparse(&self, name: &str, len: usize) -> Result<File> {
        let file = self.file(name)?;
        file.set_len(len as u64)?;
        Ok(file)
    }

    /// A new file with `len` bytes of noise, and these.
    pub(crate) fn filled(&self, name: &str, len: usize) -> Result<(File, Vec<u8>)> {
        let file = self.file(name)?;
        let bytes = noise(name.bytes().map(u64::from).sum(), len);
        file.put(0, &bytes)?;
        Ok((file, bytes))
    }

    /// A file that there is.
    pub(crate) fn open(&self, name: &str) -> Result<File> {
        let path = self.path(name);
        let file = File::options().read(true).write(true).open(&path);
        file.with_context(|| format!("cannot open {}", path.display()))
    }

    /// The filesystem's root directory, for what is done to all of it.
    pub(crate) fn top(&self) -> Result<File> {
        Ok(File::open(&self.root)?)
    }

    /// Skips the case unless the filesystem is mounted with DAX.
    pub(crate) fn needs_dax(&self) -> Result<()> {
        if !self.dax {
            skip!("it is about DAX");
        }
        Ok(())
    }

    /// Makes a new filesystem, with `options` of mkfs beside the usual ones.
    pub(crate) fn make(&self, options: &[&str]) -> Result<()> {
        let mut mkfs = match self.fs {
            // DAX wants blocks as large as pages; a small device would get smaller ones.
            Filesystem::Ext4 => tool("mkfs.ext4", &["-qF", "-b", "4096"]),
            Filesystem::Xfs => tool("mkfs.xfs", &["-qf"]),
        };
        run(mkfs.args(options).arg(&self.device))
    }

    /// Mounts it as the cases want it.
    pub(crate) fn mount(&self) -> Result<()> {
        let options = if self.dax { "dax=always" } else { "" };
        self.mount_with(options).with_context(|| format!("cannot mount it with {options:?}"))
    }

    /// Mounts it with `options`.
    pub(crate) fn mount_with(&self, options: &str) -> io::Result<()> {
        let fs = match self.fs {
            Filesystem::Ext4 => "ext4",
            Filesystem::Xfs => "xfs",
        };
        let data = CString::new(options)?;
        Ok(mount(&self.device, &self.root, fs, MountFlags::empty(), data.as_c_str())?)
    }

    /// Unmounts it.
    pub(crate) fn unmount(&self) -> Result<()> {
        unmount(&self.root, UnmountFlags::empty()).context("cannot unmount it")
    }

    /// Unmounts and mounts it, so that what is in it now comes from the device.
    pub(crate) fn remount(&self) -> Result<()> {
        self.unmount()?;
        self.mount()
    }

    /// Makes a new filesystem in the place of the one that is mounted, and mounts it as told.
    pub(crate) fn replace(&self, mkfs_options: &[&str], mount_options: &str) -> Result<()> {
        self.unmount()?;
        self.make(mkfs_options)?;
        self.mount_with(mount_options).with_context(|| format!("mount with {mount_options:?}"))
    }

    /// Whether it is mounted.
    pub(crate) fn is_mounted(&self) -> Result<bool> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let root = self.root.to_str().context("the mount point's name is no text")?;
        Ok(mounts.lines().any(|line| line.split(' ').nth(1) == Some(root)))
    }

    /// Unmounts it whatever has happened to it, if it is mounted.
    pub(crate) fn abandon(&self) -> Result<()> {
        if self.is_mounted()? {
            // It fails where nothing is frozen.
            let _ = self.top().and_then(|top| Ok(thaw(&top)?));
            self.unmount()?;
        }
        Ok(())
    }

    /// Has its own tool look for anything wrong in it, while it isn't mounted.
    pub(crate) fn check(&self) -> Result<()> {
        let mut fsck = match self.fs {
            Filesystem::Ext4 => tool("e2fsck", &["-fn"]),
            Filesystem::Xfs => tool("xfs_repair", &["-n"]),
        };
        run(fsck.arg(&self.device))
    }

    /// Removes what a case left behind.
    pub(crate) fn clear(&self) -> Result<()> {
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true if entry.file_name() == "lost+found" => {}
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    }

    /// Bytes that can be had yet.
    pub(crate) fn free(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok(stat.f_bfree * stat.f_frsize)
    }
}

/// Whether `file` is used with DAX, as `statx` tells.
pub(crate) fn is_dax(file: &File) -> Result<bool> {
    let found = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    let known = found.stx_attributes_mask.contains(StatxAttributes::DAX);
    ensure!(known, "the filesystem can't tell of DAX");
    Ok(found.stx_attributes.contains(StatxAttributes::DAX))
}

fn tool(name: &str, arguments: &[&str]) -> Command {
    let mut tool = Command::new(name);
    tool.args(arguments);
    tool
}

/// Runs a tool, whose words are of interest only if it fails.
pub(crate) fn run(tool: &mut Command) -> Result<()> {
    let name = tool.get_program().to_string_lossy().into_owned();
    let output = tool.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {name}"))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).trim().replace('\n', "; ");
    ensure!(output.status.success(), "{name} failed ({}): {said}", output.status);
    Ok(())
}

/// What is at `path`, which is to be nothing.
pub(crate) fn expect_gone(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
        Ok(_) => bail!("{} is still there", path.display()),
    }
}
