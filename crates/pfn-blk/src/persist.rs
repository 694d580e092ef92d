// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Making pages durable: which stores need a sync, and what it means when one fails.

use std::io;
use std::sync::Arc;

use thiserror::Error;

use crate::lease::StoreDisabled;
use crate::pagemap::Pagemap;

/// Why pages could not be made durable.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum PersistError {
    /// The store is gone.
    #[error(transparent)]
    Disabled(#[from] StoreDisabled),
    /// The sync itself failed; what was written since the last good one may be lost.
    #[error("cannot sync {store}")]
    Sync {
        /// The store's name.
        store: String,
        /// The system's reason.
        #[source]
        source: Arc<io::Error>,
    },
    /// A sync failed earlier, and no later success could make up for it.
    #[error("{store} failed a sync earlier and stays failed")]
    Failed {
        /// The store's name.
        store: String,
        /// The reason of the sync that failed.
        #[source]
        source: Arc<io::Error>,
    },
}

/// The stores that must be synced for some pages to be durable, each once.
///
/// Targets fill it on the way down ([`Target::persist`](crate::Target::persist)); whoever asked
/// then syncs.
#[derive(Debug, Default)]
pub struct SyncSet<'a> {
    pagemaps: Vec<&'a Pagemap>,
}

impl<'a> SyncSet<'a> {
    /// Adds a store, unless it is in the set already.
    pub fn add(&mut self, pagemap: &'a Pagemap) {
        if !self.pagemaps.iter().any(|have| std::ptr::eq(*have, pagemap)) {
            self.pagemaps.push(pagemap);
        }
    }

    /// How many stores that is.
    pub fn len(&self) -> usize {
        self.pagemaps.len()
    }

    /// Whether nothing needs a sync.
    pub fn is_empty(&self) -> bool {
        self.pagemaps.is_empty()
    }

    /// Syncs every store, also behind one that fails, and returns the first error.
    pub fn sync(self) -> Result<(), PersistError> {
        self.pagemaps.into_iter().map(Pagemap::persist).fold(Ok(()), Result::and)
    }
}
