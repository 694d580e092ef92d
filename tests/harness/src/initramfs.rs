// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's root file system: a base for each kernel, and a small archive for each VM after it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use cpio::newc::{self, ModeFileType};

use crate::kernel::{Kernel, KernelTree};
use crate::modules::Module;
use crate::progress::Step;
use crate::run;
use crate::store::Store;
use crate::tree::Tree;

const INIT: &str = include_str!("init.sh");

/// What every guest loads. `button` and `evdev` are for the power button.
const MODULES: [&str; 7] =
    ["virtio_pci", "virtio_pmem", "nd_pmem", CRC32C, "ext4", "button", "evdev"];

const CRC32C: &str = "crc32c_generic";

/// What a guest has beside busybox's applets.
const PROGRAMS: [&str; 20] = [
    "chattr",
    "debugfs",
    "dumpe2fs",
    "e2fsck",
    "filefrag",
    "findmnt",
    "lsattr",
    "mkfs.ext4",
    "mkfs.xfs",
    "mke2fs",
    "mount",
    "resize2fs",
    "tune2fs",
    "umount",
    "xfs_db",
    "xfs_growfs",
    "xfs_io",
    "xfs_repair",
    "fallocate",
    "blkid",
];

const DIRECTORIES: [&str; 17] = [
    "applets",
    "dev",
    "etc",
    "lib64",
    "mnt",
    "modules",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr",
    "usr/bin",
    "usr/lib",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib64",
    "usr/sbin",
];

/// The kernel skips a further archive, in silence, unless it begins on such a boundary.
const ALIGNMENT: usize = 512;

/// The base initramfs for `kernel`, uncompressed: a guest under TCG takes seconds to decompress it.
pub(crate) fn base(
    store: &Store,
    which: Kernel,
    kernel: &KernelTree,
    userland: &Tree,
) -> Result<PathBuf> {
    let recipe = format!(
        "{INIT}{MODULES:?}\n{PROGRAMS:?}\n{}{}",
        kernel.tree.packages()?,
        userland.packages()?
    );
    let part = store.part(&format!("initramfs-{}", which.name()), &recipe, |dir| {
        let _step = Step::spinner("packing the initramfs");
        fs::write(dir.join("base.cpio"), base_archive(kernel, userland)?)?;
        Ok(())
    })?;
    Ok(part.join("base.cpio"))
}

/// What one VM adds: its script, and `modules` with all they need.
pub(crate) fn overlay(
    script: &str,
    modules: &[String],
    kernel: &KernelTree,
    userland: &Tree,
) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.file("script", 0o755, script.as_bytes())?;
    archive
        .modules("extra", &kernel.modules.closure(modules, |path| read_module(path, userland))?)?;
    archive.finish()
}

/// The program `name` of `tree`, with its libraries.
pub(crate) fn program(name: &str, tree: &Tree) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    let mut paths = tree.libraries(&[tree.find(name)?])?;
    paths.insert(tree.find(name)?);
    for path in &paths {
        // The kernel makes no directories on the way, and minds none that are there.
        if let Some((directory, _)) = path.rsplit_once('/') {
            archive.directory(directory)?;
        }
        archive.file(path, 0o755, &fs::read(tree.path(path))?)?;
    }
    archive.finish()
}

/// The host's file `path`, to be `name` in the guest.
pub(crate) fn file(name: &str, path: &Path) -> Result<Vec<u8>> {
    let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut archive = Archive::default();
    if let Some((directory, _)) = name.rsplit_once('/') {
        archive.directory(directory)?;
    }
    archive.file(name, 0o755, &content)?;
    archive.finish()
}

fn base_archive(kernel: &KernelTree, userland: &Tree) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in DIRECTORIES {
        archive.directory(directory)?;
    }
    for link in ["bin", "sbin", "lib"] {
        archive.link(link, &format!("usr/{link}"))?;
    }
    archive.link("lib64/ld-linux-x86-64.so.2", "/usr/lib64/ld-linux-x86-64.so.2")?;
    archive.file("init", 0o755, INIT.as_bytes())?;

    let busybox = userland.path("usr/bin/busybox");
    archive.file("usr/bin/busybox", 0o755, &fs::read(&busybox)?)?;
    for applet in run::text(Command::new(&busybox).arg("--list"))?.lines() {
        archive.link(&format!("applets/{applet}"), "/usr/bin/busybox")?;
    }

    // busybox's own shell runs applets before programs of the same name, whatever PATH says.
    archive.link("usr/bin/sh", "dash")?;
    let mut programs = vec![userland.find("dash")?];
    for program in PROGRAMS {
        programs.push(userland.find(program)?);
    }
    for path in &programs {
        archive.file(path, 0o755, &fs::read(userland.path(path))?)?;
    }
    for path in userland.libraries(&programs)? {
        archive.file(&path, 0o755, &fs::read(userland.path(&path))?)?;
    }
    archive.file("etc/mke2fs.conf", 0o644, &fs::read(userland.path("etc/mke2fs.conf"))?)?;
    let mut modules = MODULES.to_vec();
    // Newer kernels have it built in, by another name.
    modules.retain(|name| *name != CRC32C || kernel.modules.has(name));
    archive
        .modules("base", &kernel.modules.closure(&modules, |path| read_module(path, userland))?)?;
    archive.finish()
}

/// Reads a module, which may be compressed; `path` is the name it has when it isn't.
fn read_module(path: &Path, userland: &Tree) -> Result<Vec<u8>> {
    if path.exists() {
        return Ok(fs::read(path)?);
    }
    let mut compressed = path.as_os_str().to_owned();
    compressed.push(".xz");
    run::output(Command::new(userland.path("usr/bin/busybox")).args(["xz", "-dc"]).arg(compressed))
}

/// A cpio archive of the "newc" kind, in the making.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn directory(&mut self, path: &str) -> Result<()> {
        self.entry(path, ModeFileType::Directory, 0o755, &[])
    }

    fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.entry(path, ModeFileType::Symlink, 0o777, target.as_bytes())
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entry(path, ModeFileType::Regular, mode, content)
    }

    /// Adds modules, and as `NAME.list` the order to load them in.
    fn modules(&mut self, list: &str, modules: &[Module]) -> Result<()> {
        let mut order = String::new();
        for module in modules {
            self.file(&format!("modules/{}.ko", module.name), 0o644, &module.object)?;
            order.push_str(&module.name);
            order.push('\n');
        }
        self.file(&format!("modules/{list}.list"), 0o644, order.as_bytes())
    }

    fn entry(&mut self, path: &str, kind: ModeFileType, mode: u32, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len()).with_context(|| format!("{path} is too large"))?;
        let entry =
            newc::Builder::new(path).ino(self.entries).nlink(1).mode(mode).set_mode_file_type(kind);
        let mut writer = entry.write(&mut self.bytes, size);
        std::io::Write::write_all(&mut writer, content)?;
        writer.finish()?;
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        newc::trailer(&mut self.bytes)?;
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_with_file_and_link_reads_back() {
        let mut archive = Archive::default();
        archive.file("a", 0o755, b"hello").unwrap();
        archive.link("b", "a").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % ALIGNMENT, 0);

        let mut reader = newc::Reader::new(bytes.as_slice()).unwrap();
        assert_eq!((reader.entry().name(), reader.entry().mode()), ("a", 0o100_755));
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut content).unwrap();
        assert_eq!(content, b"hello");
        let reader = newc::Reader::new(reader.finish().unwrap()).unwrap();
        assert_eq!((reader.entry().name(), reader.entry().mode()), ("b", 0o120_777));
        let reader = newc::Reader::new(reader.finish().unwrap()).unwrap();
        assert!(reader.entry().is_trailer());
    }
}
