// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernels on offer, from Debian's cloud kernel packages.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::apt::Apt;
use crate::modules::Modules;
use crate::store::Store;
use crate::tree::Tree;

/// The ABI in the real package's name changes with every point release; this name stays.
const METAPACKAGE: &str = "linux-image-cloud-amd64";

/// A kernel to boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kernel {
    /// Debian 13's, Linux 6.12: finds a pmem device by shared memory region
    /// (`VIRTIO_PMEM_F_SHMEM_REGION`).
    #[default]
    Trixie,
    /// Debian 12's, Linux 6.1: knows only `start` and `size` in the configuration space.
    Bookworm,
}

impl Kernel {
    /// The name of its parts in the cache, which is that of its Debian suite.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Trixie => "trixie",
            Self::Bookworm => "bookworm",
        }
    }

    /// The suites its apt root holds. Trixie's kernel shares one with QEMU.
    pub(crate) fn suites(self) -> &'static str {
        match self {
            Self::Trixie => "trixie trixie-backports",
            Self::Bookworm => "bookworm",
        }
    }

    /// Unpacks the kernel package unless that has been done.
    pub(crate) fn obtain(
        self,
        store: &Store,
        apt: impl FnOnce() -> Result<Apt>,
    ) -> Result<KernelTree> {
        let root = store.part(&format!("kernel-{}", self.name()), METAPACKAGE, |root| {
            let apt = apt()?;
            let package = apt.resolve(METAPACKAGE)?;
            Tree::unpack(root, &[apt.fetch(&package)?])?.announce(&package)
        })?;
        KernelTree::at(Tree::at(root))
    }
}

/// An unpacked kernel package.
#[derive(Debug)]
pub(crate) struct KernelTree {
    pub(crate) tree: Tree,
    pub(crate) release: String,
    pub(crate) image: PathBuf,
    pub(crate) modules: Modules,
}

impl KernelTree {
    fn at(tree: Tree) -> Result<Self> {
        let modules = tree.path("usr/lib/modules");
        let release = fs::read_dir(&modules)?
            .next()
            .context("the kernel package has no modules")??
            .file_name()
            .to_string_lossy()
            .into_owned();
        let image = tree.path(&format!("boot/vmlinuz-{release}"));
        let modules = Modules::read(&modules.join(&release))?;
        Ok(Self { tree, release, image, modules })
    }
}
