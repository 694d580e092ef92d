// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A store for the unit tests, whose syncs can be counted and made to fail.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::page::NrPages;
use crate::store::{HookedStore, MemoryStore, Store, StoreOperation};

#[derive(Debug, Default)]
pub(crate) struct Control {
    fail_next: AtomicBool,
    syncs: AtomicU64,
}

impl Control {
    /// Has the next read, write or sync fail.
    pub(crate) fn fail_next(&self) {
        self.fail_next.store(true, Ordering::SeqCst);
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::SeqCst)
    }

    fn hook(&self, operation: StoreOperation) -> io::Result<()> {
        if operation == StoreOperation::Persist {
            self.syncs.fetch_add(1, Ordering::SeqCst);
        }
        match self.fail_next.swap(false, Ordering::SeqCst) {
            true => Err(io::Error::other("injected")),
            false => Ok(()),
        }
    }
}

/// Memory that can be made to fail.
pub(crate) fn faulty_store(name: &str, nr_pages: u64) -> (Box<dyn Store>, Arc<Control>) {
    let store = MemoryStore::new(name, NrPages::try_new(nr_pages).unwrap()).unwrap();
    let control = Arc::new(Control::default());
    let hooked = Arc::clone(&control);
    (Box::new(HookedStore::new(store, move |operation| hooked.hook(operation))), control)
}
