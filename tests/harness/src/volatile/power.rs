// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The power of some disks.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::disk::{Disk, Losses};
use crate::random::Random;

/// Disks that lose their power together.
#[derive(Debug)]
pub(super) struct Power(Mutex<Machine>);

#[derive(Debug)]
struct Machine {
    disks: Vec<Disk>,
    random: Random,
    /// How many writes and syncs are left until the power is cut.
    left: Option<u64>,
    /// Who is told.
    owner: UnixStream,
}

impl Power {
    pub(super) fn new(disks: Vec<Disk>, seed: u64, owner: UnixStream) -> Self {
        Self(Mutex::new(Machine { disks, random: Random::new(seed), left: None, owner }))
    }

    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads from a disk. Doesn't return once the power is cut.
    pub(super) fn read<T>(&self, number: usize, read: impl FnOnce(&Disk) -> T) -> T {
        read(&self.lock().disks[number])
    }

    /// Writes to a disk, or syncs it. Doesn't return if the power is cut before that or instead.
    pub(super) fn operate<T>(&self, number: usize, operate: impl FnOnce(&mut Disk) -> T) -> T {
        let mut machine = self.lock();
        match &mut machine.left {
            Some(0) => cut(machine),
            Some(left) => *left -= 1,
            None => {}
        }
        operate(&mut machine.disks[number])
    }

    /// Has the power cut in place of the write or sync after so many more.
    pub(super) fn cut_after(&self, operations: u64) {
        self.lock().left = Some(operations);
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
        let mut losses = Losses::default();
        for disk in &mut self.disks {
            losses += disk.lose(&mut self.random)?;
        }
        Ok(losses)
    }
}
