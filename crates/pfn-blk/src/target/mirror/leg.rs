// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A leg: its pages, and where its label is.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::Errno;
use tracing::warn;

use super::InvalidMirror;
use super::belief::Found;
use super::label::{Place, attribute_error};
use crate::bio::{BioError, Direction};
use crate::claim::Claim;
use crate::page::{NrPages, Pgoff, PgoffRange};
use crate::pagemap::Pagemap;
use crate::store::{Access, Id, OriginMark, mark_origin, origin_mark, unmark_origin};
use crate::target::metadata::{self, InvalidMetadata, range};
use crate::target::{Linear, Target};

#[derive(Debug)]
pub(super) struct Leg {
    pages: Linear,
    place: Place,
    name: String,
    /// Its first store.
    store: Option<Arc<Pagemap>>,
    _claims: Vec<Claim>,
}

impl Leg {
    /// `nr_pages` pages of `beneath`, from `start` on. They are claimed as far as they can be written.
    pub(super) fn open(
        leg: usize,
        (beneath, start): (Arc<dyn Target>, Pgoff),
        nr_pages: NrPages,
    ) -> Result<Self, InvalidMirror> {
        let pages = PgoffRange::try_new(start, nr_pages)?;
        let mut store = None;
        if pages.end() <= beneath.nr_pages().get() {
            beneath.leaves(pages, &mut |pagemap, _| {
                store.get_or_insert_with(|| pagemap.to_arc());
            });
        }
        let linear = Linear::try_new(Arc::clone(&beneath), pages)
            .map_err(|source| InvalidMirror::Leg { leg, source })?;
        let claims = Claim::all(&linear)?;
        let place = Place::find(&beneath, pages)?;
        let name = store.as_ref().map_or_else(
            || format!("leg {leg}"),
            |pagemap: &Arc<Pagemap>| pagemap.store().name().to_owned(),
        );
        Ok(Self { pages: linear, place, name, store, _claims: claims })
    }

    pub(super) fn pages(&self) -> &Linear {
        &self.pages
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Returns whether its stores can be marked.
    pub(super) fn has_attributes(&self) -> bool {
        matches!(self.place, Place::Stores(_))
    }

    /// How an operator knows it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn store(&self) -> Option<&Arc<Pagemap>> {
        self.store.as_ref()
    }

    /// What it says of itself. What can't be read at all is missing; what is there and has no room for
    /// a label can't be a leg.
    pub(super) fn inspect(&self, leg: usize) -> Result<Found, InvalidMirror> {
        let first = metadata::read(&self.pages, range(0, 1));
        match (self.place.read(), first) {
            (Err(InvalidMetadata::Read(error)), _) | (_, Err(error)) => {
                let error: BioError = error;
                warn!(
                    leg = self.name(),
                    error = &error as &dyn std::error::Error,
                    "mirror: a leg can't be read; the mirror is degraded"
                );
                Ok(Found::Missing)
            }
            (Err(source), _) => Err(InvalidMirror::Label { leg: self.name.clone(), source }),
            (Ok(_), _) if matches!(self.place, Place::None) => Err(InvalidMirror::NoPlace { leg }),
            (Ok(found), _) => Ok(found),
        }
    }

    /// Its first store that is marked as an origin.
    pub(super) fn origin(&self) -> Result<Option<Arc<Pagemap>>, BioError> {
        for pagemap in self.stores() {
            if own_mark(&pagemap)?.is_some() {
                return Ok(Some(pagemap));
            }
        }
        Ok(None)
    }

    /// Removes the marks of its stores, except the one that `source` has.
    pub(super) fn forget_marks_but(&self, source: Option<&Pagemap>) -> Result<(), BioError> {
        let kept = source.map(own_mark).transpose()?.flatten();
        for pagemap in self.stores() {
            let mark = own_mark(&pagemap)?;
            if mark.is_none() || mark != kept {
                unmark_origin(pagemap.store().fd())
                    .map_err(|source| attribute_error(&pagemap, Direction::Write, source))?;
            }
        }
        Ok(())
    }

    /// Marks those of its stores as `source` is that have no mark of their own.
    pub(super) fn mark_as(&self, source: &Pagemap) -> Result<(), BioError> {
        for pagemap in self.stores() {
            if pagemap.store().access() == Access::ReadOnly || own_mark(&pagemap)?.is_some() {
                continue;
            }
            let mut given = None;
            // Until it stays: the snapshot may be merged while this goes on.
            loop {
                let mark = own_mark(source)?;
                if mark == given {
                    break;
                }
                let file = pagemap.store().fd();
                let marked = match &mark {
                    Some((id, cow)) => mark_origin(file, *id, cow),
                    None => unmark_origin(file),
                };
                match marked {
                    Err(error) if has_no_marks(&error) => {
                        warn!(
                            leg = self.name(),
                            "mirror: a leg can't be marked as a snapshot's origin; don't serve it \
                             without the COW store"
                        );
                        break;
                    }
                    marked => marked
                        .map_err(|source| attribute_error(&pagemap, Direction::Write, source))?,
                }
                given = mark;
            }
        }
        Ok(())
    }

    fn stores(&self) -> Vec<Arc<Pagemap>> {
        let mut stores: Vec<Arc<Pagemap>> = Vec::new();
        self.pages.leaves(range(0, self.pages.nr_pages().get()), &mut |pagemap, _| {
            if !stores.iter().any(|known| std::ptr::eq(&**known, pagemap)) {
                stores.push(pagemap.to_arc());
            }
        });
        stores
    }

    /// Whether its first pages, as many as any filesystem or partition table begins in, hold nothing.
    pub(super) fn begins_blank(&self) -> Result<bool, BioError> {
        let len = self.pages.nr_pages().get().min(256);
        let bytes = metadata::read(&self.pages, range(0, len))?;
        Ok(bytes.iter().all(|byte| *byte == 0))
    }
}

/// The mark of a store that is an origin, and no copy of one.
fn own_mark(pagemap: &Pagemap) -> Result<Option<(Id, PathBuf)>, BioError> {
    let mark = origin_mark(pagemap.store().fd())
        .map_err(|source| attribute_error(pagemap, Direction::Read, source))?;
    let own = mark.filter(|mark| !mark.is_copied);
    Ok(own.and_then(|OriginMark { id, cow, .. }| Some((id?, cow))))
}

/// Whether a file is one that has no attributes of users, as a block device.
fn has_no_marks(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOTSUP | Errno::PERM))
}
