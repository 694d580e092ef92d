// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Leases: the right to use pfns after a call returns.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use thiserror::Error;

use crate::lock::lock;
use crate::page::{NrPages, PfnRange, Pgoff, PgoffRange};
use crate::pagemap::Pagemap;
use crate::store::Access;

/// The store was disabled; none of its pfns is good for anything any more.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{store} was disabled")]
pub struct StoreDisabled {
    /// The store's name.
    pub store: String,
}

/// The right to use a run of pfns, for as long as this lives: their store can't go while it does.
///
/// Taken with [`Extent::lease`](crate::Extent::lease). Whoever hands pages on – to a frontend that
/// maps them, to I/O that goes on – holds one meanwhile.
pub struct Lease {
    pagemap: Arc<Pagemap>,
    pfns: PfnRange,
    /// Names the holder among those to be told, if it is one.
    revoker: Option<u64>,
}

/// Tells a holder that its lease must go.
type Revoke = Box<dyn FnOnce() + Send>;

/// The holders to be told when a store is disabled.
#[derive(Default)]
pub(crate) struct Revokers(Mutex<State>);

#[derive(Default)]
struct State {
    next: u64,
    holders: Vec<(u64, Revoke)>,
}

impl Revokers {
    fn add(&self, revoke: Revoke) -> u64 {
        let mut state = lock(&self.0);
        let id = state.next;
        state.next += 1;
        state.holders.push((id, revoke));
        id
    }

    fn remove(&self, id: u64) {
        let mut state = lock(&self.0);
        // The closure may own anything, and is dropped without the lock.
        let at = state.holders.iter().position(|(have, _)| *have == id);
        let removed = at.map(|at| state.holders.remove(at));
        drop(state);
        drop(removed);
    }

    /// Tells them all, the last one that came first, without holding a lock.
    pub(crate) fn revoke_all(&self) {
        loop {
            let last = lock(&self.0).holders.pop();
            match last {
                Some((_, revoke)) => revoke(),
                None => return,
            }
        }
    }
}

impl Lease {
    pub(crate) fn try_new(
        pagemap: Arc<Pagemap>,
        pfns: PfnRange,
        revoke: Option<Revoke>,
    ) -> Result<Self, StoreDisabled> {
        // In this order: a holder that is in the list when the store is disabled is told, and one
        // that comes later isn't let in.
        let revoker = revoke.map(|revoke| pagemap.revokers().add(revoke));
        if let Err(disabled) = pagemap.hold() {
            if let Some(id) = revoker {
                pagemap.revokers().remove(id);
            }
            return Err(disabled);
        }
        Ok(Self { pagemap, pfns, revoker })
    }

    /// The page frames, in order.
    pub fn pfns(&self) -> PfnRange {
        self.pfns
    }

    /// How many pages.
    pub fn nr_pages(&self) -> NrPages {
        self.pfns.nr_pages()
    }

    /// The store they lie in.
    pub fn pagemap(&self) -> &Arc<Pagemap> {
        &self.pagemap
    }

    /// The file they lie in, for others to map.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.pagemap.store().fd()
    }

    /// Where in [`fd`](Self::fd) the first page lies; its byte offset is [`Pgoff::bytes`].
    pub fn pgoff(&self) -> Pgoff {
        self.pages().start()
    }

    /// The store's own pages.
    pub fn pages(&self) -> PgoffRange {
        let pages = self.pfns.rebase(self.pagemap.pfns().start(), Pgoff::ZERO);
        pages.expect("a lease is of its store's pages")
    }

    /// Whether the store is being disabled, and waits for this lease to go.
    pub fn is_revoked(&self) -> bool {
        self.pagemap.is_disabled()
    }

    /// What the pages may be used for.
    pub fn access(&self) -> Access {
        self.pagemap.store().access()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(id) = self.revoker {
            self.pagemap.revokers().remove(id);
        }
        self.pagemap.release();
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lease of {} of {}", self.pfns, self.pagemap.store().name())
    }
}
