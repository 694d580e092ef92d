// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which legs are believed, by what they and the log say.
//!
//! Each label names the legs that had all acknowledged writes when it was written, and the labels are
//! counted. So the latest is right, and a leg has everything only if it carries that one and is named
//! in it, as an md array's event counts tell. It also says what each other leg's label was, as far as is
//! known: one that has another went on by itself, and then an operator has to choose.

use super::label::{Label, Members};
use super::{InSync, InvalidMirror, bit, random};
use crate::store::Id;

/// What is found on a leg.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// It can't be read, or isn't there.
    Missing,
    /// It has no label.
    Blank,
    Labelled(Label),
    /// It has the label of a leg that it is a copy of: the leg may have been written to since.
    Copied(Label),
}

impl Found {
    pub(super) fn label(&self) -> Option<Label> {
        match self {
            Self::Missing | Self::Blank => None,
            Self::Labelled(label) | Self::Copied(label) => Some(*label),
        }
    }
}

/// What is believed.
#[derive(Debug)]
pub(super) struct Belief {
    /// What was written last.
    pub(super) members: Members,
    /// Each leg's identity; 0 of those that aren't there.
    pub(super) ids: Vec<u64>,
    /// The legs that can't be used.
    pub(super) missing: u8,
    /// Those that are there and lack something.
    pub(super) behind: u8,
    /// Whether the log was kept up to the last event.
    pub(super) is_logged: bool,
    /// The generation of the mirror's content.
    pub(super) generation: Option<Id>,
    /// Whether no leg has a label: nobody has ever written to the mirror.
    pub(super) is_new: bool,
}

/// Decides. `log` is what the log says, if there is one and it says anything.
pub(super) fn believe(
    legs: &[Found],
    log: Option<Members>,
    in_sync: InSync,
) -> Result<Belief, InvalidMirror> {
    let labels: Vec<_> = (0..).zip(legs).filter_map(|(at, leg)| Some((at, leg.label()?))).collect();
    let missing = mask(legs, |leg| *leg == Found::Missing);
    let ids = legs.iter().map(|leg| match leg {
        Found::Missing => Ok(0),
        Found::Blank => random(),
        Found::Labelled(label) | Found::Copied(label) => Ok(label.leg.get()),
    });
    let ids = ids.collect::<Result<Vec<_>, _>>()?;
    if labels.is_empty() {
        let mut mirror = [0; 16];
        mirror[..8].copy_from_slice(&random()?.to_le_bytes());
        mirror[8..].copy_from_slice(&random()?.to_le_bytes());
        return match (log, missing) {
            (Some(_), _) => Err(InvalidMirror::NoLabels),
            (_, 0) => {
                let behind = if in_sync == InSync::Yes { 0 } else { mask(legs, |_| true) & !1 };
                let members = Members::new(mirror);
                let (is_logged, generation, is_new) = (false, None, true);
                Ok(Belief { members, ids, missing, behind, is_logged, generation, is_new })
            }
            (_, missing) => Err(InvalidMirror::NewWithout(first(missing))),
        };
    }
    let mut members = latest(&labels, log)?;
    let is_current = |leg: &Found| {
        leg.label()
            .is_some_and(|label| label.members.tag == members.tag && members.have(label.leg.get()))
    };
    let originals = mask(legs, |leg| matches!(leg, Found::Labelled(_)) && is_current(leg));
    // If there are none, copies are all there is.
    let current = if originals == 0 { mask(legs, is_current) } else { originals };
    labels.iter().for_each(|(_, label)| members.note(label.leg.get(), label.members.tag));
    if current == 0 {
        return Err(InvalidMirror::NoneCurrent);
    }
    let behind = mask(legs, |_| true) & !current & !missing;
    let is_logged = originals != 0 && log.is_some_and(|log| log.tag == members.tag);
    let mut latest = labels.iter().filter(|(_, label)| label.members.tag == members.tag);
    let generation = latest.find_map(|(_, label)| label.generation());
    Ok(Belief { members, ids, missing, behind, is_logged, generation, is_new: false })
}

/// The legs that are so, a bit for each.
fn mask(legs: &[Found], is_so: impl Fn(&Found) -> bool) -> u8 {
    (0..).zip(legs).filter(|(_, leg)| is_so(leg)).fold(0, |mask, (at, _)| mask | bit(at))
}

fn first(mask: u8) -> usize {
    mask.trailing_zeros() as usize
}

/// What was written last, if nothing contradicts it.
fn latest(labels: &[(usize, Label)], log: Option<Members>) -> Result<Members, InvalidMirror> {
    let (at, last) = labels.iter().max_by_key(|(_, label)| label.events()).expect("there are some");
    for (leg, label) in labels {
        if label.members.mirror != last.members.mirror {
            return Err(InvalidMirror::OfAnother { leg: *leg, other: *at });
        }
        let is_copy = |(at, other): &&(usize, Label)| at > leg && other.leg == label.leg;
        if let Some((other, _)) = labels.iter().find(is_copy) {
            return Err(InvalidMirror::Copied { leg: *leg, other: *other });
        }
        if !last.members.follow(label) {
            return Err(InvalidMirror::Diverged { leg: *leg, other: *at });
        }
    }
    match log {
        Some(log) if log.mirror != last.members.mirror => Err(InvalidMirror::LogOfAnother),
        Some(log) if log.events > last.members.events => Err(InvalidMirror::LogNewer),
        _ => Ok(last.members),
    }
}
