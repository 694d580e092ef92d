// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is measured of a device, as the control protocol tells it.

use std::time::Instant;

use pfn_blk::{PAGE_SIZE, Pagemap};
use serde::{Deserialize, Serialize};
use vhost_pmem::{CachedPages, Counts};

/// What a device has done since its process started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counters {
    pub(crate) flushes: Flushes,
    /// Requests that were no flushes, all of which fail.
    pub(crate) refused: Refused,
    /// Queues that could not be read, and answers that could not be given.
    pub(crate) queue_errors: u64,
    /// How many requests were answered at once.
    pub(crate) batches: Histogram,
    /// Batches that waited, as `--max-syncs` was reached.
    pub(crate) batches_limited: u64,
    /// How long syncs took, in nanoseconds.
    pub(crate) syncs: Histogram,
    /// How many of them failed.
    pub(crate) sync_errors: u64,
    /// Frontends that have connected.
    pub(crate) frontends: u64,
    /// How often a guest's pages were mapped.
    pub(crate) activations: u64,
    /// How often they could not be.
    pub(crate) activations_failed: u64,
}

/// Flushes, by how they were answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Flushes {
    pub(crate) done: u64,
    /// As a store had failed.
    pub(crate) failed: u64,
    /// As the guest's pages were not mapped.
    pub(crate) unmapped: u64,
}

/// Requests that were no flushes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refused {
    pub(crate) malformed: u64,
    /// Of a type that there isn't.
    pub(crate) unknown: u64,
}

/// Numbers, sorted by size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Histogram {
    /// The largest number of each class but the last one.
    pub(crate) bounds: Vec<u64>,
    /// How many there are of each class.
    pub(crate) counts: Vec<u64>,
    /// All numbers together.
    pub(crate) sum: u64,
}

impl From<vhost_pmem::Histogram> for Histogram {
    fn from(histogram: vhost_pmem::Histogram) -> Self {
        let vhost_pmem::Histogram { bounds, counts, sum } = histogram;
        Self { bounds: bounds.to_vec(), counts, sum }
    }
}

impl From<Counts> for Counters {
    fn from(counts: Counts) -> Self {
        Self {
            flushes: Flushes {
                done: counts.flushes_done,
                failed: counts.flushes_failed,
                unmapped: counts.flushes_unmapped,
            },
            refused: Refused { malformed: counts.malformed, unknown: counts.unknown },
            queue_errors: counts.queue_errors,
            batches: counts.batches.into(),
            batches_limited: counts.batches_limited,
            syncs: counts.syncs.into(),
            sync_errors: counts.sync_errors,
            frontends: counts.frontends,
            activations: counts.activations,
            activations_failed: counts.activations_failed,
        }
    }
}

/// What of a store is in the page cache, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cache {
    pub(crate) store: String,
    pub(crate) cached: u64,
    /// What was changed and not written yet.
    pub(crate) dirty: u64,
    /// What is being written.
    pub(crate) writeback: u64,
}

impl Cache {
    /// None where the kernel can't tell, or not until `until`.
    pub(super) fn of(pagemap: &Pagemap, until: Instant) -> Option<Self> {
        let store = pagemap.store();
        let counted = vhost_pmem::cached_pages(store.fd(), store.nr_pages().bytes(), until);
        let CachedPages { cached, dirty, writeback } = counted.ok()?;
        let [cached, dirty, writeback] = [cached, dirty, writeback].map(|pages| pages * PAGE_SIZE);
        Some(Self { store: store.name().to_owned(), cached, dirty, writeback })
    }
}
