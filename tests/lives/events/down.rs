// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What happens while the daemon doesn't serve: to files, and to the table.

use std::fs::File;
use std::os::unix::fs::FileExt;

use guest_harness::Fault;

use super::up::pages;
use crate::life::{Copy, Life, Outcome};
use crate::model;
use crate::record::PAGE;
use crate::stack::{Layer, Log, Plan, Stack};
use crate::world::BYTES;

pub(super) fn start(life: &mut Life) -> Outcome {
    life.make_durable();
    life.start()
}

/// On disks of which one may be broken still.
pub(super) fn start_on_disks(life: &mut Life) -> Outcome {
    if life.trouble.as_ref().is_some_and(|it| it.is_fatal || it.fault == Fault::Full) {
        life.repair();
    }
    life.power_on();
    life.start()
}

pub(super) fn start_and_cut(life: &mut Life) -> Outcome {
    life.repair();
    life.power_on();
    let disks = life.world.take_disks().expect("volatile disks");
    let plan = life.plan.take().unwrap_or_else(|| life.any_plan());
    life.cut_during(disks, |life| life.try_start(&plan).map(drop))
}

pub(super) fn write_back(life: &mut Life) -> Outcome {
    life.make_durable();
    Ok(())
}

pub(super) fn lose(life: &mut Life, leg: usize) -> Outcome {
    let name = &life.stack.bottom.legs[leg].name;
    life.world.rename(name, &format!("{name}.away"));
    // It isn't asked for by itself then.
    life.plan.take_if(|plan| plan.alone == Some(leg));
    Ok(())
}

pub(super) fn bring_back(life: &mut Life, leg: usize) -> Outcome {
    let name = &life.stack.bottom.legs[leg].name;
    life.world.rename(&format!("{name}.away"), name);
    Ok(())
}

pub(super) fn replace(life: &mut Life, leg: usize) -> Outcome {
    life.world.make_blank(&life.stack.bottom.legs[leg].name, BYTES);
    life.stack.bottom.replaced(leg);
    let mut plan = Plan::of(&life.stack);
    // As the documentation of tables says.
    plan.sync = life.random.one_in(2);
    life.plan = Some(plan);
    Ok(())
}

/// With all that is noted on it.
pub(super) fn copy_leg(life: &mut Life) -> Outcome {
    let legs = &life.stack.bottom.legs;
    life.world.copy(&legs[0].name, &legs[1].name);
    let (is, history) = (legs[0].is.clone(), legs[0].history.clone());
    let leg = &mut life.stack.bottom.legs[1];
    (leg.is, leg.history, leg.is_copy) = (is, history, true);
    Ok(())
}

/// That of a mirror of other files.
pub(super) fn put_strange_log(life: &mut Life) -> Outcome {
    let mut other = Life::new(2, Log::Disk, life.random.number());
    super::begin(&mut other)?;
    other.world.stop()?;
    std::fs::copy(other.world.medium("log"), life.world.medium("log")).unwrap();
    life.stack.bottom.is_log_strange = true;
    Ok(())
}

pub(super) fn lose_log(life: &mut Life) -> Outcome {
    Stack::lose_log(&life.world);
    life.stack.bottom.is_log_strange = false;
    Ok(())
}

pub(super) fn swap(life: &mut Life) -> Outcome {
    let mut plan = life.plan.take().unwrap_or_else(|| Plan::of(&life.stack));
    life.random.shuffle(&mut plan.legs);
    life.plan = Some(plan);
    Ok(())
}

pub(super) fn swap_first(life: &mut Life) -> Outcome {
    let mut plan = life.plan.take().unwrap_or_else(|| Plan::of(&life.stack));
    plan.legs.swap(0, 1);
    life.plan = Some(plan);
    Ok(())
}

pub(super) fn older_table(life: &mut Life) -> Outcome {
    let mut plan = Plan::of(&life.stack);
    // Nothing tells of an overlay but its name.
    let least = usize::from(life.stack.bottom.is_unmarked);
    if plan.layers > least {
        plan.layers = least + life.below(plan.layers - least);
        life.plan = Some(plan);
    }
    Ok(())
}

/// Of a layer that something beneath tells of.
pub(super) fn lose_cow(life: &mut Life) -> Outcome {
    let first = usize::from(life.stack.bottom.is_unmarked);
    let layer = first + life.below(life.stack.layers.len() - first);
    let layer = &mut life.stack.layers[layer];
    if !layer.is_lost && layer.without.is_none() {
        layer.is_lost = true;
        life.world.rename(&layer.cow, &format!("{}.away", layer.cow));
    }
    Ok(())
}

/// Only this leg is served, which the others then know nothing of.
pub(super) fn alone(life: &mut Life, leg: usize) -> Outcome {
    let mut plan = Plan::of(&life.stack);
    plan.alone = Some(leg);
    life.plan = Some(plan);
    Ok(())
}

pub(super) fn copy_base(life: &mut Life) -> Outcome {
    let bottom = &life.stack.bottom;
    life.world.copy(&bottom.legs[0].name, "copy");
    let mark = life.stack.layers.first().map(|layer| layer.cow.clone());
    let mark = mark.filter(|_| !bottom.is_unmarked).or_else(|| bottom.strange_mark.clone());
    let history = bottom.legs[0].history.clone();
    life.copy = Some(Copy { content: bottom.content.clone(), history, mark });
    Ok(())
}

pub(super) fn put_copy_back(life: &mut Life) -> Outcome {
    let Copy { content, history, mark } = life.copy.take().expect("a copy");
    let bottom = &mut life.stack.bottom;
    life.world.copy("copy", &bottom.legs[0].name);
    (bottom.content, bottom.legs[0].history) = (content, history);
    (bottom.is_restored, bottom.is_mark_accepted) = (true, false);
    (bottom.is_unmarked, bottom.is_moved) = (mark.is_none(), mark.is_some());
    let first = life.stack.layers.first();
    bottom.strange_mark = mark.filter(|mark| first.is_none_or(|layer| layer.cow != *mark));
    Ok(())
}

/// Another program writes to it.
pub(super) fn change_base(life: &mut Life) -> Outcome {
    change_base_unsynced(life)?;
    let file = File::open(life.world.medium(&life.stack.bottom.legs[0].name));
    file.and_then(|file| file.sync_all()).unwrap();
    life.stack.bottom.content.flushed();
    Ok(())
}

/// As `cp` does.
pub(super) fn change_base_unsynced(life: &mut Life) -> Outcome {
    life.repair();
    let number = life.new_number();
    let range = pages(life);
    let bottom = &mut life.stack.bottom;
    let path = life.world.path(&bottom.legs[0].name);
    let file = File::options().write(true).open(path).unwrap();
    for page in range {
        file.write_all_at(&model::bytes(number, page), (page * PAGE) as u64).unwrap();
        bottom.content.write(page, number);
        bottom.content.written(page, number);
    }
    bottom.written();
    Ok(())
}

/// By the daemon, when it is named the first time.
pub(super) fn make_overlay(life: &mut Life) -> Outcome {
    let cow = life.new_cow();
    let bottom = &life.stack.bottom;
    let (content, over) = (bottom.content.clone(), bottom.history());
    life.stack.layers.push(Layer::new(cow, content, over));
    life.stack.bottom.is_unmarked = true;
    Ok(())
}

pub(super) fn merge_offline(life: &mut Life) -> Outcome {
    let mut plan = Plan::of(&life.stack);
    crate::refusals::merge(life, &mut plan, "")
}
