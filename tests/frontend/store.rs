// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A store whose syncs can be watched, held up and made to fail.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex};

use pfn_blk::{Access, MemoryStore, NrPages, Pgoff, Store};

/// What a test sees and does.
#[derive(Debug, Default)]
pub(crate) struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    begun: u64,
    held: bool,
    failing: bool,
}

impl Control {
    /// From now on a sync, once begun, waits.
    pub(crate) fn hold(&self) {
        self.state.lock().unwrap().held = true;
    }

    /// Lets the syncs go on.
    pub(crate) fn release(&self) {
        self.state.lock().unwrap().held = false;
        self.changed.notify_all();
    }

    /// Whether syncs fail from now on.
    pub(crate) fn set_failing(&self, failing: bool) {
        self.state.lock().unwrap().failing = failing;
    }

    /// How many syncs have begun.
    pub(crate) fn syncs(&self) -> u64 {
        self.state.lock().unwrap().begun
    }

    /// Waits until that many syncs have begun.
    pub(crate) fn wait_for_syncs(&self, count: u64) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |state| state.begun < count).unwrap());
    }
}

#[derive(Debug)]
pub(crate) struct ControlledStore {
    store: MemoryStore,
    control: Arc<Control>,
}

impl ControlledStore {
    pub(crate) fn new(bytes: u64, control: Arc<Control>) -> Self {
        let nr_pages = NrPages::try_from_bytes(bytes).unwrap();
        Self { store: MemoryStore::new("controlled", nr_pages).unwrap(), control }
    }
}

impl Store for ControlledStore {
    fn name(&self) -> &str {
        self.store.name()
    }

    fn nr_pages(&self) -> NrPages {
        self.store.nr_pages()
    }

    fn access(&self) -> Access {
        self.store.access()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.store.fd()
    }

    fn read(&self, at: Pgoff, buffer: &mut [u8]) -> io::Result<()> {
        self.store.read(at, buffer)
    }

    fn write(&self, at: Pgoff, buffer: &[u8]) -> io::Result<()> {
        self.store.write(at, buffer)
    }

    fn persist(&self) -> io::Result<()> {
        let mut state = self.control.state.lock().unwrap();
        state.begun += 1;
        self.control.changed.notify_all();
        let state = self.control.changed.wait_while(state, |state| state.held).unwrap();
        if state.failing { Err(io::Error::other("injected")) } else { Ok(()) }
    }
}
