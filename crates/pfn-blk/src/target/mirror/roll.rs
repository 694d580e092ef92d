// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The roll: which legs have all that was acknowledged, kept on the legs themselves.

use std::sync::Arc;

use tracing::warn;

use super::belief::Belief;
use super::label::{Label, Members};
use super::leg::Leg;
use super::{Mirror, States, bit, random};
use crate::bio::BioError;
use crate::lock::lock;
use crate::store::Id;

/// The generation of a mirror whose labels have none yet: it wasn't written since there are any.
const NEVER: [u8; 16] = [0xff; 16];

/// Which legs have everything, as it was last written on them.
#[derive(Debug)]
pub(super) struct Roll {
    members: Members,
    /// The legs' identities.
    ids: Vec<u64>,
    /// Those that lack something.
    behind: u8,
    /// Those that weren't told, as they had failed.
    failed: u8,
    /// Whether members and generation were written since the mirror was opened.
    is_written: bool,
    /// The generation of the mirror's content.
    generation: Option<Id>,
    /// Whether it was moved on since the mirror was opened, and since a COW store was tied to it.
    has_moved: bool,
    /// What a leg lacks that was written to at this event, or later, is told by the log's bits.
    whole: u64,
}

impl Roll {
    pub(super) fn new(belief: &Belief) -> Self {
        let Belief { members, ids, behind, missing, generation, .. } = belief;
        Self {
            members: *members,
            ids: ids.clone(),
            behind: behind | missing,
            failed: *missing,
            is_written: false,
            generation: *generation,
            has_moved: false,
            whole: u64::MAX,
        }
    }

    pub(super) fn members(&self) -> &Members {
        &self.members
    }

    /// Returns the generation that a COW store is tied to. The next write moves it on.
    pub(super) fn tie(&mut self) -> Id {
        self.has_moved = false;
        self.generation.unwrap_or_else(|| Id::from_bytes(NEVER).expect("it isn't blank"))
    }

    /// Makes `next` the generation of the mirror's content, to be written with the next labels.
    pub(super) fn move_on_to(&mut self, next: Id) {
        (self.generation, self.has_moved, self.is_written) = (Some(next), true, false);
    }

    /// Moves the generation on before a write that no merge announced, unless it has moved already.
    pub(super) fn move_on(&mut self) -> Result<(), BioError> {
        if !self.has_moved {
            self.move_on_to(new_generation()?);
        }
        Ok(())
    }

    pub(super) fn whole(&self) -> u64 {
        self.whole
    }

    pub(super) fn set_whole(&mut self, whole: u64) {
        self.whole = whole;
    }

    /// Whether bits tell all that a leg lacks which was last written to at `event`.
    pub(super) fn covers(&self, event: u64) -> bool {
        event >= self.whole
    }

    /// Whether the legs say something else, or haven't been told of this opening. One that is brought
    /// up is told before anything is copied to it: an image of it from before lacks more than it does.
    pub(super) fn is_due(&self, states: States) -> bool {
        !self.is_written || states.behind() != self.behind || states.failed != self.failed
    }

    /// The leg `leg` is the one that says so of itself; one that says nothing is a new one.
    pub(super) fn identify(&mut self, leg: usize, label: Option<&Label>, random: u64) {
        let known = label.map(|label| label.leg.get());
        let is_free = |id: &u64| !self.ids.iter().enumerate().any(|(at, it)| at != leg && it == id);
        self.ids[leg] = known.filter(is_free).unwrap_or(random);
        if let Some(label) = label {
            self.members.note(self.ids[leg], label.members.tag);
        }
    }

    /// Tells all legs that haven't failed which of them have everything: a leg that can't be told is
    /// dropped, and the others are told that. Returns how they are then.
    ///
    /// Those that have everything are told first. A crash in between makes them out of date, which
    /// costs a copy; what is copied to must never say that it is all there is.
    pub(super) fn write(
        &mut self,
        mut states: States,
        legs: &[Arc<Leg>],
    ) -> Result<States, BioError> {
        loop {
            let behind = states.behind();
            let is_up = |leg: &usize| states.failed & bit(*leg) == 0;
            let entry = |(leg, id): (usize, &u64)| (*id, is_up(&leg), behind & bit(leg) == 0);
            self.members = self.members.next(random()?, self.ids.iter().enumerate().map(entry));
            let events = self.members.events.get();
            let mut told: Vec<_> = (0..legs.len()).filter(is_up).collect();
            told.sort_by_key(|leg| behind & bit(*leg) != 0);
            // What is written is the same on all, whatever becomes known of some on the way.
            let members = self.members;
            let mut tell = |leg: usize| {
                let label = Label::new(members, self.ids[leg], self.generation);
                legs[leg].place().write(&label).map_err(|error| (leg, error))?;
                self.members.note(self.ids[leg], members.tag);
                Ok(())
            };
            match told.into_iter().try_for_each(&mut tell) {
                Ok(()) => {
                    if states.failed == 0 {
                        self.whole = events;
                    }
                    self.behind = behind;
                    self.failed = states.failed;
                    self.is_written = true;
                    return Ok(states);
                }
                Err((leg, error)) => {
                    if !states.has_other(leg, legs.len()) {
                        return Err(error);
                    }
                    warn!(
                        leg = legs[leg].name(),
                        error = &error as &dyn std::error::Error,
                        "mirror: a leg's label can't be written; the leg was dropped"
                    );
                    states = states.without(leg);
                }
            }
        }
    }
}

/// Returns a random generation.
pub(super) fn new_generation() -> Result<Id, BioError> {
    Id::random().map_err(|source| BioError::Random(Arc::new(source)))
}

impl Mirror {
    /// Returns the generation of its content, for a COW store to be tied to. It changes before the
    /// next write, unless a merge [names the next one](Self::move_on_to), and before the first write
    /// after an opening.
    pub(crate) fn tie(&self) -> Id {
        lock(&self.log).roll().tie()
    }

    /// Makes `next` its generation, durably, before a merge writes to it.
    pub(crate) fn move_on_to(&self, next: Id) -> Result<(), BioError> {
        let mut log = lock(&self.log);
        log.roll().move_on_to(next);
        self.record(&mut log, self.states())
    }
}
