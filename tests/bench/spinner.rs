// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A process that does nothing but sync a file, and look whether it is to: what a daemon that polls
//! takes at least.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// The memory that both see: how many syncs are wanted, and, in another cache line, were made.
const BYTES: usize = 4096;
const WANTED: usize = 0;
const MADE: usize = 128;

/// One that is stopped unless it is [`awake`](Self::awake); it ends when this is dropped.
pub(crate) struct Spinner {
    child: Child,
    shared: MmapRegion,
    number: u64,
}

impl Spinner {
    /// Starts this program once more, to do no more than [`serve`].
    pub(crate) fn start(file: &Path) -> Result<Self> {
        let memory = File::from(memfd_create("spinner", MemfdFlags::CLOEXEC)?);
        memory.set_len(BYTES as u64)?;
        let shared = map(memory.try_clone()?)?;
        let mut command = Command::new(std::env::current_exe()?);
        let child = command.arg("--spinner").arg(file).stdin(Stdio::from(memory)).spawn()?;
        let spinner = Self { child, shared, number: 0 };
        spinner.send(Signal::STOP)?;
        Ok(spinner)
    }

    /// Has it look while `task` runs, and not take a processor else.
    pub(crate) fn awake<T>(&mut self, task: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.send(Signal::CONT)?;
        let result = task(self);
        self.send(Signal::STOP)?;
        result
    }

    fn send(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it sync, and looks until it is done.
    pub(crate) fn sync(&mut self) -> Result<()> {
        self.number += 1;
        word(&self.shared, WANTED)?.store(self.number, Ordering::Release);
        let made = word(&self.shared, MADE)?;
        while made.load(Ordering::Acquire) != self.number {
            std::hint::spin_loop();
        }
        Ok(())
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Syncs `file` each time that standard input, which is memory, says so.
pub(crate) fn serve(file: &Path) -> Result<()> {
    let file = File::options().read(true).write(true).open(file)?;
    let shared = map(File::from(std::io::stdin().as_fd().try_clone_to_owned()?))?;
    let (wanted, made) = (word(&shared, WANTED)?, word(&shared, MADE)?);
    let mut number = 0;
    loop {
        while wanted.load(Ordering::Acquire) == number {
            std::hint::spin_loop();
        }
        number += 1;
        file.sync_data()?;
        made.store(number, Ordering::Release);
    }
}

fn map(memory: File) -> Result<MmapRegion> {
    MmapRegion::from_file(FileOffset::new(memory, 0), BYTES).context("cannot map shared memory")
}

fn word(shared: &MmapRegion, at: usize) -> Result<&AtomicU64> {
    Ok(shared.get_atomic_ref(at)?)
}
