// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device of a daemon that stays, and what is to be on it.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use guest_harness::{Daemon, Held, Lab, patience};
use tempfile::TempDir;

use crate::DAEMON;
use crate::filesystem::Filesystem;
use crate::held::{leaks_nothing, settled};
use crate::ledger::Ledger;

const SIZE: u64 = 512 << 20;
/// How long the daemon may take to see that a frontend has left.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Device {
    pub(crate) name: &'static str,
    pub(crate) filesystem: Filesystem,
    pub(crate) daemon: Daemon,
    ledger: Arc<Mutex<Ledger>>,
    /// What the daemon held when the first session was over.
    first: Option<Held>,
    /// What an overlay must not change, and a copy of it.
    base: Option<[PathBuf; 2]>,
    _dir: Evidence,
}

/// The directory of a device's files, which stays where the soak fails.
struct Evidence(TempDir);

impl Drop for Evidence {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.disable_cleanup(true);
            eprintln!("--- the device's files: {}", self.0.path().display());
        }
    }
}

/// What is left of a device.
pub(crate) struct Finished {
    pub(crate) name: &'static str,
    pub(crate) first: Held,
    pub(crate) last: Held,
    pub(crate) checks: u64,
    pub(crate) verified_kib: u64,
}

impl Device {
    /// A file in a direct window.
    pub(crate) fn direct(lab: &Lab, filesystem: Filesystem) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let file = formatted(lab, filesystem, &dir);
        let args = ["--window".as_ref(), "direct".as_ref(), "--file".as_ref(), file.as_os_str()];
        let daemon = Daemon::start(DAEMON, args).unwrap();
        Some(Self::new("direct", filesystem, daemon, None, dir))
    }

    /// What is changed of a file, in a served window; nothing where nobody may have one.
    pub(crate) fn overlay(lab: &Lab, filesystem: Filesystem) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let [base, copy, cow] =
            [formatted(lab, filesystem, &dir), dir.path().join("copy"), dir.path().join("cow")];
        let copied = Command::new("cp").arg("--sparse=always").args([&base, &copy]).status();
        assert!(copied.unwrap().success());
        let args = ["--file".as_ref(), base.as_os_str(), "--overlay".as_ref(), cow.as_os_str()];
        let daemon = Daemon::start_served(DAEMON, args).unwrap()?;
        Some(Self::new("served", filesystem, daemon, Some([base, copy]), dir))
    }

    fn new(
        name: &'static str,
        filesystem: Filesystem,
        daemon: Daemon,
        base: Option<[PathBuf; 2]>,
        dir: TempDir,
    ) -> Self {
        Self {
            name,
            filesystem,
            daemon,
            ledger: Arc::default(),
            first: None,
            base,
            _dir: Evidence(dir),
        }
    }

    /// What a guest says goes here.
    pub(crate) fn listener(&self) -> impl FnMut(&str) + Send + 'static {
        let ledger = Arc::clone(&self.ledger);
        move |line| ledger.lock().unwrap().hear(line)
    }

    /// What was synced, all of which is there.
    pub(crate) fn intact(&self) -> MutexGuard<'_, Ledger> {
        let ledger = self.ledger.lock().unwrap();
        assert!(ledger.lost.is_empty(), "{}: lost {:#?}", self.name, ledger.lost);
        ledger
    }

    /// Waits until nobody is connected, and the daemon is well.
    pub(crate) fn wait_until_free(&mut self) {
        let deadline = Instant::now() + patience(PATIENCE);
        loop {
            let log = self.daemon.log();
            let gone = ["frontend left", "frontend dropped"].map(|line| log.matches(line).count());
            if gone.iter().sum::<usize>() == log.matches("frontend connected").count() {
                break;
            }
            assert_eq!(self.daemon.ended().unwrap(), None, "the daemon has ended");
            assert!(Instant::now() < deadline, "the daemon doesn't see that its frontend left");
            std::thread::sleep(Duration::from_millis(20));
        }
        let unwell = |line: &&str| line.contains("ERROR") || line.contains("every flush");
        let log = self.daemon.log();
        assert_eq!(log.lines().find(unwell), None, "{}", self.name);
        self.first.get_or_insert_with(|| settled(&self.daemon));
    }

    /// Ends the daemon in order.
    pub(crate) fn finish(self) -> Finished {
        let (checks, verified_kib) = {
            let ledger = self.intact();
            (ledger.checks, ledger.verified_kib)
        };
        let (first, last) = (self.first.unwrap(), settled(&self.daemon));
        assert!(leaks_nothing(&first, &last), "{}: held {first}, then {last}", self.name);
        let (status, log) = self.daemon.terminate().unwrap();
        assert!(status.success(), "{log}");
        if let Some([base, copy]) = &self.base {
            let compared = Command::new("cmp").args([base, copy]).status().unwrap();
            assert!(compared.success(), "the base was changed");
        }
        Finished { name: self.name, first, last, checks, verified_kib }
    }
}

/// A file with an empty filesystem.
fn formatted(lab: &Lab, filesystem: Filesystem, dir: &TempDir) -> PathBuf {
    let file = dir.path().join("pmem");
    File::create(&file).unwrap().set_len(SIZE).unwrap();
    filesystem.make(lab, &file);
    file
}
