// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A daemon, and a VMM that has mapped what it serves.

use std::ffi::OsStr;
use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest_harness::Daemon;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{VolatileMemory, VolatileSlice};

use crate::driver::Driver;
use crate::image::PAGE;
use crate::vmm::{Abilities, Vmm, duplicate};

const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-pmemd");

/// How long a flush may take.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// Dropped in this order: the pages of a daemon that is gone can't be written back.
pub(crate) struct Guest {
    vmm: Vmm,
    daemon: Daemon,
}

impl Guest {
    /// Starts a daemon with `args`, and has its window mapped.
    pub(crate) fn start(args: &[&OsStr]) -> Result<Self> {
        Self::attach(start(args)?)
    }

    /// Has a daemon's window mapped.
    pub(crate) fn attach(daemon: Daemon) -> Result<Self> {
        // The driver is called after every flush, and needn't spin to see its end.
        let abilities = Abilities { event_idx: false, ..Abilities::default() };
        let mut guest = Self { vmm: Vmm::start(daemon.socket(), abilities), daemon };
        // Its answer means that the pages are mapped.
        guest.flush()?;
        Ok(guest)
    }

    /// Ends the VMM, then the daemon.
    pub(crate) fn end(self) -> Result<()> {
        let Self { vmm, daemon } = self;
        drop(vmm);
        let (status, log) = daemon.terminate()?;
        ensure!(status.success(), "the daemon failed:\n{log}");
        Ok(())
    }

    pub(crate) fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// Its driver, for who keeps several requests in flight.
    pub(crate) fn driver(&mut self) -> &mut Driver {
        &mut self.vmm.driver
    }

    /// The file that it has mapped.
    pub(crate) fn file(&self) -> Result<File> {
        let maps = self.vmm.mapper.maps.lock().expect("no thread panicked");
        Ok(maps.first().context("nothing is mapped")?.file.try_clone()?)
    }

    /// Does something with its persistent memory.
    pub(crate) fn with<T>(&self, act: impl FnOnce(VolatileSlice<'_>) -> Result<T>) -> Result<T> {
        let maps = self.vmm.mapper.maps.lock().expect("no thread panicked");
        act(maps.first().context("nothing is mapped")?.region.as_volatile_slice())
    }

    /// Stores at `offset` of the device, whatever is mapped there.
    pub(crate) fn store(&self, offset: u64, bytes: &[u8]) {
        self.vmm.store(offset, bytes);
    }

    /// Sends a flush and sleeps until it is answered, as a guest does; how long that took.
    pub(crate) fn flush(&mut self) -> Result<Duration> {
        let call = duplicate(&self.driver().call);
        let driver = &mut self.vmm.driver;
        // An older call.
        let _ = driver.call.read();
        let began = Instant::now();
        driver.add_flush(0);
        driver.publish();
        while driver.answers() == 0 {
            let called = poll(&mut [PollFd::new(&call, PollFlags::IN)], Some(&PATIENCE))?;
            ensure!(called == 1, "a flush was not answered");
            let _ = driver.call.read();
        }
        let took = began.elapsed();
        driver.answer();
        ensure!(driver.status(0) == 0, "a flush failed:\n{}", self.daemon.log());
        Ok(took)
    }
}

/// Starts a daemon with `args`.
pub(crate) fn start(args: &[&OsStr]) -> Result<Daemon> {
    Daemon::start(DAEMON, args)
}

/// Loads a page.
pub(crate) fn load(memory: &VolatileSlice<'_>, at: usize) -> Result<[u8; PAGE]> {
    let mut page = [0; PAGE];
    memory.subslice(at * PAGE, PAGE)?.copy_to(&mut page);
    Ok(page)
}

/// Stores a page.
pub(crate) fn store(memory: &VolatileSlice<'_>, at: usize, page: &[u8; PAGE]) -> Result<()> {
    memory.subslice(at * PAGE, PAGE)?.copy_from(page);
    Ok(())
}
