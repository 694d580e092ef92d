// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A Debian tree that is unpacked but not installed, and its programs, run through its own loader.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow};

use crate::apt::name_and_version;
use crate::progress::{self, Step};
use crate::run;

/// What no guest and no test reads.
const EXCLUDED: [&str; 5] = [
    "./usr/share/doc",
    "./usr/share/man",
    "./usr/share/locale",
    "./usr/share/zoneinfo",
    "./usr/lib/python3*",
];

const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
/// Those of Ceph, which fio wants, name the second by a path that only holds in a guest.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/ceph"];

/// The root of an unpacked tree.
#[derive(Clone, Debug)]
pub(crate) struct Tree(PathBuf);

impl Tree {
    /// A tree that has been unpacked in `root` before.
    pub(crate) fn at(root: PathBuf) -> Self {
        Self(root)
    }

    /// Unpacks `debs` into the empty directory `root` and lists them there, in the file `packages`.
    pub(crate) fn unpack(root: &Path, debs: &[PathBuf]) -> Result<Self> {
        // Packages of before the /usr merge bring files in /bin and /lib: these links send them to
        // /usr.
        for dir in ["bin", "sbin", "lib", "lib64"] {
            fs::create_dir_all(root.join("usr").join(dir))?;
            symlink(Path::new("usr").join(dir), root.join(dir))?;
        }
        let step = Step::bar("unpacking", debs.len());
        let queue = Mutex::new(debs.iter());
        let worker = || -> Result<()> {
            while let Some(deb) = queue.lock().ok().and_then(|mut queue| queue.next()) {
                unpack_one(root, deb)?;
                step.inc();
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(worker);
            worker()?;
            other.join().map_err(|_| anyhow!("unpacking panicked"))?
        })?;
        let mut names: Vec<_> = debs.iter().map(|deb| name_and_version(deb)).collect();
        names.push(String::new());
        fs::write(root.join("packages"), names.join("\n"))?;
        Ok(Self(root.to_owned()))
    }

    /// Where `path`, relative to the tree's root, is on the host.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    /// The names and versions of the tree's packages, one a line.
    pub(crate) fn packages(&self) -> Result<String> {
        Ok(fs::read_to_string(self.path("packages"))?)
    }

    /// Says which version of `package` is in the tree.
    pub(crate) fn announce(&self, package: &str) -> Result<()> {
        let packages = self.packages()?;
        let found = packages.lines().find(|line| line.split(' ').next() == Some(package));
        progress::note(&format!("unpacked {}", found.unwrap_or(package)));
        Ok(())
    }

    /// A command that runs the tree's program `name` on the host.
    pub(crate) fn program(&self, name: &str) -> Result<Command> {
        let mut command = self.loader();
        command.arg(self.path(&self.find(name)?));
        Ok(command)
    }

    /// The program `name` as a path relative to the tree's root.
    pub(crate) fn find(&self, name: &str) -> Result<String> {
        ["usr/bin", "usr/sbin"]
            .iter()
            .map(|dir| format!("{dir}/{name}"))
            .find(|path| self.path(path).exists())
            .with_context(|| format!("there is no program {name} in {}", self.0.display()))
    }

    /// The shared libraries that `programs` need, the loader among them, as paths relative to the
    /// root.
    pub(crate) fn libraries(&self, programs: &[String]) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        for program in programs {
            let listing = run::text(self.loader().arg("--list").arg(self.path(program)))?;
            for library in listed_libraries(&listing) {
                let relative = Path::new(library).strip_prefix(&self.0).with_context(|| {
                    format!("{program} needs {library}, which is not in {}", self.0.display())
                })?;
                found.insert(relative.to_string_lossy().into_owned());
            }
        }
        found.insert(LOADER.to_owned());
        Ok(found)
    }

    fn loader(&self) -> Command {
        let mut command = Command::new(self.path(LOADER));
        let path = LIBRARIES.map(|dir| self.path(dir).into_os_string());
        command.arg("--library-path").arg(path.join(OsStr::new(":")));
        command
    }
}

fn unpack_one(root: &Path, deb: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["-x", "--keep-directory-symlink", "--no-same-owner", "--no-same-permissions", "-C"])
        .arg(root);
    tar.args(EXCLUDED.iter().map(|pattern| format!("--exclude={pattern}")));
    run::pipe(Command::new("dpkg-deb").arg("--fsys-tarfile").arg(deb), &mut tar)
        .with_context(|| format!("cannot unpack {}", deb.display()))
}

/// The paths in what `ld.so --list` prints; the loader itself and the vDSO have none.
fn listed_libraries(listing: &str) -> impl Iterator<Item = &str> {
    listing.lines().filter_map(|line| line.split_once("=> ")?.1.split(" (").next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_listing_without_vdso_is_read() {
        let listing = "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /r/libc.so.6 (0x7f)\n";
        assert_eq!(listed_libraries(listing).collect::<Vec<_>>(), ["/r/libc.so.6"]);
    }
}
