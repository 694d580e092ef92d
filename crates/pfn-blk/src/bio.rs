// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Block I/O: bios, and the pieces of them that travel down a stack.

use std::fmt;
use std::io;
use std::sync::Arc;

use thiserror::Error;

use crate::lease::StoreDisabled;
use crate::page::{NrPages, PgoffRange};
use crate::persist::PersistError;
use crate::region::OutOfRange;
use crate::sg::SgList;

/// Which way data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the pages to the caller.
    Read,
    /// From the caller to the pages.
    Write,
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a bio failed: the error of the layer that failed it.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum BioError {
    /// The region doesn't have the pages.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
    /// A buffer's size isn't that of its pages.
    #[error("{bytes} bytes of buffers for {pages}")]
    Buffers {
        /// The pages.
        pages: PgoffRange,
        /// The size of all buffers.
        bytes: usize,
    },
    /// Pinned pages that are more or fewer.
    #[error("{pinned} are pinned for {pages}")]
    Pinned {
        /// The pages.
        pages: PgoffRange,
        /// How many are pinned.
        pinned: NrPages,
    },
    /// A store failed; the pages are the store's own.
    #[error("cannot {direction} {pages} of {store}")]
    Store {
        /// Which way.
        direction: Direction,
        /// The pages.
        pages: PgoffRange,
        /// The store's name.
        store: String,
        /// The system's reason.
        #[source]
        source: Arc<io::Error>,
    },
    /// A note beside a store's pages could not be read or written.
    #[error("cannot {direction} an extended attribute of {store}")]
    Attribute {
        /// Which way.
        direction: Direction,
        /// The store's name.
        store: String,
        /// The system's reason.
        #[source]
        source: Arc<io::Error>,
    },
    /// The store is gone.
    #[error(transparent)]
    Disabled(#[from] StoreDisabled),
    /// A store that must not be written.
    #[error("{store} is read-only")]
    ReadOnly {
        /// The store's name.
        store: String,
    },
    /// A snapshot's COW store has no room for another chunk.
    #[error(
        "the snapshot's COW store is full: all of its {chunks} chunks are in use; \
         make it larger, or merge the snapshot, and open it again"
    )]
    Full {
        /// How many chunks it has.
        chunks: u64,
    },
    /// An `error` target, which fails everything; the pages are the target's own.
    #[error("{pages} lie in an error target")]
    ErrorTarget {
        /// The pages.
        pages: PgoffRange,
    },
    /// Pages could not be made durable.
    #[error(transparent)]
    Persist(#[from] PersistError),
    /// A resync made way for a leg that is replaced.
    #[error("interrupted, as a leg is replaced; the rest follows")]
    Interrupted,
    /// The system has no random numbers.
    #[error("cannot obtain a random number")]
    Random(#[source] Arc<io::Error>),
    /// The bio was dropped and never submitted.
    #[error("the bio was never submitted")]
    Abandoned,
}

/// The memory that a [`BioVec`] moves data to or from.
#[derive(Debug)]
pub enum Buffer<'a> {
    /// Filled by a read.
    Read(&'a mut [u8]),
    /// Stored by a write.
    Write(&'a [u8]),
}

impl Buffer<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Read(buffer) => buffer.len(),
            Self::Write(buffer) => buffer.len(),
        }
    }
}

/// A piece of a bio on its way down: consecutive pages and a buffer of their size.
#[derive(Debug)]
pub struct BioVec<'a> {
    pages: PgoffRange,
    buffer: Buffer<'a>,
}

impl<'a> BioVec<'a> {
    /// `pages`, and a buffer of exactly their size.
    pub fn try_new(pages: PgoffRange, buffer: Buffer<'a>) -> Result<Self, BioError> {
        let bytes = buffer.len();
        match u64::try_from(bytes) == Ok(pages.nr_pages().bytes()) {
            true => Ok(Self { pages, buffer }),
            false => Err(BioError::Buffers { pages, bytes }),
        }
    }

    /// The pages, in the numbers of whoever is asked.
    pub fn pages(&self) -> PgoffRange {
        self.pages
    }

    /// Which way data goes.
    pub fn direction(&self) -> Direction {
        match self.buffer {
            Buffer::Read(_) => Direction::Read,
            Buffer::Write(_) => Direction::Write,
        }
    }

    /// The buffer, at the end of the way.
    pub fn into_buffer(self) -> Buffer<'a> {
        self.buffer
    }

    /// The same piece once more, for one that is to be tried in several places.
    pub fn reborrow(&mut self) -> BioVec<'_> {
        let buffer = match &mut self.buffer {
            Buffer::Read(buffer) => Buffer::Read(buffer),
            Buffer::Write(buffer) => Buffer::Write(buffer),
        };
        BioVec { pages: self.pages, buffer }
    }

    /// The same piece, for the same number of pages beneath.
    ///
    /// # Panics
    ///
    /// If it is another number: a remap never changes a size.
    #[must_use]
    pub fn remap(self, pages: PgoffRange) -> Self {
        assert_eq!(self.pages.nr_pages(), pages.nr_pages(), "a remap never changes a size");
        Self { pages, ..self }
    }

    /// The first pages as a piece of their own, and what is left, if anything is.
    #[must_use]
    pub fn split(self, nr_pages: NrPages) -> (Self, Option<Self>) {
        let front = PgoffRange::try_new(self.pages.start(), nr_pages);
        let front = front.ok().and_then(|front| self.pages.intersection(front));
        let front = front.expect("a piece has at least one page");
        let Some(rest) = self.pages.behind(front) else {
            return (self, None);
        };
        let at = usize::try_from(front.nr_pages().bytes()).expect("no more than the buffer has");
        let (front_buffer, rest_buffer) = match self.buffer {
            Buffer::Read(buffer) => {
                let (front, rest) = buffer.split_at_mut(at);
                (Buffer::Read(front), Buffer::Read(rest))
            }
            Buffer::Write(buffer) => {
                let (front, rest) = buffer.split_at(at);
                (Buffer::Write(front), Buffer::Write(rest))
            }
        };
        let front = Self { pages: front, buffer: front_buffer };
        (front, Some(Self { pages: rest, buffer: rest_buffer }))
    }
}

/// What a [`Bio`] is to do.
pub(crate) enum Operation<'a> {
    Transfer(Vec<BioVec<'a>>),
    /// With pages that are pinned, in place of buffers.
    Copy(Direction, &'a SgList),
    Persist,
}

/// Hears how a bio ended.
type EndIo<'a> = Box<dyn FnOnce(Result<(), BioError>) + 'a>;

/// Block I/O on pages of a region, for [`Region::submit`](crate::Region::submit).
///
/// It ends exactly once, also if it is never submitted: well, or with the error of the layer that
/// failed. Its pieces are done in order, up to the first that fails: of a failed write a front part
/// is done and the rest is not, of a failed read the buffers hold anything. Within the piece that
/// failed each target says what may have been done.
pub struct Bio<'a> {
    pages: PgoffRange,
    operation: Operation<'a>,
    end_io: Option<EndIo<'a>>,
}

impl<'a> Bio<'a> {
    /// Reads `pages` into `buffers`, each of whole pages, one behind another.
    pub fn read(
        pages: PgoffRange,
        buffers: impl IntoIterator<Item = &'a mut [u8]>,
        end_io: impl FnOnce(Result<(), BioError>) + 'a,
    ) -> Result<Self, BioError> {
        Self::transfer(pages, buffers.into_iter().map(Buffer::Read), Box::new(end_io))
    }

    /// Writes `buffers`, each of whole pages, one behind another, to `pages`. Durable only after a
    /// persist.
    pub fn write(
        pages: PgoffRange,
        buffers: impl IntoIterator<Item = &'a [u8]>,
        end_io: impl FnOnce(Result<(), BioError>) + 'a,
    ) -> Result<Self, BioError> {
        Self::transfer(pages, buffers.into_iter().map(Buffer::Write), Box::new(end_io))
    }

    /// Reads `pages` into pinned pages, as many, of this or another region.
    pub fn read_to(
        pages: PgoffRange,
        pinned: &'a SgList,
        end_io: impl FnOnce(Result<(), BioError>) + 'a,
    ) -> Result<Self, BioError> {
        Self::copy(Direction::Read, pages, pinned, Box::new(end_io))
    }

    /// Writes what pinned pages, as many, of this or another region hold, to `pages`. Durable only
    /// after a persist.
    pub fn write_from(
        pages: PgoffRange,
        pinned: &'a SgList,
        end_io: impl FnOnce(Result<(), BioError>) + 'a,
    ) -> Result<Self, BioError> {
        Self::copy(Direction::Write, pages, pinned, Box::new(end_io))
    }

    fn copy(
        direction: Direction,
        pages: PgoffRange,
        pinned: &'a SgList,
        end_io: EndIo<'a>,
    ) -> Result<Self, BioError> {
        if pinned.pages().nr_pages() != pages.nr_pages() {
            return Err(BioError::Pinned { pages, pinned: pinned.pages().nr_pages() });
        }
        let operation = Operation::Copy(direction, pinned);
        Ok(Self { pages, operation, end_io: Some(end_io) })
    }

    /// Makes durable what was written to `pages` before the bio was submitted.
    pub fn persist(pages: PgoffRange, end_io: impl FnOnce(Result<(), BioError>) + 'a) -> Self {
        Self { pages, operation: Operation::Persist, end_io: Some(Box::new(end_io)) }
    }

    fn transfer(
        pages: PgoffRange,
        buffers: impl Iterator<Item = Buffer<'a>>,
        end_io: EndIo<'a>,
    ) -> Result<Self, BioError> {
        let mut rest = Some(pages);
        let mut bytes = 0;
        let mut vecs = Vec::new();
        for buffer in buffers {
            bytes += buffer.len();
            let invalid = || BioError::Buffers { pages, bytes };
            let front = rest.and_then(|rest| {
                let nr_pages = NrPages::try_from_bytes(buffer.len().try_into().ok()?).ok()?;
                PgoffRange::try_new(rest.start(), nr_pages).ok()
            });
            let front = front.filter(|front| pages.covers(*front)).ok_or_else(invalid)?;
            rest = pages.behind(front);
            vecs.push(BioVec { pages: front, buffer });
        }
        match rest {
            Some(_) => Err(BioError::Buffers { pages, bytes }),
            None => Ok(Self { pages, operation: Operation::Transfer(vecs), end_io: Some(end_io) }),
        }
    }

    /// All of its pages.
    pub fn pages(&self) -> PgoffRange {
        self.pages
    }

    /// What is to be done, for the one that does it.
    pub(crate) fn take(&mut self) -> Operation<'a> {
        std::mem::replace(&mut self.operation, Operation::Persist)
    }

    /// Ends it.
    pub(crate) fn end(mut self, result: Result<(), BioError>) {
        if let Some(end_io) = self.end_io.take() {
            end_io(result);
        }
    }
}

impl Drop for Bio<'_> {
    fn drop(&mut self) {
        if let Some(end_io) = self.end_io.take() {
            end_io(Err(BioError::Abandoned));
        }
    }
}

impl fmt::Debug for Bio<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operation = match &self.operation {
            Operation::Transfer(vecs) => {
                vecs.first().map_or("transfer", |vec| vec.direction().name())
            }
            Operation::Copy(direction, _) => direction.name(),
            Operation::Persist => "persist",
        };
        write!(f, "{operation} {}", self.pages)
    }
}
