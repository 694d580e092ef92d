// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernels on offer, from Debian's cloud kernel packages.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::apt::Apt;
use crate::modules::Modules;
use crate::progress::Step;
use crate::store::Store;
use crate::tree::Tree;
use crate::vmlinux;

/// The ABI in the real package's name changes with every point release; this name stays.
const METAPACKAGE: &str = "linux-image-cloud-amd64";

/// Where a package's tree has its kernel without the program that decompresses it.
const VMLINUX: &str = "boot/vmlinux";

/// Where it has its modules, by release.
const MODULES: &str = "usr/lib/modules";

/// A kernel to boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kernel {
    /// Debian 13's, Linux 6.12: finds a pmem device by shared memory region
    /// (`VIRTIO_PMEM_F_SHMEM_REGION`).
    #[default]
    Trixie,
    /// Debian 13's backports', the newest.
    Backports,
    /// Debian 12's, Linux 6.1: knows only `start` and `size` in the configuration space.
    Bookworm,
}

impl Kernel {
    /// The name of its parts in the cache.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Trixie => "trixie",
            Self::Backports => "backports",
            Self::Bookworm => "bookworm",
        }
    }

    /// The suites its apt root holds. Trixie's kernel shares one with QEMU; that of the backports would
    /// not be chosen there.
    pub(crate) fn suites(self) -> &'static str {
        match self {
            Self::Trixie => "trixie trixie-backports",
            Self::Backports => "trixie-backports",
            Self::Bookworm => "bookworm",
        }
    }

    /// The packages that hold the files of `image`, a package of the kind that the metapackage names.
    fn packages(self, image: &str) -> Vec<String> {
        let part = |part| image.replacen("image", part, 1);
        match self {
            // Its image package is empty.
            Self::Backports => ["binary", "modules", "base"].map(part).into(),
            Self::Trixie | Self::Bookworm => vec![image.to_owned()],
        }
    }

    /// Unpacks the kernel package unless that has been done.
    pub(crate) fn obtain(
        self,
        store: &Store,
        apt: impl FnOnce() -> Result<Apt>,
    ) -> Result<KernelTree> {
        let recipe = format!("{METAPACKAGE}\n{VMLINUX}");
        let root = store.part(&format!("kernel-{}", self.name()), &recipe, |root| {
            let apt = apt()?;
            let packages = self.packages(&apt.resolve(METAPACKAGE)?);
            let packages: Vec<_> = packages.iter().map(String::as_str).collect();
            let tree = Tree::unpack(root, &apt.fetch(&packages)?)?;
            let (release, image) = (release(&tree)?, tree.path(VMLINUX));
            let _step = Step::spinner("decompressing the kernel");
            fs::create_dir_all(tree.path("boot"))?;
            if let Some(kernel) = vmlinux::extract(&fs::read(packed_image(&tree, &release))?)? {
                fs::write(image, kernel)?;
            }
            tree.announce(packages[0])
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
        let release = release(&tree)?;
        let image = tree.path(VMLINUX);
        let image = if image.exists() { image } else { packed_image(&tree, &release) };
        let modules = Modules::read(&tree.path(MODULES).join(&release))?;
        Ok(Self { tree, release, image, modules })
    }
}

/// The release of a kernel package's kernel, after which its files are named.
fn release(tree: &Tree) -> Result<String> {
    let mut releases = fs::read_dir(tree.path(MODULES))?;
    let release = releases.next().context("the kernel package has no modules")??;
    Ok(release.file_name().to_string_lossy().into_owned())
}

/// Older packages have it in `boot`, newer ones with the modules.
fn packed_image(tree: &Tree, release: &str) -> PathBuf {
    let image = tree.path(&format!("boot/vmlinuz-{release}"));
    if image.exists() { image } else { tree.path(MODULES).join(release).join("vmlinuz") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_of_the_backports_is_in_three_packages() {
        let image = "linux-image-7.3.4+deb13-cloud-amd64";
        let packages = Kernel::Backports.packages(image);
        assert_eq!(packages.len(), 3);
        assert_eq!(packages[0], "linux-binary-7.3.4+deb13-cloud-amd64");
        assert_eq!(Kernel::Trixie.packages(image), [image]);
    }
}
