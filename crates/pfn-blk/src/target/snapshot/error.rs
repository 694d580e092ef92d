// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is wrong with a snapshot.

use std::io;
use std::sync::Arc;

use thiserror::Error;

use super::base::{BaseChange, MarkedStore, NotTold};
use crate::claim::Claimed;
use crate::page::NrPages;
use crate::persist::PersistError;
use crate::target::metadata::InvalidMetadata;

/// An origin and a COW store that make no snapshot.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum InvalidSnapshot {
    /// A size that isn't the origin's.
    #[error("the snapshot has {nr_pages}, its origin only {origin}")]
    LargerThanOrigin {
        /// The snapshot's size.
        nr_pages: NrPages,
        /// The origin's size.
        origin: NrPages,
    },
    /// A chunk of which too much is copied for a single page.
    #[error("a chunk of {0} is too large; at most 16 MiB, 32768 sectors, are possible")]
    LargeChunk(NrPages),
    /// More chunks than can be counted.
    #[error("with chunks of {0} there are more than 2^32 - 1; choose a larger chunk")]
    SmallChunk(NrPages),
    /// A COW store that has no room for even a chunk.
    #[error("a COW store of {cow} is too small; it needs {least} at least, to hold one chunk")]
    SmallCow {
        /// The COW store's size.
        cow: NrPages,
        /// The least that it must be.
        least: NrPages,
    },
    /// A COW store that lost its end.
    #[error(
        "the COW store has {used} chunks in use, but room for {capacity} only: \
         its end was cut off"
    )]
    CutOff {
        /// How many chunks the map counts.
        used: u64,
        /// How many there is room for.
        capacity: u64,
    },
    /// An entry of the map that isn't what was written.
    #[error("the COW store's map is damaged at entry {0}: the checksum doesn't match")]
    Entry(u64),
    /// The COW store isn't one, or another's.
    #[error("the COW store can't be used")]
    Metadata(#[from] InvalidMetadata),
    /// What the origin holds may not be durable, and what equals it isn't kept anywhere else.
    #[error("cannot sync the origin")]
    Origin(#[source] PersistError),
    /// The COW store was made for something else, or for what the origin once was.
    #[error("the file beneath isn't what it was when the changes were made: {0}")]
    Base(BaseChange),
    /// The COW store is blank, and what was written to the origin is in another.
    #[error(
        "nothing is kept in it yet, but a snapshot was taken of {}, and its changes since are in {}",
        .0.store, .0.mark.cow.display()
    )]
    Marked(MarkedStore),
    /// It can't be told what the origin is.
    #[error("cannot tell what {store} holds")]
    Content {
        /// The store.
        store: String,
        /// The system's reason.
        #[source]
        source: Arc<io::Error>,
    },
    /// A COW store with changes, where a blank one was asked for.
    #[error("the COW store has changes already, in {used} chunks; name a new file")]
    NotBlank {
        /// How many chunks.
        used: u64,
    },
    /// Someone else writes to the origin or the COW store.
    #[error(transparent)]
    Claimed(#[from] Claimed),
}

impl From<NotTold> for InvalidSnapshot {
    fn from(NotTold { store, source }: NotTold) -> Self {
        Self::Content { store, source: Arc::new(source) }
    }
}

impl From<NotTold> for PersistError {
    fn from(NotTold { store, source }: NotTold) -> Self {
        Self::Sync { store, source: Arc::new(source) }
    }
}
