// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Making pages durable: what needs a sync, and what it means when one fails.

use std::fmt;
use std::io;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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

/// How many syncs are under way at once. A thread takes longer to begin than a sync of what is clean.
const AT_ONCE: usize = 8;

/// Does something with each of `parts`, with some at once, as each may wait for a disk of its own.
pub(crate) fn at_once<T: Sync, R: Send>(parts: &[T], act: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let take = || {
        let mut results = Vec::new();
        while let Some((at, part)) = numbered(parts, next.fetch_add(1, Ordering::Relaxed)) {
            results.push((at, act(part)));
        }
        results
    };
    let mut results = thread::scope(|scope| {
        let begin = |_| thread::Builder::new().spawn_scoped(scope, take).ok();
        // Where there is no thread to be had the others do more.
        let begun: Vec<_> = (1..parts.len().min(AT_ONCE)).filter_map(begin).collect();
        let mut results = take();
        for thread in begun {
            results.extend(thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        results
    });
    results.sort_unstable_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

fn numbered<T>(parts: &[T], at: usize) -> Option<(usize, &T)> {
    Some((at, parts.get(at)?))
}

/// Makes all pages of `target` durable.
pub(crate) fn persist_all(target: &dyn Target) -> Result<(), PersistError> {
    let mut syncs = SyncSet::default();
    target.persist(target.pages(), &mut syncs);
    syncs.sync()
}
