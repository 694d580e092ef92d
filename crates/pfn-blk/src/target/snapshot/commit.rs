// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a COW store's header comes to say, and when: persists and merges.

use std::sync::{Arc, PoisonError};

use super::base::{self, Found};
use super::header::Record;
use super::map::Map;
use super::{Snapshot, no_random};
use crate::bio::BioError;
use crate::lock::lock;
use crate::persist::{PersistError, SyncPoint, persist_all};
use crate::store::{Access, Id};
use crate::target::metadata::{self, range};

/// How much [`Snapshot::merge`] copies at a time, while bios wait.
const MERGE_BYTES: u64 = 16 << 20;

/// What the COW store's header says.
#[derive(Debug)]
pub(super) struct Committed {
    /// Whether there is a header at all.
    pub(super) blank: bool,
    /// How many entries it counts.
    pub(super) count: u64,
    /// What else it says, or should say.
    pub(super) record: Record,
    /// Whether it does.
    pub(super) is_recorded: bool,
    /// Whether the origin has the generation of a merge that has begun.
    pub(super) has_moved: bool,
    /// Why its content is unknown. Until that is cleared, chunks that it may have freed are not reused.
    pub(super) failed: Option<PersistError>,
}

impl Snapshot {
    /// Writes changes to the origin, makes them durable there, and forgets them, until there are
    /// none or `chunks` were merged: the snapshot holds what it did, and so much of its COW store is
    /// free. The origin must be writable. Returns how many chunks that were.
    ///
    /// Bios go on between one piece and the next, and may change more. After an error or a crash
    /// nothing is lost, and the call may be repeated.
    pub fn merge(&self, chunks: u64) -> Result<u64, BioError> {
        self.check_writable()?;
        let mut merged = 0;
        while merged < chunks {
            let mut committed = lock(&self.committed);
            if let Some(failed) = &committed.failed {
                return Err(failed.clone().into());
            }
            let _gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
            match self.merge_last(&mut committed)? {
                0 => break,
                some => merged += some,
            }
        }
        Ok(merged)
    }

    /// Does what [`merge`](Self::merge) does before it writes, so that the store stays good for an
    /// origin whose files are grown then.
    pub fn begin_merge(&self) -> Result<(), BioError> {
        self.check_writable()?;
        let mut committed = lock(&self.committed);
        match &committed.failed {
            Some(failed) => Err(failed.clone().into()),
            None => Ok(self.announce_merge(&mut committed)?),
        }
    }

    /// Clears a failure to update the COW store if the update succeeds now. For an operator, like
    /// [`Pagemap::clear_failure`](crate::Pagemap::clear_failure). Returns whether there was one.
    pub fn clear_failure(&self) -> Result<bool, PersistError> {
        let mut committed = lock(&self.committed);
        if committed.failed.is_none() {
            return Ok(false);
        }
        // The last count is still right: no chunk was freed or reused since.
        let count = committed.count;
        self.write_header(&mut committed, count)?;
        committed.failed = None;
        Ok(true)
    }

    fn check_writable(&self) -> Result<(), BioError> {
        match self.origin.access() {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(BioError::ReadOnly { store: "the origin".to_owned() }),
        }
    }

    /// Merges the last chunks that were taken, and gives them back.
    fn merge_last(&self, committed: &mut Committed) -> Result<u64, BioError> {
        let to = self.with_map(Map::len);
        let from = to.saturating_sub((MERGE_BYTES / self.layout.chunk.bytes()).max(1));
        if to == 0 {
            return Ok(0);
        }
        if to > committed.count {
            // Until the origin is synced, what stands in it is hidden by an entry that is durable.
            self.commit(committed)?;
        }
        self.announce_merge(committed)?;
        for index in from..to {
            let pages = self.layout.chunk_pages(self.with_map(|map| map.chunk(index)));
            let at = range(self.layout.data_page(index), pages.nr_pages().get());
            let data = metadata::read(&*self.cow, at)?;
            metadata::write(&*self.origin, pages.start().get(), &data)?;
        }
        persist_all(&*self.origin)?;
        if from == 0 {
            // The origin is whole by itself, and what it is now is what the store is for.
            let found = Found::of(&*self.origin, self.may_begin).map_err(PersistError::from)?;
            committed.record = Record { base: Some(found.base), next: None, ..committed.record };
            committed.has_moved = false;
        }
        self.write_header(committed, from)?;
        self.map.write().unwrap_or_else(PoisonError::into_inner).truncate(from);
        Ok(to - from)
    }

    /// Has the header say that the origin is about to change, and then the origin. From here on other
    /// COW stores over it are stale.
    fn announce_merge(&self, committed: &mut Committed) -> Result<(), PersistError> {
        if committed.has_moved {
            return Ok(());
        }
        let next = match committed.record.next {
            Some(next) => next,
            None => {
                let next = Id::random().map_err(no_random)?;
                committed.record.next = Some(next);
                committed.record.has_merged = true;
                self.write_header(committed, committed.count)?;
                next
            }
        };
        base::move_on(&*self.origin, next)?;
        committed.has_moved = true;
        Ok(())
    }

    /// Makes everything durable that was written so far.
    fn commit(&self, committed: &mut Committed) -> Result<(), PersistError> {
        let to = self.with_map(Map::len);
        let from = committed.count;
        if from == to {
            persist_all(&*self.cow)?;
            let is_known = committed.is_recorded || self.cow.access() == Access::ReadOnly;
            return if is_known { Ok(()) } else { self.write_header(committed, to) };
        }
        if committed.blank {
            // No entry without a header: a blank store is told by both.
            self.write_header(committed, 0)?;
        }
        for at in self.with_map(|map| map.pages(from, to)) {
            let page = self.with_map(|map| map.page(at));
            metadata::write(&*self.cow, self.layout.map_page(at), &page).map_err(not_updated)?;
        }
        persist_all(&*self.cow)?;
        self.write_header(committed, to)
    }

    /// Has the header count the first `count` entries.
    fn write_header(&self, committed: &mut Committed, count: u64) -> Result<(), PersistError> {
        let header = self.with_map(|map| map.header(count, &committed.record));
        let header = metadata::encode(&header);
        let written = metadata::write(&*self.cow, 0, &header).map_err(not_updated);
        if let Err(error) = written.and_then(|()| persist_all(&*self.cow)) {
            committed.failed = Some(error.clone());
            return Err(error);
        }
        committed.blank = false;
        committed.is_recorded = true;
        committed.count = count;
        Ok(())
    }
}

impl SyncPoint for Snapshot {
    fn sync(&self) -> Result<(), PersistError> {
        let mut committed = lock(&self.committed);
        match &committed.failed {
            Some(failed) => Err(failed.clone()),
            None => self.commit(&mut committed),
        }
    }
}

pub(super) fn not_updated(error: BioError) -> PersistError {
    PersistError::Metadata("a snapshot's map", Arc::new(error))
}
