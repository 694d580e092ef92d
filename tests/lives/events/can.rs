// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can happen when.

use crate::life::Life;
use crate::stack::{Log, Plan, State};

pub(super) fn is_down(life: &Life) -> bool {
    !life.is_up()
}

pub(super) fn is_up_on_disks(life: &Life) -> bool {
    life.is_up() && life.world.is_volatile()
}

/// While nothing is wrong, so that it must work.
pub(super) fn is_well(life: &Life) -> bool {
    life.is_up() && !life.has_failed && life.trouble.is_none()
}

pub(super) fn has_failed(life: &Life) -> bool {
    life.is_up() && life.has_failed
}

pub(super) fn break_disk(life: &Life) -> bool {
    is_up_on_disks(life) && life.trouble.is_none()
}

pub(super) fn break_leg(life: &Life, leg: usize) -> bool {
    break_disk(life) && life.stack.is_mirror() && life.stack.layers.is_empty() && has(life, leg)
}

pub(super) fn has_trouble(life: &Life) -> bool {
    life.trouble.is_some()
}

pub(super) fn is_mirror_up(life: &Life) -> bool {
    life.is_up() && life.stack.is_mirror() && !life.is_alone
}

pub(super) fn is_down_on_disks(life: &Life) -> bool {
    !life.is_up() && life.world.is_volatile()
}

/// Files are moved about only where they are no volatile disks.
pub(super) fn is_down_on_media(life: &Life) -> bool {
    !life.is_up() && !life.world.is_volatile()
}

pub(super) fn is_mirror_down(life: &Life) -> bool {
    is_down_on_media(life) && life.stack.is_mirror()
}

pub(super) fn has_log_down(life: &Life) -> bool {
    is_mirror_down(life) && life.stack.bottom.log == Log::Disk
}

pub(super) fn snapshot(life: &Life) -> bool {
    is_well(life) && !life.is_alone && life.stack.layers.len() < 3
}

pub(super) fn merge(life: &Life) -> bool {
    is_well(life) && life.live_layers > 0
}

pub(super) fn drop(life: &Life) -> bool {
    is_well(life) && life.live_layers > 0
}

pub(super) fn has_layers_up(life: &Life) -> bool {
    life.is_up() && !life.stack.layers.is_empty()
}

pub(super) fn has_layers_down(life: &Life) -> bool {
    is_down_on_media(life) && !life.stack.layers.is_empty()
}

pub(super) fn has_marked_layers_down(life: &Life) -> bool {
    has_layers_down(life) && life.stack.layers.len() > usize::from(life.stack.bottom.is_unmarked)
}

pub(super) fn is_file_down(life: &Life) -> bool {
    is_down_on_media(life) && !life.stack.is_mirror()
}

pub(super) fn is_bare_file(life: &Life) -> bool {
    !life.is_up()
        && !life.stack.is_mirror()
        && life.stack.layers.is_empty()
        && life.stack.bottom.strange_mark.is_none()
}

pub(super) fn is_bare_file_on_disks(life: &Life) -> bool {
    is_bare_file(life) && is_down_on_disks(life)
}

pub(super) fn change_base(life: &Life) -> bool {
    is_file_down(life) && life.stack.layers.iter().all(|layer| layer.without.is_none())
}

/// Excludes a copy without a mark while a layer is lost, as nothing would tell of the layer; and a copy
/// whose mark names a removed COW store that a power cut brought back.
pub(super) fn has_copy_down(life: &Life) -> bool {
    let layers = &life.stack.layers;
    let is_lost = layers.iter().any(|layer| layer.is_lost);
    let is_back = |cow: &String| life.world.has(cow) && layers.iter().all(|it| it.cow != *cow);
    change_base(life)
        && life.copy.as_ref().is_some_and(|copy| match &copy.mark {
            Some(cow) => !is_back(cow),
            None => !is_lost,
        })
}

pub(super) fn be_alone(life: &Life, leg: usize) -> bool {
    is_mirror_down(life)
        && life.stack.layers.is_empty()
        && has(life, leg)
        && is(life, leg, |state| *state == State::Current)
}

pub(super) fn merge_offline(life: &Life) -> bool {
    has_layers_down(life)
        && !life.stack.is_mirror()
        && life.stack.layers.iter().all(|layer| layer.without.is_none() && !layer.is_lost)
        && life.stack.bottom.strange_mark.is_none()
        && !life.stack.bottom.is_moved
        && !life.is_orphaned(&Plan::of(&life.stack))
        && life.world.has(&life.stack.layers[0].cow)
}

pub(super) fn is(life: &Life, leg: usize, state: fn(&State) -> bool) -> bool {
    life.stack.bottom.legs.get(leg).is_some_and(|leg| state(&leg.is))
}

pub(super) fn has(life: &Life, leg: usize) -> bool {
    life.stack.bottom.legs.get(leg).is_some_and(|leg| life.world.has(&leg.name))
}

pub(super) fn others_are_there(life: &Life, leg: usize) -> bool {
    (0..life.stack.bottom.legs.len()).any(|other| {
        other != leg && has(life, other) && is(life, other, |state| *state == State::Current)
    })
}

pub(super) fn lose(life: &Life, leg: usize) -> bool {
    is_mirror_down(life) && has(life, leg) && others_are_there(life, leg)
}

pub(super) fn away(life: &Life, leg: usize) -> Option<String> {
    let leg = life.stack.bottom.legs.get(leg)?;
    Some(format!("{}.away", leg.name)).filter(|away| life.world.has(away))
}

pub(super) fn be_back(life: &Life, leg: usize) -> bool {
    is_mirror_down(life) && away(life, leg).is_some()
}

pub(super) fn replace(life: &Life, leg: usize) -> bool {
    is_mirror_down(life)
        && life.stack.layers.is_empty()
        && away(life, leg).is_none()
        && others_are_there(life, leg)
}

pub(super) fn replace_live(life: &Life, leg: usize) -> bool {
    is_mirror_up(life)
        && is_well(life)
        && life.stack.layers.is_empty()
        && life.stack.bottom.legs.get(leg).is_some()
        && away(life, leg).is_none()
        && others_are_there(life, leg)
}

pub(super) fn copy_leg(life: &Life) -> bool {
    is_mirror_down(life)
        && life.stack.layers.is_empty()
        && away(life, 1).is_none()
        && has(life, 0)
        && is(life, 0, |state| *state == State::Current)
}
