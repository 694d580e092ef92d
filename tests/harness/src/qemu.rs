// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The QEMU in use: the host's own when it is new enough, else one unpacked from Debian's packages.

use std::fmt;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::apt::Apt;
use crate::run;
use crate::store::Store;
use crate::tree::Tree;

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";

/// A QEMU release, `major.minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl Version {
    /// The first whose vhost-user device maps shared memory regions.
    pub const NEEDED: Self = Self(11, 1);
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A QEMU of release [`Version::NEEDED`] or later.
#[derive(Clone, Debug)]
pub struct Qemu {
    tree: Option<Tree>,
    version: Version,
}

impl Qemu {
    pub(crate) fn obtain(store: &Store, apt: impl FnOnce() -> Result<Apt>) -> Result<Self> {
        let host = Self::with_version_of(None).ok().filter(|qemu| qemu.version >= Version::NEEDED);
        if let Some(qemu) = host {
            return Ok(qemu);
        }
        let qemu = Self::with_version_of(Some(Self::unpacked(store, apt)?))?;
        let version = qemu.version;
        ensure!(
            version >= Version::NEEDED,
            "QEMU {} is needed, the mirror has {version}",
            Version::NEEDED
        );
        Ok(qemu)
    }

    /// The tree of Debian's, obtained if it is missing.
    pub(crate) fn unpacked(store: &Store, apt: impl FnOnce() -> Result<Apt>) -> Result<Tree> {
        let root = store.part("qemu", PACKAGE, |root| {
            Tree::unpack(root, &apt()?.fetch_closure(&[PACKAGE])?)?.announce(PACKAGE)
        })?;
        Ok(Tree::at(root))
    }

    fn with_version_of(tree: Option<Tree>) -> Result<Self> {
        let mut qemu = Self { tree, version: Version(0, 0) };
        let printed = run::text(qemu.command()?.arg("--version"))?;
        qemu.version = parse_version(&printed).with_context(|| format!("QEMU says {printed:?}"))?;
        Ok(qemu)
    }

    /// A command that starts QEMU, without any argument of the machine yet.
    pub fn command(&self) -> Result<Command> {
        let Some(tree) = &self.tree else {
            return Ok(Command::new(PROGRAM));
        };
        let mut command = tree.program(PROGRAM)?;
        command.env("QEMU_MODULE_DIR", tree.path("usr/lib/x86_64-linux-gnu/qemu"));
        for data in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(tree.path(data));
        }
        Ok(command)
    }

    /// Its release.
    pub fn version(&self) -> Version {
        self.version
    }
}

/// Reads `QEMU emulator version 11.1.3 (Debian …)`.
fn parse_version(printed: &str) -> Option<Version> {
    let mut parts = printed.strip_prefix("QEMU emulator version ")?.split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
    Some(Version(major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_line_of_debian_is_read() {
        let line = "QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)\nCopyright (c)";
        assert_eq!(parse_version(line), Some(Version(11, 1)));
    }

    #[test]
    fn version_line_without_patch_level_is_read() {
        assert_eq!(parse_version("QEMU emulator version 12.0\n"), Some(Version(12, 0)));
        assert_eq!(parse_version("qemu: command not found"), None);
    }

    #[test]
    fn version_of_two_digits_is_newer_than_of_one() {
        assert!(Version(9, 2) < Version::NEEDED && Version(11, 0) < Version::NEEDED);
        assert!(Version(11, 10) > Version::NEEDED && Version(12, 0) > Version::NEEDED);
    }
}
