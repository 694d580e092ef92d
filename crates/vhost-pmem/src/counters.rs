// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device has done so far: the one place where it is counted.
//!
//! The thread that answers flushes counts, and others look meanwhile: each number is an atomic of its
//! own, without order and without a lock. So a look may see a batch whose sync it doesn't see yet;
//! each number by itself is exact.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pfn_blk::PersistError;

use crate::request::Request;
use crate::spec::{RequestType, Status};

/// The sizes that batches are sorted by, in requests. A queue holds no more than the last.
const BATCH_SIZES: [u64; 12] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 32768];

/// The times that syncs are sorted by, in nanoseconds: from memory to a disk that hangs.
const SYNC_NANOSECONDS: [u64; 19] = [
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// What a device has done since it was made, whoever its frontends were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Flushes that were answered with success: guests' requests, and other processes' fsyncs of a
    /// published window.
    pub flushes_done: u64,
    /// The same, which failed, as a store had failed.
    pub flushes_failed: u64,
    /// Flushes that failed, as the guest's pages were not mapped.
    pub flushes_unmapped: u64,
    /// Requests that were none.
    pub malformed: u64,
    /// Requests of a type that there isn't.
    pub unknown: u64,
    /// Queues that could not be read, and answers that could not be given.
    pub queue_errors: u64,
    /// How many requests were taken at once.
    pub batches: Histogram,
    /// Batches that waited for their turn, as a limit was reached.
    pub batches_limited: u64,
    /// How long syncs took, in nanoseconds, also those that failed: one for each batch that has a
    /// flush, and of a served window one more when a frontend leaves; one for each fsync of a
    /// published window, without the writeback that the kernel does before. None where an earlier one
    /// had failed, so that none was tried.
    pub syncs: Histogram,
    /// How many of them failed.
    pub sync_errors: u64,
    /// Frontends that have connected.
    pub frontends: u64,
    /// How often a guest's pages were mapped.
    pub activations: u64,
    /// How often they could not be.
    pub activations_failed: u64,
    /// How many pages the guest reaches now: all, or none where its flushes fail as not all are mapped.
    pub mapped_pages: u64,
}

/// Numbers, sorted by size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram {
    /// The largest number of each class, but for the last class, which has all that are larger.
    pub bounds: &'static [u64],
    /// How many there are of each class: one more than there are bounds.
    pub counts: Vec<u64>,
    /// All numbers together.
    pub sum: u64,
}

/// Numbers that are being sorted into `N` classes and one for those that are larger.
#[derive(Debug)]
struct Sorter<const N: usize> {
    bounds: &'static [u64; N],
    counts: [Counter; N],
    larger: Counter,
    sum: Counter,
}

impl<const N: usize> Sorter<N> {
    fn new(bounds: &'static [u64; N]) -> Self {
        let counts = std::array::from_fn(|_| Counter::default());
        Self { bounds, counts, larger: Counter::default(), sum: Counter::default() }
    }

    fn add(&self, number: u64) {
        let class = self.bounds.partition_point(|bound| *bound < number);
        self.counts.get(class).unwrap_or(&self.larger).add(1);
        self.sum.add(number);
    }

    fn read(&self) -> Histogram {
        let counts = self.counts.iter().chain([&self.larger]).map(Counter::read).collect();
        Histogram { bounds: self.bounds, counts, sum: self.sum.read() }
    }
}

#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a device counts.
#[derive(Debug)]
pub(crate) struct Counters {
    flushes_done: Counter,
    flushes_failed: Counter,
    flushes_unmapped: Counter,
    malformed: Counter,
    unknown: Counter,
    queue_errors: Counter,
    batches: Sorter<{ BATCH_SIZES.len() }>,
    batches_limited: Counter,
    syncs: Sorter<{ SYNC_NANOSECONDS.len() }>,
    sync_errors: Counter,
    frontends: Counter,
    activations: Counter,
    activations_failed: Counter,
    mapped_pages: AtomicU64,
}

impl Counters {
    pub(crate) fn new() -> Self {
        Self {
            flushes_done: Counter::default(),
            flushes_failed: Counter::default(),
            flushes_unmapped: Counter::default(),
            malformed: Counter::default(),
            unknown: Counter::default(),
            queue_errors: Counter::default(),
            batches: Sorter::new(&BATCH_SIZES),
            batches_limited: Counter::default(),
            syncs: Sorter::new(&SYNC_NANOSECONDS),
            sync_errors: Counter::default(),
            frontends: Counter::default(),
            activations: Counter::default(),
            activations_failed: Counter::default(),
            mapped_pages: AtomicU64::new(0),
        }
    }

    /// Requests that were given their statuses, and are returned at once.
    pub(crate) fn batch(&self, requests: &[Request], statuses: &[Status], mapped: bool) {
        self.batches.add(requests.len() as u64);
        for (request, status) in requests.iter().zip(statuses) {
            let count = match (request.kind(), status) {
                (Ok(RequestType::Flush), _) if !mapped => &self.flushes_unmapped,
                (Ok(RequestType::Flush), Status::Success) => &self.flushes_done,
                (Ok(RequestType::Flush), Status::Failure) => &self.flushes_failed,
                (Ok(RequestType::Unknown(_)), _) => &self.unknown,
                (Err(_), _) => &self.malformed,
            };
            count.add(1);
        }
    }

    /// Another process has synced a published window, or failed to.
    pub(crate) fn flush(&self, done: bool) {
        if done { &self.flushes_done } else { &self.flushes_failed }.add(1);
    }

    /// A batch had to wait for its turn.
    pub(crate) fn batch_limited(&self) {
        self.batches_limited.add(1);
    }

    /// A sync came to an end.
    pub(crate) fn sync(&self, took: Duration, result: &Result<(), PersistError>) {
        match result {
            // Nothing was tried, and so nothing took any time.
            Err(PersistError::Failed { .. } | PersistError::Disabled(_)) => return,
            Err(_) => self.sync_errors.add(1),
            Ok(()) => {}
        }
        self.syncs.add(took.as_nanos().try_into().unwrap_or(u64::MAX));
    }

    pub(crate) fn queue_error(&self) {
        self.queue_errors.add(1);
    }

    pub(crate) fn frontend(&self) {
        self.frontends.add(1);
    }

    /// A guest's pages were mapped, or could not be.
    pub(crate) fn activation(&self, mapped: bool) {
        if mapped { &self.activations } else { &self.activations_failed }.add(1);
    }

    /// So many pages are mapped from now on. In one order with what an activation counts: see
    /// `Connection::map`.
    pub(crate) fn set_mapped(&self, pages: u64) {
        self.mapped_pages.store(pages, Ordering::SeqCst);
    }

    pub(crate) fn read(&self) -> Counts {
        Counts {
            flushes_done: self.flushes_done.read(),
            flushes_failed: self.flushes_failed.read(),
            flushes_unmapped: self.flushes_unmapped.read(),
            malformed: self.malformed.read(),
            unknown: self.unknown.read(),
            queue_errors: self.queue_errors.read(),
            batches: self.batches.read(),
            batches_limited: self.batches_limited.read(),
            syncs: self.syncs.read(),
            sync_errors: self.sync_errors.read(),
            frontends: self.frontends.read(),
            activations: self.activations.read(),
            activations_failed: self.activations_failed.read(),
            mapped_pages: self.mapped_pages.load(Ordering::SeqCst),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histogram_sorts_by_the_least_bound_that_is_not_smaller() {
        let sorter = Sorter::new(&[1, 2, 4]);
        [0, 1, 2, 3, 4, 5, 1000].into_iter().for_each(|number| sorter.add(number));
        let expected = Histogram { bounds: &[1, 2, 4], counts: vec![2, 1, 2, 2], sum: 1015 };
        assert_eq!(sorter.read(), expected);
    }
}
