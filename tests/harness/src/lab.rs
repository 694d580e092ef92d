// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What guests are made of.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::apt::Apt;
use crate::builder::VmBuilder;
use crate::disk;
use crate::initramfs;
use crate::kernel::{Kernel, KernelTree};
use crate::qemu::Qemu;
use crate::store::Store;
use crate::tree::Tree;

/// The packages of the guest's userland.
///
/// mke2fs reads the trees of [`crate::disk`] by libarchive.
const USERLAND: [&str; 7] =
    ["busybox-static", "dash", "e2fsprogs", "libarchive13t64", "mount", "util-linux", "xfsprogs"];

/// A QEMU and a userland, ready to make VMs of.
#[derive(Debug)]
pub struct Lab {
    qemu: Qemu,
    userland: Tree,
}

impl Lab {
    /// Obtains what is missing: QEMU, the userland, the default kernel.
    ///
    /// # Errors
    ///
    /// Without `apt` and `dpkg-deb`, without a Debian mirror when something is missing, or when the
    /// cache can't be written.
    pub fn open() -> Result<Self> {
        let store = Store::lock()?;
        let trixie = || apt(&store, Kernel::Trixie.suites());
        let qemu = Qemu::obtain(&store, trixie)?;
        let userland = store.part("userland", &USERLAND.join(" "), |root| {
            Tree::unpack(root, &trixie()?.fetch_closure(&USERLAND)?).map(drop)
        })?;
        let lab = Self { qemu, userland: Tree::at(userland) };
        lab.boot_files(&store, Kernel::default())?;
        Ok(lab)
    }

    /// Describes a VM.
    #[must_use]
    pub fn vm(&self) -> VmBuilder<'_> {
        VmBuilder::new(self)
    }

    /// The QEMU in use.
    #[must_use]
    pub fn qemu(&self) -> &Qemu {
        &self.qemu
    }

    /// A command that runs a tool of the guest's userland, such as `e2fsck`, on the host.
    ///
    /// # Errors
    ///
    /// When the userland has no such tool.
    pub fn host_tool(&self, name: &str) -> Result<Command> {
        self.userland.program(name)
    }

    /// A disk for [`VmBuilder::disk`], `/dev/vda` and so on in the guest, that holds a root file
    /// system: the Debian packages `packages`, all they depend on, and the modules of `kernel`. They are unpacked and no more: what their maintainer scripts would make – links of
    /// alternatives, users, lists of shells – isn't there. It is kept as `name`, and not to be
    /// written to.
    ///
    /// # Errors
    ///
    /// As [`Lab::open`].
    pub fn root_disk(&self, name: &str, packages: &[&str], kernel: Kernel) -> Result<PathBuf> {
        let store = Store::lock()?;
        let (kernel, _) = self.boot_files(&store, kernel)?;
        disk::root(&store, name, packages, &kernel, &self.userland, || {
            apt(&store, Kernel::default().suites())
        })
    }

    /// Makes `image` a disk for [`VmBuilder::disk`] that holds what is in `dir`, without the entries
    /// of `dir` that `leave_out` names. In the guest all of it belongs to root.
    ///
    /// # Errors
    ///
    /// When `dir` can't be read or `image` not be written.
    pub fn disk_of(&self, dir: &Path, leave_out: &[&str], image: &Path) -> Result<()> {
        disk::of_directory(dir, leave_out, image, &self.userland)
    }

    /// The release of `kernel`, such as `6.12.57+deb13-cloud-amd64`.
    ///
    /// # Errors
    ///
    /// As [`Lab::open`].
    pub fn kernel_release(&self, kernel: Kernel) -> Result<String> {
        Ok(self.kernel(kernel)?.0.release)
    }

    pub(crate) fn userland(&self) -> &Tree {
        &self.userland
    }

    /// The kernel and its base initramfs, obtained if they are missing.
    pub(crate) fn kernel(&self, kernel: Kernel) -> Result<(KernelTree, PathBuf)> {
        self.boot_files(&Store::lock()?, kernel)
    }

    /// Debian's QEMU, obtained if it is missing, whatever the host has.
    pub(crate) fn unpacked_qemu(&self) -> Result<Tree> {
        let store = Store::lock()?;
        Qemu::unpacked(&store, || apt(&store, Kernel::Trixie.suites()))
    }

    /// The package `name` and all it depends on, obtained if they are missing.
    pub(crate) fn package(&self, name: &str) -> Result<Tree> {
        package_tree(name)
    }

    fn boot_files(&self, store: &Store, kernel: Kernel) -> Result<(KernelTree, PathBuf)> {
        let tree = kernel.obtain(store, || apt(store, kernel.suites()))?;
        let initramfs = initramfs::base(store, kernel, &tree, &self.userland)?;
        Ok((tree, initramfs))
    }
}

/// A command that runs `name` of the package `package` on the host, at the release of the QEMU in
/// use where it is QEMU's. Obtains what is missing of it, and nothing else.
///
/// # Errors
///
/// As [`Lab::open`], and when the package has no such program.
pub fn host_program(package: &str, name: &str) -> Result<Command> {
    package_tree(package)?.program(name)
}

/// The package `name` and all it depends on, obtained if they are missing.
fn package_tree(name: &str) -> Result<Tree> {
    let store = Store::lock()?;
    let root = store.part(&format!("package-{name}"), name, |root| {
        let apt = apt(&store, Kernel::Trixie.suites())?;
        Tree::unpack(root, &apt.fetch_closure(&[name])?)?.announce(name)
    })?;
    Ok(Tree::at(root))
}

/// The apt root of `suites`, one for as long as the store is locked.
pub(crate) fn apt(store: &Store, suites: &str) -> Result<Apt> {
    Apt::open(&store.scratch().join("apt").join(suites.replace(' ', "+")), suites)
}
