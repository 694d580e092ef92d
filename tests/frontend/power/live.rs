// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Snapshots that are taken and merged while the guest runs, and what an operator does about one
//! after a power cut.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use guest_harness::Random;
use pfn_blk::{FileStore, NrPages, PfnSpace, Snapshot, mark_origin, origin_mark};

use super::DAEMON;

/// Where changes are kept: since a snapshot, and since one of that.
pub(super) const COWS: [&str; 2] = ["cow", "cow of cow"];

/// Takes snapshots, also of snapshots, and merges them, until the daemon doesn't any more. Returns what
/// it says then.
pub(super) fn operate(control: &Path, cows: &[PathBuf], mut random: Random) -> String {
    let mut open = 0;
    loop {
        thread::sleep(Duration::from_millis(random.below(40)));
        let takes = open == 0 || (open < cows.len() && random.one_in(2));
        let mut command = Command::new(DAEMON);
        match takes {
            true => command.arg("snapshot").arg(&cows[open]),
            false => command.arg("merge"),
        };
        let output = command.arg("--control").arg(control).output().unwrap();
        if !output.status.success() {
            return String::from_utf8_lossy(&output.stderr).into_owned();
        }
        if takes { open += 1 } else { open -= 1 }
    }
}

/// Whether files have marks where the tests have theirs; else there is nothing to find one by.
pub(super) fn can_mark() -> bool {
    let file = tempfile::NamedTempFile::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let cow = dir.path().join("cow");
    let size = NrPages::try_new(64).unwrap();
    let store = FileStore::open_new(&cow, size).unwrap().0;
    let store = PfnSpace::new().add(Box::new(store)).unwrap();
    let id = Snapshot::make_cow(&*store, NrPages::ONE, NrPages::ONE).unwrap();
    let marked = mark_origin(&file, id, &cow);
    if let Err(error) = &marked {
        eprintln!("skipped: {error}");
    }
    marked.is_ok()
}

/// After a power cut, for as long as it is there: the media where the disks were, as that is where
/// their marks say that the others are.
pub(super) struct Media<'a>(&'a Path);

impl<'a> Media<'a> {
    pub(super) fn new(dir: &'a Path) -> Self {
        symlink(dir.join("media"), dir.join("disks")).unwrap();
        Self(dir)
    }

    /// Whether a snapshot had been taken of the file.
    pub(super) fn is_origin(&self) -> bool {
        // A snapshot's own changes first.
        self.take_mark(COWS[0], COWS[1]);
        self.take_mark("one", COWS[0])
    }

    /// Takes a file's mark for its own, as the disks' inodes were others. Whether it has one.
    fn take_mark(&self, file: &str, cow: &str) -> bool {
        let Ok(file) = File::open(self.0.join("media").join(file)) else { return false };
        let Some(mark) = origin_mark(&file).unwrap() else { return false };
        assert_eq!(mark.cow, self.0.join("disks").join(cow));
        eprintln!("the changes are in {cow}");
        mark_origin(&file, mark.id.unwrap(), &mark.cow).unwrap();
        true
    }

    /// Merges all, while nobody serves it.
    pub(super) fn merge(&self) -> Result<(), String> {
        if self.take_mark(COWS[0], COWS[1]) {
            self.merge_into(COWS[0], COWS[1])?;
        }
        self.merge_into("one", COWS[0])
    }

    fn merge_into(&self, file: &str, cow: &str) -> Result<(), String> {
        let mut merge = Command::new(DAEMON);
        merge.arg("merge").arg("--file").arg(self.0.join("disks").join(file));
        merge.arg("--overlay").arg(self.0.join("disks").join(cow));
        let output = merge.output().unwrap();
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }
}

impl Drop for Media<'_> {
    fn drop(&mut self) {
        fs::remove_file(self.0.join("disks")).unwrap();
    }
}
