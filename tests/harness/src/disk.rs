// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks for guests, for what is too large for an initramfs: ext4 images of directories.
//!
//! mke2fs is given the files as a tar archive, in which they all belong to root, whoever owns them
//! here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::Apt;
use crate::kernel::KernelTree;
use crate::progress::Step;
use crate::run;
use crate::store::Store;
use crate::tree::Tree;

const BLOCK: u64 = 4096;

/// The part `name`: `packages` with all they depend on, and the kernel's modules with the lists that
/// `modprobe` reads.
pub(crate) fn root(
    store: &Store,
    name: &str,
    packages: &[&str],
    kernel: &KernelTree,
    userland: &Tree,
    apt: impl FnOnce() -> Result<Apt>,
) -> Result<PathBuf> {
    let recipe = format!("{}\n{}", packages.join(" "), kernel.tree.packages()?);
    let part = store.part(name, &recipe, |part| {
        let root = store.scratch().join(format!("{name}-root"));
        let tree = Tree::unpack(&root, &apt()?.fetch_closure(packages)?)?;
        let _step = Step::spinner("packing the root file system");
        let modules = root.join("usr/lib/modules");
        fs::create_dir_all(&modules)?;
        let from = kernel.tree.path("usr/lib/modules").join(&kernel.release);
        run::output(Command::new("cp").arg("-R").arg(from).arg(&modules))?;
        run::output(tree.program("depmod")?.arg("-b").arg(&root).arg(&kernel.release))?;
        fs::copy(tree.path("packages"), part.join("packages"))?;
        of_directory(&root, &[], &part.join("root.img"), userland)
    })?;
    Ok(part.join("root.img"))
}

/// Makes `image` a disk with what is in `dir`, but for its entries that `leave_out` names.
pub(crate) fn of_directory(
    dir: &Path,
    leave_out: &[&str],
    image: &Path,
    userland: &Tree,
) -> Result<()> {
    let contents = Contents::of(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut tar = Command::new("tar");
    tar.args(["-c", "--owner=0", "--group=0", "--numeric-owner", "--anchored"]);
    tar.args(leave_out.iter().map(|name| format!("--exclude=./{name}")));
    tar.arg("-C").arg(dir).arg(".");
    let mut mke2fs = mke2fs(userland)?;
    mke2fs.arg("-N").arg(contents.inodes().to_string());
    mke2fs.args(["-d", "-"]).arg(image).arg(format!("{}k", contents.disk_kib()));
    run::pipe(&mut tar, &mut mke2fs)
        .with_context(|| format!("cannot make {} of {}", image.display(), dir.display()))
}

/// Makes `image` a disk of `bytes` with what is in the tar archive `tar`, with the owners it has there.
pub(crate) fn of_tar(tar: &Path, bytes: u64, image: &Path, userland: &Tree) -> Result<()> {
    let mut mke2fs = mke2fs(userland)?;
    mke2fs.arg("-d").arg(tar).arg(image).arg(format!("{}k", bytes / 1024));
    run::output(&mut mke2fs).map(drop)
}

/// Nobody waits for the promises of the file systems that this makes: they are made anew when they
/// are wanted again.
fn mke2fs(userland: &Tree) -> Result<Command> {
    let mut mke2fs = userland.program("mke2fs")?;
    mke2fs.args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-b"]);
    mke2fs.arg(BLOCK.to_string()).env("MKE2FS_CONFIG", userland.path("etc/mke2fs.conf"));
    Ok(mke2fs)
}

/// How much is in a directory.
#[derive(Default)]
struct Contents {
    entries: u64,
    blocks: u64,
}

impl Contents {
    fn of(dir: &Path) -> Result<Self> {
        let mut contents = Self::default();
        contents.add(dir)?;
        Ok(contents)
    }

    fn add(&mut self, dir: &Path) -> Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            self.entries += 1;
            self.blocks += metadata.len().div_ceil(BLOCK);
            if metadata.is_dir() {
                self.add(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Some are the file system's own.
    fn inodes(&self) -> u64 {
        self.entries + 64
    }

    /// With room for the file system's own tables; what isn't used takes no space on the host.
    fn disk_kib(&self) -> u64 {
        let tables = self.entries / 8 + (self.blocks + self.entries) / 16;
        (self.blocks + self.entries + tables) * (BLOCK / 1024) + (32 << 10)
    }
}
