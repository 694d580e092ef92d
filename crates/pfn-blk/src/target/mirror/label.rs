// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Labels: what each leg says about itself and about the others.
//!
//! A label is a [header](metadata) of its own, magic `pfnblkLG`. It is an attribute of each file that
//! the leg is made of (`user.pfn-blk.leg.PAGE`, with the leg's first page there). A leg whose stores
//! have no attributes, such as a block device, has it in the page that follows its last one.

use std::io;
use std::sync::Arc;

use tracing::warn;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::belief::Found;
use super::roll::new_generation;
use super::{LEGS_MAX, ReplaceError, random};
use crate::bio::{BioError, Direction};
use crate::claim::{Claim, Claimed};
use crate::page::{NrPages, Pgoff, PgoffRange};
use crate::pagemap::Pagemap;
use crate::persist::persist_all;
use crate::store::{Access, Id, LABEL_MAGIC};
use crate::target::metadata::{self, Header, InvalidMetadata, SECTOR_BYTES, range};
use crate::target::{Linear, Target};

/// What the names of labels begin with.
const PREFIX: &str = "leg.";

/// As many legs as are remembered: those of the mirror, and others that were part of it.
const ENTRIES: usize = 2 * LEGS_MAX;

/// What is known of a leg.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Default,
)]
#[repr(C)]
pub(super) struct Entry {
    /// Its identity; 0 is none's.
    pub(super) leg: U64,
    /// The tag of the label that it had before this event.
    had: U64,
    /// The tag of the one that it was given last: whether it took it may not be known.
    given: U64,
}

/// Which legs have all that was acknowledged.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Default,
)]
#[repr(C)]
pub(super) struct Members {
    /// The mirror's identity.
    pub(super) mirror: [u8; 16],
    /// How many times this was written: what was written later is right.
    pub(super) events: U64,
    /// A random number, which tells this event from all others.
    pub(super) tag: U64,
    /// All legs.
    entries: [Entry; ENTRIES],
    /// Those that have everything, a bit for each entry.
    current: U64,
}

impl Members {
    /// Those of a mirror of which nothing was written yet.
    pub(super) fn new(mirror: [u8; 16]) -> Self {
        Self { mirror, ..Self::default() }
    }

    /// The members at the next event: `legs`, each with whether it is told of this and whether it has
    /// everything, and those from before that aren't among them. A leg without identity is left out.
    pub(super) fn next(&self, tag: u64, legs: impl Iterator<Item = (u64, bool, bool)>) -> Self {
        let events = (self.events.get() + 1).into();
        let mut next = Self { events, tag: tag.into(), mirror: self.mirror, ..Self::default() };
        let mut entries = next.entries.iter_mut();
        let mut current = 0;
        let known = legs.filter(|(leg, ..)| *leg != 0).enumerate();
        for ((at, (leg, is_told, is_current)), entry) in known.zip(&mut entries) {
            let former = self.entry(leg).copied();
            *entry = former.unwrap_or(Entry { leg: leg.into(), ..Entry::default() });
            if is_told {
                entry.given = tag.into();
            }
            current |= u64::from(is_current) << at;
        }
        next.current = current.into();
        let is_new = |former: &&Entry| next.entry(former.leg.get()).is_none();
        let former: Vec<_> = self.entries.iter().filter(is_new).copied().collect();
        let free = next.entries.iter_mut().filter(|entry| entry.leg == U64::ZERO);
        free.zip(former).for_each(|(free, former)| *free = former);
        next
    }

    /// `leg` has the label with this tag.
    pub(super) fn note(&mut self, leg: u64, tag: U64) {
        let free = |entry: &&mut Entry| entry.leg.get() == leg || entry.leg == U64::ZERO;
        if let Some(entry) = self.entries.iter_mut().find(free) {
            *entry = Entry { leg: leg.into(), had: tag, given: tag };
        }
    }

    fn entry(&self, leg: u64) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.leg.get() == leg)
    }

    /// Whether `leg` had everything.
    pub(super) fn have(&self, leg: u64) -> bool {
        let is_current = |at: usize| self.current.get() & 1 << at != 0;
        self.entries.iter().enumerate().any(|(at, entry)| entry.leg.get() == leg && is_current(at))
    }

    /// Whether what a leg says was said on the way to this.
    pub(super) fn follow(&self, label: &Label) -> bool {
        let is_known = self
            .entry(label.leg.get())
            .is_some_and(|entry| [entry.had, entry.given].contains(&label.members.tag));
        // An image from before, of a time when all that have everything had it.
        let is_older = label.members.events < self.events;
        let legs = self.entries.iter().map(|entry| entry.leg.get());
        let mut current = legs.filter(|leg| *leg != 0 && self.have(*leg));
        is_known || (is_older && current.all(|leg| label.members.have(leg)))
    }
}

/// What a leg says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Label {
    pub(super) members: Members,
    /// The leg's own identity.
    pub(super) leg: U64,
    /// The file that it was written to; 0 if nothing tells that from a copy.
    file: U64,
    /// 1 if the file was about to be written without the mirror then, and else 0.
    alone: U64,
    /// The generation of the mirror's content, as a file has one; 0 if none.
    generation: [u8; 16],
}

impl Label {
    pub(super) fn new(members: Members, leg: u64, generation: Option<Id>) -> Self {
        let generation = generation.map_or([0; 16], Id::to_bytes);
        Self { members, leg: leg.into(), file: U64::ZERO, alone: U64::ZERO, generation }
    }

    pub(super) fn generation(&self) -> Option<Id> {
        Id::from_bytes(self.generation)
    }

    pub(super) fn events(&self) -> u64 {
        self.members.events.get()
    }

    /// Checks that a leg which says this may be copied to by a mirror of these members.
    pub(super) fn check_lost(&self, members: &Members) -> Result<(), ReplaceError> {
        match self.members.mirror == members.mirror {
            false => Err(ReplaceError::OfAnother),
            true if !members.follow(self) => Err(ReplaceError::Diverged),
            true => Ok(()),
        }
    }
}

impl Header for Label {
    const MAGIC: [u8; 8] = LABEL_MAGIC;
    const VERSION: u32 = 1;
    const WHAT: &'static str = "label of a mirror's leg";
}

/// Where a leg has its label.
#[derive(Debug)]
pub(super) enum Place {
    /// Beside the pages of each of its stores, under this name.
    Stores(Vec<(Arc<Pagemap>, String)>),
    /// In a page of its own.
    Page(Linear, #[expect(dead_code, reason = "held")] Vec<Claim>),
    /// Nowhere.
    None,
}

impl Place {
    /// The place of the leg that has `pages` of `beneath`.
    pub(super) fn find(beneath: &Arc<dyn Target>, pages: PgoffRange) -> Result<Self, Claimed> {
        let mut stores: Vec<(Arc<Pagemap>, String)> = Vec::new();
        beneath.leaves(pages, &mut |pagemap, run| {
            if !stores.iter().any(|(have, _)| std::ptr::eq(&**have, pagemap)) {
                stores.push((pagemap.to_arc(), format!("{PREFIX}{:x}", run.start().get())));
            }
        });
        let has_notes =
            |(pagemap, name): &(Arc<Pagemap>, String)| match pagemap.store().attribute(name) {
                Err(error) => error.kind() != io::ErrorKind::Unsupported,
                Ok(_) => true,
            };
        if !stores.is_empty() && stores.iter().all(has_notes) {
            return Ok(Self::Stores(stores));
        }
        let following = Pgoff::try_new(pages.end()).ok();
        let page = following.and_then(|start| PgoffRange::try_new(start, NrPages::ONE).ok());
        match page.and_then(|page| Linear::try_new(Arc::clone(beneath), page).ok()) {
            Some(page) => {
                let claims = Claim::all(&page)?;
                Ok(Self::Page(page, claims))
            }
            None => Ok(Self::None),
        }
    }

    /// What the leg says; nothing if it has no label, or not all of its stores have the same one's.
    pub(super) fn read(&self) -> Result<Found, InvalidMetadata> {
        let stores = match self {
            Self::None => return Ok(Found::Blank),
            Self::Page(page, _) => {
                return match metadata::decode(&metadata::read(page, range(0, 1))?) {
                    Err(InvalidMetadata::Foreign(_)) => {
                        let sector = page.start().bytes() / SECTOR_BYTES as u64;
                        Err(InvalidMetadata::NoRoomForLabel { sector })
                    }
                    label => Ok(label?.map_or(Found::Blank, Found::Labelled)),
                };
            }
            Self::Stores(stores) => stores,
        };
        let mut labels = Vec::new();
        for (pagemap, name) in stores {
            let Some(label) = read(pagemap, name)? else { return Ok(Found::Blank) };
            labels.push((label, is_copied(pagemap, &label)?));
        }
        let identity = |label: &Label| (label.members.mirror, label.leg);
        let is_same = |one: &[(Label, bool)]| identity(&one[0].0) == identity(&one[1].0);
        if !labels.windows(2).all(is_same) {
            return Ok(Found::Blank);
        }
        // What was written to one of them is nowhere else, and what is on the others isn't either.
        if labels.len() > 1 && labels.iter().any(|(label, _)| label.alone != U64::ZERO) {
            return Err(InvalidMetadata::PartOfLeg);
        }
        let is_copied = labels.iter().any(|(_, is_copied)| *is_copied);
        let least = labels.into_iter().map(|(label, _)| label).min_by_key(Label::events);
        Ok(match least {
            Some(label) if is_copied => Found::Copied(label),
            Some(label) => Found::Labelled(label),
            None => Found::Blank,
        })
    }

    /// Writes it, durably.
    pub(super) fn write(&self, label: &Label) -> Result<(), BioError> {
        match self {
            Self::None => Ok(()),
            Self::Page(to, _) => {
                metadata::write(to, 0, &metadata::encode(label))?;
                Ok(persist_all(to)?)
            }
            Self::Stores(stores) => stores.iter().try_for_each(|(pagemap, name)| {
                let file = identity(pagemap)?.into();
                let page = metadata::encode(&Label { file, ..*label });
                let noted = pagemap.store().set_attribute(name, Some(&page[..SECTOR_BYTES]));
                noted.map_err(|source| attribute_error(pagemap, Direction::Write, source))
            }),
        }
    }
}

/// Whether a label that `pagemap` has is another file's, of which it is a copy.
fn is_copied(pagemap: &Pagemap, label: &Label) -> Result<bool, BioError> {
    let file = identity(pagemap)?;
    Ok(label.file != U64::ZERO && file != 0 && label.file.get() != file)
}

fn identity(pagemap: &Pagemap) -> Result<u64, BioError> {
    let identity = pagemap.store().identity();
    identity.map_err(|source| attribute_error(pagemap, Direction::Read, source))
}

fn read(pagemap: &Pagemap, name: &str) -> Result<Option<Label>, InvalidMetadata> {
    let value = pagemap.store().attribute(name);
    let value = value.map_err(|source| attribute_error(pagemap, Direction::Read, source))?;
    value.map_or(Ok(None), |value| match value.len() {
        SECTOR_BYTES => metadata::decode(&value),
        _ => Err(InvalidMetadata::Header),
    })
}

pub(super) fn attribute_error(
    pagemap: &Pagemap,
    direction: Direction,
    source: io::Error,
) -> BioError {
    let store = pagemap.store().name().to_owned();
    BioError::Attribute { direction, store, source: Arc::new(source) }
}

/// Notes on each of `stores` that is a mirror's leg, and that is about to be written without the
/// mirror, that the other legs will lack something. Otherwise they would be believed later.
///
/// # Errors
///
/// If that can't be noted; nothing may be written then.
pub fn leave_mirrors<'a>(
    stores: impl IntoIterator<Item = &'a Arc<Pagemap>>,
) -> Result<(), InvalidMetadata> {
    for pagemap in stores {
        if !pagemap.claims().is_empty() || pagemap.store().access() == Access::ReadOnly {
            continue;
        }
        match pagemap.store().attributes() {
            Ok(names) => {
                for name in names.into_iter().filter(|name| name.starts_with(PREFIX)) {
                    let Some(label) = read(pagemap, &name)? else { continue };
                    let place = Place::Stores(vec![(Arc::clone(pagemap), name)]);
                    leave_mirror(pagemap, &place, label)?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                // As that of a leg which takes up all of it but for the label.
                let last = range(pagemap.nr_pages().get() - 1, 1);
                let page = Linear::try_new(Arc::clone(pagemap) as _, last);
                let page = page.expect("a store has a last page");
                if let Ok(Some(label)) = metadata::decode(&metadata::read(&page, range(0, 1))?) {
                    leave_mirror(pagemap, &Place::Page(page, Vec::new()), label)?;
                }
            }
            Err(error) => return Err(attribute_error(pagemap, Direction::Read, error).into()),
        }
    }
    Ok(())
}

fn leave_mirror(pagemap: &Pagemap, place: &Place, label: Label) -> Result<(), InvalidMetadata> {
    if !label.members.have(label.leg.get()) {
        // It would be believed afterwards.
        return Err(InvalidMetadata::LegBehind);
    }
    let (former, leg) = match is_copied(pagemap, &label)? {
        false => (label.members, label.leg.get()),
        // The leg itself goes on, and may have gone on: this is another one, which knows of no other.
        true => {
            let Members { mirror, events, .. } = label.members;
            (Members { events, ..Members::new(mirror) }, random()?)
        }
    };
    let members = former.next(random()?, [(leg, true, true)].into_iter());
    let generation = new_generation()?.to_bytes();
    place.write(&Label { members, leg: leg.into(), alone: 1.into(), generation, ..label })?;
    warn!(
        store = pagemap.store().name(),
        "a mirror's leg is served without the mirror; its other legs are out of date from now on"
    );
    Ok(())
}
