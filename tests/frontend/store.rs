// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A store whose syncs can be watched, held up and made to fail.

use std::io;
use std::sync::{Arc, Condvar, Mutex};

use pfn_blk::{HookedStore, MemoryStore, NrPages, Store, StoreOperation};

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

impl Control {
    fn hook(&self, operation: StoreOperation) -> io::Result<()> {
        if operation == StoreOperation::Persist { self.sync() } else { Ok(()) }
    }

    /// Whoever is to sync does it here.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.begun += 1;
        self.changed.notify_all();
        let state = self.changed.wait_while(state, |state| state.held).unwrap();
        if state.failing { Err(io::Error::other("injected")) } else { Ok(()) }
    }
}

/// Memory whose syncs are under control.
pub(crate) fn controlled_store(bytes: u64, control: Arc<Control>) -> Box<dyn Store> {
    let store = MemoryStore::new("controlled", NrPages::try_from_bytes(bytes).unwrap()).unwrap();
    Box::new(HookedStore::new(store, move |operation| control.hook(operation)))
}
