// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Making pages durable: what needs a sync, and what it means when one fails.

use std::fmt;
use std::io;
use std::sync::Arc;

use thiserror::Error;

use crate::bio::BioError;
use crate::lease::StoreDisabled;
use crate::target::Target;

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
    /// A target's own records, without which the data is not found again.
    #[error("cannot update {0}")]
    Metadata(&'static str, #[source] Arc<BioError>),
}

/// What a persist ends at: a [`Pagemap`](crate::Pagemap), or a target that has more to do than to
/// hand it on, such as a [`Mirror`](crate::Mirror).
pub trait SyncPoint: fmt::Debug + Send + Sync {
    /// Makes everything that was written to it before the call durable.
    fn sync(&self) -> Result<(), PersistError>;
}

/// What must be synced for some pages to be durable, each once.
///
/// Targets fill it on the way down ([`Target::persist`]); whoever asked then syncs.
#[derive(Debug, Default)]
pub struct SyncSet<'a> {
    points: Vec<&'a dyn SyncPoint>,
}

impl<'a> SyncSet<'a> {
    /// Adds a store or target, unless it is in the set already.
    pub fn add(&mut self, point: &'a dyn SyncPoint) {
        if !self.points.iter().any(|have| std::ptr::addr_eq(*have, point)) {
            self.points.push(point);
        }
    }

    /// How many that is.
    pub fn len(&self) -> usize {
        self.points.len()
    }

    /// Whether nothing needs a sync.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// Syncs them all, also behind one that fails, and returns the first error.
    pub fn sync(self) -> Result<(), PersistError> {
        self.points.into_iter().map(SyncPoint::sync).fold(Ok(()), Result::and)
    }
}

/// Makes all pages of `target` durable.
pub(crate) fn persist_all(target: &dyn Target) -> Result<(), PersistError> {
    let mut syncs = SyncSet::default();
    target.persist(target.pages(), &mut syncs);
    syncs.sync()
}
