// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device's calls, for which a guest's driver sleeps.

use std::os::fd::OwnedFd;

use anyhow::{Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::driver::Driver;
use crate::vmm::duplicate;

/// How long an answer may take.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// A queue's call eventfd, and how often it was written to.
pub(crate) struct Calls {
    fd: OwnedFd,
    count: u64,
}

impl Calls {
    /// Those from now on.
    pub(crate) fn new(driver: &Driver) -> Self {
        // Older ones.
        let _ = driver.call.read();
        Self { fd: duplicate(&driver.call), count: 0 }
    }

    /// Sleeps until there is an answer.
    pub(crate) fn wait(&mut self, driver: &Driver) -> Result<()> {
        while driver.answers() == 0 {
            let called = poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&PATIENCE))?;
            ensure!(called == 1, "a request was not answered");
            self.take(driver);
        }
        Ok(())
    }

    /// How many there were.
    pub(crate) fn count(&mut self, driver: &Driver) -> u64 {
        self.take(driver);
        self.count
    }

    fn take(&mut self, driver: &Driver) {
        // An error means that there was none.
        self.count += driver.call.read().unwrap_or(0);
    }
}
