// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pages and how they are counted: [`Pgoff`], [`Pfn`], [`NrPages`] and ranges of them.
//!
//! The types refuse `+`. Every sum is checked against [`PAGES_MAX`], so a value that exists can be
//! turned into a byte offset without a further check.

use std::fmt;
use std::num::NonZeroU64;

use thiserror::Error;

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page, the unit of everything in this crate.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// The same, for buffers.
pub(crate) const PAGE_BYTES: usize = 1 << PAGE_SHIFT;
/// Page numbers stay below this, so that every byte offset fits a signed 64-bit `off_t`.
pub const PAGES_MAX: u64 = 1 << (63 - PAGE_SHIFT);

/// Pages of a [piece](PageRange::pieces).
const PIECE_PAGES: u64 = 256;

/// A number of bytes or pages that is no valid size, offset or range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidPages {
    /// Nothing at all where at least one page is needed.
    #[error("empty, but at least one page of {PAGE_SIZE} bytes is needed")]
    Empty,
    /// A byte count that is not whole pages.
    #[error(
        "{0} bytes is not a multiple of {PAGE_SIZE} bytes; the next one is {next}",
        next = .0.next_multiple_of(PAGE_SIZE)
    )]
    NotWholePages(u64),
    /// A page number or sum of page numbers past [`PAGES_MAX`].
    #[error("more than {PAGES_MAX} pages")]
    TooMany,
}

/// What the page numbers have in common; implemented by [`Pgoff`] and [`Pfn`] alone.
pub trait PageIndex: Copy + Ord + fmt::Debug + fmt::Display + sealed::Sealed {
    /// The index `value`, at most [`PAGES_MAX`].
    fn try_new(value: u64) -> Result<Self, InvalidPages>;
    /// The plain number.
    fn get(self) -> u64;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Pgoff {}
    impl Sealed for super::Pfn {}
}

macro_rules! page_index {
    ($(#[$doc:meta])* $name:ident, $shown:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// The index `value`, at most [`PAGES_MAX`].
            pub const fn try_new(value: u64) -> Result<Self, InvalidPages> {
                if value > PAGES_MAX {
                    return Err(InvalidPages::TooMany);
                }
                Ok(Self(value))
            }

            /// The plain number.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The index `nr_pages` further on.
            pub const fn checked_add(self, nr_pages: NrPages) -> Result<Self, InvalidPages> {
                // Neither side exceeds PAGES_MAX, so the sum can't wrap.
                Self::try_new(self.0 + nr_pages.get())
            }
        }

        impl PageIndex for $name {
            fn try_new(value: u64) -> Result<Self, InvalidPages> {
                Self::try_new(value)
            }
            fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($shown, " {:#x}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    };
}

page_index!(
    /// A page offset: the number of a page within a region, target or store, from zero.
    Pgoff,
    "pgoff"
);
page_index!(
    /// A page frame number in one [`PfnSpace`](crate::PfnSpace).
    ///
    /// A plain number: what may be done with the page stands beside it, in an
    /// [`Extent`](crate::Extent), never in bits of the number.
    Pfn,
    "pfn"
);

impl Pgoff {
    /// The first page.
    pub const ZERO: Self = Self(0);

    /// Where the page starts, in bytes.
    pub const fn bytes(self) -> u64 {
        self.0 << PAGE_SHIFT
    }

    /// The page that starts at byte `offset`.
    pub const fn try_from_bytes(offset: u64) -> Result<Self, InvalidPages> {
        if offset % PAGE_SIZE != 0 {
            return Err(InvalidPages::NotWholePages(offset));
        }
        Self::try_new(offset >> PAGE_SHIFT)
    }
}

/// A count of pages, from one to [`PAGES_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NrPages(NonZeroU64);

impl NrPages {
    /// A single page.
    pub const ONE: Self = Self(NonZeroU64::MIN);

    /// `count` pages.
    pub const fn try_new(count: u64) -> Result<Self, InvalidPages> {
        match NonZeroU64::new(count) {
            None => Err(InvalidPages::Empty),
            Some(_) if count > PAGES_MAX => Err(InvalidPages::TooMany),
            Some(count) => Ok(Self(count)),
        }
    }

    /// The pages in `bytes` bytes.
    pub const fn try_from_bytes(bytes: u64) -> Result<Self, InvalidPages> {
        if bytes % PAGE_SIZE != 0 {
            return Err(InvalidPages::NotWholePages(bytes));
        }
        Self::try_new(bytes >> PAGE_SHIFT)
    }

    /// The plain number.
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// The size of this many pages, in bytes.
    pub const fn bytes(self) -> u64 {
        self.get() << PAGE_SHIFT
    }
}

impl fmt::Debug for NrPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pages", self.0)
    }
}

impl fmt::Display for NrPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A run of pages: never empty, never past [`PAGES_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRange<I> {
    start: I,
    nr_pages: NrPages,
}

/// Consecutive pages of a region, target or store.
pub type PgoffRange = PageRange<Pgoff>;
/// Consecutive page frames.
pub type PfnRange = PageRange<Pfn>;

impl<I: PageIndex> PageRange<I> {
    /// `nr_pages` pages from `start` on.
    pub fn try_new(start: I, nr_pages: NrPages) -> Result<Self, InvalidPages> {
        I::try_new(start.get() + nr_pages.get())?;
        Ok(Self { start, nr_pages })
    }

    /// The first page.
    pub fn start(self) -> I {
        self.start
    }

    /// The first page that is no longer in the range.
    pub fn end(self) -> u64 {
        self.start.get() + self.nr_pages.get()
    }

    /// How many pages.
    pub fn nr_pages(self) -> NrPages {
        self.nr_pages
    }

    /// Whether `page` lies in the range.
    pub fn contains(self, page: I) -> bool {
        self.start <= page && page.get() < self.end()
    }

    /// Whether all of `other` lies in the range.
    pub fn covers(self, other: Self) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// The pages in both, if there are any.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        let nr_pages = NrPages::try_new(end.checked_sub(start.get())?).ok()?;
        Some(Self { start, nr_pages })
    }

    /// What is left of the range behind `front`, if anything.
    pub fn behind(self, front: Self) -> Option<Self> {
        let start = front.start.get() + front.nr_pages.get();
        let nr_pages = NrPages::try_new(self.end().checked_sub(start)?).ok()?;
        Self::try_new(I::try_new(start).ok()?, nr_pages).ok()
    }

    /// The range in pieces of at most 1 MiB, in order: as much as is copied through a buffer.
    pub(crate) fn pieces(self) -> impl Iterator<Item = Self> {
        let mut rest = Some(self);
        std::iter::from_fn(move || {
            let pages = rest?;
            let nr_pages = NrPages::try_new(pages.nr_pages.get().min(PIECE_PAGES)).ok()?;
            let piece = Self::try_new(pages.start, nr_pages).ok()?;
            rest = pages.behind(piece);
            Some(piece)
        })
    }

    /// The range of the same length that starts as far behind `to` as this one starts behind
    /// `from`; `None` where it starts before `from` or would end past [`PAGES_MAX`].
    pub fn rebase<J: PageIndex>(self, from: I, to: J) -> Option<PageRange<J>> {
        let distance = self.start.get().checked_sub(from.get())?;
        let start = J::try_new(to.get() + distance).ok()?;
        PageRange::try_new(start, self.nr_pages).ok()
    }
}

impl<I: PageIndex> fmt::Debug for PageRange<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} + {}", self.start, self.nr_pages)
    }
}

impl<I: PageIndex> fmt::Display for PageRange<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, nr_pages: u64) -> PgoffRange {
        let nr_pages = NrPages::try_new(nr_pages).unwrap();
        PageRange::try_new(Pgoff::try_new(start).unwrap(), nr_pages).unwrap()
    }

    #[test]
    fn nr_pages_not_whole_names_next_multiple() {
        let error = NrPages::try_from_bytes(5000).unwrap_err();
        assert_eq!(error, InvalidPages::NotWholePages(5000));
        assert!(error.to_string().ends_with("the next one is 8192"));
    }

    #[test]
    fn nr_pages_empty_is_refused() {
        assert_eq!(NrPages::try_from_bytes(0), Err(InvalidPages::Empty));
    }

    #[test]
    fn byte_offset_at_limit_fits_off_t() {
        let last = Pgoff::try_new(PAGES_MAX).unwrap();
        assert_eq!(last.bytes(), 1 << 63);
        assert!(i64::try_from(last.bytes() - 1).is_ok());
        assert_eq!(Pgoff::try_new(PAGES_MAX + 1), Err(InvalidPages::TooMany));
    }

    #[test]
    fn range_past_limit_is_refused() {
        let start = Pgoff::try_new(PAGES_MAX).unwrap();
        assert_eq!(PageRange::try_new(start, NrPages::ONE), Err(InvalidPages::TooMany));
        assert_eq!(start.checked_add(NrPages::ONE), Err(InvalidPages::TooMany));
    }

    #[test]
    fn range_intersection_of_disjoint_is_none() {
        assert_eq!(range(0, 4).intersection(range(4, 1)), None);
        assert_eq!(range(6, 4).intersection(range(0, 4)), None);
        assert_eq!(range(0, 4).intersection(range(2, 9)), Some(range(2, 2)));
    }

    #[test]
    fn range_behind_its_end_is_none() {
        assert_eq!(range(2, 3).behind(range(2, 3)), None);
        assert_eq!(range(2, 3).behind(range(4, 9)), None);
        assert_eq!(range(2, 3).behind(range(2, 2)), Some(range(4, 1)));
    }

    #[test]
    fn range_rebase_keeps_distance_and_length() {
        let to = Pfn::try_new(100).unwrap();
        let rebased = range(5, 2).rebase(Pgoff::try_new(3).unwrap(), to).unwrap();
        assert_eq!((rebased.start().get(), rebased.nr_pages().get()), (102, 2));
        assert_eq!(range(1, 2).rebase(Pgoff::try_new(3).unwrap(), to), None);
    }
}
