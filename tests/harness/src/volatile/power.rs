// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The power of some disks.

use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::disk::{Disk, Fault, Losses};
use crate::random::Random;

/// Disks that lose their power together.
#[derive(Debug)]
pub(super) struct Power(Mutex<Machine>);

/// So many operations, or syncs alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Left {
    Operations(u64),
    Syncs(u64),
}

#[derive(Debug)]
struct Machine {
    disks: Vec<Disk>,
    random: Random,
    copies: Copies,
    /// What is left until the power is cut.
    left: Option<Left>,
    /// Who is told.
    owner: UnixStream,
}

/// Where copies of the media are left, if there is such a directory.
#[derive(Debug)]
pub(super) struct Copies {
    pub(super) media: PathBuf,
    pub(super) synced: PathBuf,
}

impl Power {
    pub(super) fn new(disks: Vec<Disk>, seed: u64, copies: Copies, owner: UnixStream) -> Self {
        let random = Random::new(seed);
        Self(Mutex::new(Machine { disks, random, copies, left: None, owner }))
    }

    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads from a disk. Doesn't return once the power is cut.
    pub(super) fn read<T>(&self, number: usize, read: impl FnOnce(&Disk) -> T) -> T {
        read(&self.lock().disks[number])
    }

    /// The number of the disk that is wanted. Doesn't return once the power is cut.
    pub(super) fn find(&self, is_wanted: impl FnMut(&Disk) -> bool) -> Option<usize> {
        self.lock().disks.iter().position(is_wanted)
    }

    /// Writes to a disk. Doesn't return if the power is cut before that or instead.
    pub(super) fn operate<T>(&self, number: usize, operate: impl FnOnce(&mut Disk) -> T) -> T {
        operate(&mut self.count(false).disks[number])
    }

    /// Syncs a disk. Doesn't return if the power is cut before that or instead.
    pub(super) fn sync(&self, number: usize) -> io::Result<()> {
        self.count(true).disks[number].sync()
    }

    /// Adds a disk, and returns its number. Doesn't return if the power is cut instead.
    pub(super) fn add(&self, make: impl FnOnce() -> io::Result<Disk>) -> io::Result<usize> {
        let mut machine = self.count(false);
        machine.disks.push(make()?);
        Ok(machine.disks.len() - 1)
    }

    /// Does something that isn't durable before the next sync: that is, does it or doesn't. Doesn't
    /// return if the power is cut instead.
    pub(super) fn perhaps(&self, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        if self.count(false).random.one_in(2) { act() } else { Ok(()) }
    }

    /// Has a disk fail, or work again, and says that it does.
    pub(super) fn set_fault(&self, number: usize, fault: Option<Fault>) -> io::Result<()> {
        let mut machine = self.lock();
        machine.disks[number].set_fault(fault);
        writeln!(machine.owner, "set")
    }

    /// Counts an operation.
    fn count(&self, is_sync: bool) -> MutexGuard<'_, Machine> {
        let mut machine = self.lock();
        match &mut machine.left {
            Some(Left::Syncs(_)) if !is_sync => {}
            Some(Left::Operations(0) | Left::Syncs(0)) => cut(machine),
            Some(Left::Operations(left) | Left::Syncs(left)) => *left -= 1,
            None => {}
        }
        machine
    }

    /// Has the power cut in place of what comes after these, and says that it will be.
    pub(super) fn cut_after(&self, left: Left) -> io::Result<()> {
        let mut machine = self.lock();
        machine.left = Some(left);
        writeln!(machine.owner, "armed")
    }
}

/// Leaves on the media what is left, says so, and answers nobody any more: the lock stays locked for
/// as long as the process is there.
fn cut(mut machine: MutexGuard<'_, Machine>) -> ! {
    let said = machine.lose().map_or_else(|error| error.to_string(), |losses| losses.to_string());
    // If the owner is gone, so is this process soon.
    let _ = writeln!(machine.owner, "cut: {said}");
    loop {
        std::thread::park();
    }
}

impl Machine {
    fn lose(&mut self) -> io::Result<Losses> {
        self.copies.make()?;
        let mut losses = Losses::default();
        for disk in &mut self.disks {
            losses += disk.lose(&mut self.random)?;
        }
        Ok(losses)
    }
}

impl Copies {
    /// Copies what is on the media: what was synced.
    fn make(&self) -> io::Result<()> {
        if !self.synced.is_dir() {
            return Ok(());
        }
        fs::remove_dir_all(&self.synced)?;
        let mut copy = Command::new("cp");
        copy.args(["--recursive", "--sparse=always", "--preserve=xattr", "--no-target-directory"]);
        let status = copy.arg(&self.media).arg(&self.synced).status()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("cp: {status}"))) }
    }
}
