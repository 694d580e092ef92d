// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The cache: directories that are complete or absent, made by one process at a time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::progress::Step;

/// Counts changes to what a part holds that its recipe's text doesn't show.
const RECIPE_VERSION: u32 = 1;

/// The file inside each part that holds the recipe it was made by.
const STAMP: &str = "recipe";

/// The cache directory, locked for as long as this lives.
pub(crate) struct Store {
    root: PathBuf,
    _lock: File,
}

impl Store {
    /// Locks the cache, waiting for whoever holds it.
    pub(crate) fn lock() -> Result<Self> {
        let root = target_dir().join("guest");
        fs::create_dir_all(&root)
            .with_context(|| format!("cannot make the cache {}", root.display()))?;
        let root = root.canonicalize()?;
        let path = root.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.with_context(|| format!("cannot open {}", path.display()))?;
        lock_file(&lock, "waiting for another process to prepare the guests")
            .with_context(|| format!("cannot lock {}", path.display()))?;
        let store = Self { root, _lock: lock };
        store.clear_scratch()?; // a process that was killed may have left some
        Ok(store)
    }

    /// The part `name`, made by `build` in an empty directory unless it is there from the same
    /// recipe.
    pub(crate) fn part(
        &self,
        name: &str,
        recipe: &str,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let part = self.root.join(name);
        let stamp = format!("version {RECIPE_VERSION}\n{recipe}");
        if fs::read_to_string(part.join(STAMP)).is_ok_and(|found| found == stamp) {
            return Ok(part);
        }
        let scratch = self.scratch().join(name);
        fs::create_dir_all(&scratch)?;
        build(&scratch).with_context(|| format!("cannot make {}", part.display()))?;
        fs::write(scratch.join(STAMP), stamp)?;
        if part.exists() {
            fs::rename(&part, self.scratch().join(format!("old-{name}")))?;
        }
        fs::rename(&scratch, &part)
            .with_context(|| format!("cannot put {} in place", part.display()))?;
        Ok(part)
    }

    /// Where things may lie that nobody needs once the store is unlocked.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }

    fn clear_scratch(&self) -> Result<()> {
        match fs::remove_dir_all(self.scratch()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("cannot clear {}", self.scratch().display()))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // The next one to take the lock tries again.
        let _ = self.clear_scratch();
    }
}

/// Says, with `waiting`, that it waits where that takes longer than others take to find all in place.
pub(crate) fn lock_file(lock: &File, waiting: &str) -> rustix::io::Result<()> {
    for _ in 0..20 {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(50)),
            result => return result,
        }
    }
    let _step = Step::spinner(waiting);
    flock(lock, FlockOperation::LockExclusive)
}

/// Cargo's target directory of this workspace.
#[must_use]
pub fn target_dir() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    // Cargo takes a relative one from the directory it was called in; tests run elsewhere.
    workspace.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}
