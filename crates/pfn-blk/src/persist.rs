// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Making pages durable: what needs a sync, and what it means when one fails.

use std::fmt;
use std::io;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;

use thiserror::Error;
use tracing::error;

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

    /// Syncs them all at once, also where one fails. Of several errors it returns one, and logs the
    /// others, unless they are old.
    pub fn sync(self) -> Result<(), PersistError> {
        let results = at_once(&self.points, |point| point.sync());
        let mut errors: Vec<_> = results.into_iter().filter_map(Result::err).collect();
        // What went wrong now says more than what did earlier.
        errors.sort_by_key(|error| matches!(error, PersistError::Failed { .. }));
        let mut errors = errors.into_iter();
        let Some(first) = errors.next() else { return Ok(()) };
        for error in errors.filter(|error| !matches!(error, PersistError::Failed { .. })) {
            error!(error = &error as &dyn std::error::Error, "another store failed with it");
        }
        Err(first)
    }
}

/// Does something with each of `parts` at once, as each waits for a disk of its own.
pub(crate) fn at_once<T: Sync, R: Send>(parts: &[T], act: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let Some((first, others)) = parts.split_first() else { return Vec::new() };
    let act = &act;
    thread::scope(|scope| {
        let begin = |part| thread::Builder::new().spawn_scoped(scope, move || act(part));
        let begun: Vec<_> = others.iter().map(|part| (part, begin(part))).collect();
        let mut results = vec![act(first)];
        results.extend(begun.into_iter().map(|(part, thread)| match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            // No thread to be had.
            Err(_) => act(part),
        }));
        results
    })
}

/// Makes all pages of `target` durable.
pub(crate) fn persist_all(target: &dyn Target) -> Result<(), PersistError> {
    let mut syncs = SyncSet::default();
    target.persist(target.pages(), &mut syncs);
    syncs.sync()
}
