// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What happens while the daemon serves.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use guest_harness::Fault;

use super::can::has;
use super::eventually;
use crate::life::{Life, Outcome};
use crate::model::{self, PAGES};
use crate::stack::{Layer, State};
use crate::vmm::{Abilities, Vmm};
use crate::world::BYTES;

pub(super) fn pages(life: &mut Life) -> Range<usize> {
    let start = life.below(PAGES);
    let len = 1 + life.below(8);
    start..(start + len).min(PAGES)
}

pub(super) fn write(life: &mut Life) -> Outcome {
    let (number, pages) = (life.new_number(), pages(life));
    for page in pages.clone() {
        write_page(life, page, number)?;
    }
    life.changed(pages, number);
    Ok(())
}

pub(super) fn write_page(life: &mut Life, page: usize, number: model::Number) -> Outcome {
    life.will_write();
    life.stack.content().write(page, number);
    let window = life.window.as_ref().expect("a window");
    match window.write(page, &model::bytes(number, page)) {
        Ok(()) => life.stack.content().written(page, number),
        // It is known to have failed, and no matter of a flush.
        Err(_) if life.is_troubled() => {}
        Err(error) => return Err(format!("a write failed, and nothing is wrong: {error}")),
    }
    Ok(())
}

/// As a guest does, who learns of what went wrong when it flushes.
pub(super) fn store(life: &mut Life) -> Outcome {
    let (number, pages) = (life.new_number(), pages(life));
    life.will_write();
    for page in pages.clone() {
        life.stack.content().write(page, number);
        let window = life.window.as_ref().expect("a window");
        match window.store(page, &model::bytes(number, page)) {
            Ok(()) => life.stack.content().written(page, number),
            Err(_) if life.is_troubled() => {}
            Err(error) => return Err(format!("a store failed, and nothing is wrong: {error}")),
        }
    }
    life.changed(pages, number);
    Ok(())
}

/// Writes what is there already.
pub(super) fn write_same(life: &mut Life) -> Outcome {
    let pages = pages(life);
    write_same_to(life, pages)
}

pub(super) fn write_same_everywhere(life: &mut Life) -> Outcome {
    write_same_to(life, 0..PAGES)
}

pub(super) fn write_same_to(life: &mut Life, pages: Range<usize>) -> Outcome {
    for page in pages {
        if let Some(number) = life.stack.content().page(page) {
            write_page(life, page, number)?;
        }
    }
    Ok(())
}

pub(super) fn flush(life: &mut Life) -> Outcome {
    let window = life.window.as_ref().expect("a window");
    match window.flush() {
        Ok(()) if life.has_failed => Err("a flush succeeds after a failure".to_owned()),
        Ok(()) => {
            life.flushed();
            life.ask_legs()
        }
        Err(error) => {
            life.stack.content().crashed();
            life.failed(&error)
        }
    }
}

pub(super) fn snapshot(life: &mut Life) -> Outcome {
    let cow = life.new_cow();
    let content = life.stack.content().clone();
    let over = life.stack.bottom.history();
    let mut layer = Layer::new(cow, content.clone(), over);
    layer.without = Some(content);
    let path = life.world.shown(&layer.cow);
    // The first snapshot marks them, even if its outcome is unknown.
    life.stack.bottom.is_unmarked &= !life.stack.layers.is_empty();
    life.stack.layers.push(layer.clone());
    match life.world.ask(&["snapshot", &path]) {
        // What a disk didn't take before it was repaired is told of now.
        Err(refusal) if life.is_troubled() && refusal.contains("cannot sync") => {
            life.stack.layers.pop();
            life.has_failed = true;
            return Ok(());
        }
        asked => drop(asked?),
    }
    // It flushes, and what is beneath isn't written any more.
    layer.content.flushed();
    layer.without = None;
    life.stack.layers.pop();
    life.flushed();
    layer.over = life.stack.bottom.history();
    life.stack.layers.push(layer);
    life.live_layers += 1;
    Ok(())
}

pub(super) fn merge(life: &mut Life) -> Outcome {
    life.will_merge();
    life.world.ask(&["merge"])?;
    let content = life.stack.content().clone();
    life.stack.pop(content);
    life.live_layers = life.live_layers.saturating_sub(1);
    Ok(())
}

/// The files are the snapshot, to be copied by anyone.
pub(super) fn clone(life: &mut Life) -> Outcome {
    let bottom = &life.stack.bottom;
    for leg in bottom.legs.iter().filter(|leg| leg.is == State::Current) {
        life.world.copy_bytes(&leg.name, "clone");
        let bytes = std::fs::read(life.world.medium("clone")).unwrap();
        let checked = bottom.content.clone().check(&bytes);
        checked.map_err(|wrong| format!("a copy of {}, taken of a snapshot: {wrong}", leg.name))?;
    }
    Ok(())
}

pub(super) fn drop_layer(life: &mut Life) -> Outcome {
    life.window = None;
    let layers = &mut life.stack.layers;
    let below = match layers.len() {
        1 => life.stack.bottom.content.clone(),
        many => layers[many - 2].content.clone(),
    };
    let layer = layers.last_mut().expect("a layer");
    let is_merging = layer.is_merging;
    let without = layer.without.replace(below.clone());
    // The kernel tells of the closing in its own time.
    let dropped = eventually(|| match life.world.ask(&["drop"]) {
        Err(refusal) if refusal.contains("has the window open") => Err(refusal),
        done => Ok(done.map(drop)),
    })?;
    match dropped {
        // What is beneath may be neither state.
        Err(refusal) if is_merging && refusal.contains("a merge was begun") => {
            life.stack.layers.last_mut().expect("a layer").without = without;
        }
        dropped => {
            dropped?;
            // What is beneath has got nothing of it.
            let layer = life.stack.layers.last_mut().expect("a layer");
            (layer.is_written, layer.is_kept) = (false, false);
            life.stack.pop(below);
            life.live_layers -= 1;
        }
    }
    life.window = Some(life.world.open().map_err(|error| error.to_string())?);
    life.check("after drop")
}

pub(super) fn break_any(life: &mut Life, fault: Fault) -> Outcome {
    let Some(layer) = life.stack.layers.last() else {
        let leg = life.below(life.stack.bottom.legs.len());
        return break_leg_by(life, leg, fault);
    };
    let disk = layer.cow.clone();
    life.break_disk(disk, fault, true);
    Ok(())
}

pub(super) fn break_leg(life: &mut Life, leg: usize) -> Outcome {
    break_leg_by(life, leg, Fault::Broken)
}

pub(super) fn break_leg_by(life: &mut Life, leg: usize, fault: Fault) -> Outcome {
    life.ask_legs()?;
    let bottom = &life.stack.bottom;
    // It isn't served if it is lost; and is all there is if no other leg is as good yet.
    if has(life, leg) {
        let is_last = bottom.legs[leg].is == State::Current && bottom.current() == 1;
        let is_fatal = is_last || life.is_recovering || life.is_alone;
        // What is written from now on, and not flushed, the others may have without it.
        life.stack.bottom.began_without(leg);
        let name = life.stack.bottom.legs[leg].name.clone();
        life.break_disk(name, fault, is_fatal);
    }
    Ok(())
}

pub(super) fn repair(life: &mut Life) -> Outcome {
    // Afterwards a leg that was dropped looks as one that is behind for another reason.
    if life.is_up() {
        life.ask_legs()?;
    }
    life.repair();
    Ok(())
}

/// Works once there is nothing wrong with the disk any more.
pub(super) fn clear_failure(life: &mut Life) -> Outcome {
    let is_repaired = life.trouble.is_none();
    match life.world.ask(&["clear-failure"]) {
        Ok(_) => life.cleared(),
        Err(refusal) if refusal.contains("start the daemon anew") => {}
        Err(refusal) if is_repaired => return Err(refusal),
        Err(_) => {}
    }
    Ok(())
}

/// By a new file, while the guest runs. It has everything when that returns.
pub(super) fn replace(life: &mut Life, leg: usize) -> Outcome {
    let new = life.new_leg();
    let old = life.world.shown(&life.stack.bottom.legs[leg].name);
    File::create(life.world.path(&new)).and_then(|file| file.set_len(BYTES as u64)).unwrap();
    match life.world.ask(&["replace", &old, &life.world.shown(&new)]) {
        Ok(_) => {
            life.has_replaced = true;
            life.stack.bottom.legs[leg].name = new;
            life.stack.bottom.replaced(leg);
            life.ask_legs()?;
            match life.stack.bottom.legs[leg].is {
                State::Current => Ok(()),
                _ => Err("a leg that was replaced isn't healthy".to_owned()),
            }
        }
        // One leg after another; and not the last one.
        Err(refusal) if refusal.contains("legs are being brought up") => Ok(()),
        Err(refusal) if refusal.contains("it is the last healthy leg") => Ok(()),
        Err(refusal) => Err(refusal),
    }
}

/// Of a VMM that has lost its connection, and goes on.
pub(super) fn drop_under_guest(life: &mut Life) -> Outcome {
    let mut vmm = Vmm::start(life.world.socket(), Abilities::default());
    if vmm.driver.flush() != 0 {
        return life.failed(&std::io::Error::other("a guest's"));
    }
    life.flushed();
    let mapper = Arc::clone(&vmm.mapper);
    *mapper.frontend.lock().unwrap() = None;
    drop(vmm);
    eventually(|| match life.world.status()?["frontend"].as_bool() {
        Some(false) => Ok(()),
        _ => Err("the frontend is there still".to_owned()),
    })?;
    life.window = None;
    let dropped = life.world.ask(&["drop"]);
    life.window = Some(life.world.open().map_err(|error| error.to_string())?);
    match dropped {
        Err(_) => Ok(()),
        Ok(_) => Err("a snapshot was dropped while a VMM has the window mapped".to_owned()),
    }
}

pub(super) fn settle(life: &mut Life) -> Outcome {
    if life.trouble.is_some() || !life.stack.layers.is_empty() {
        return Ok(());
    }
    eventually(|| match life.world.legs() {
        Ok(legs) if legs.iter().any(|state| state == "recovering") => Err(format!("{legs:?}")),
        done => Ok(done.map(drop)),
    })??;
    life.ask_legs()
}

pub(super) fn resync(life: &mut Life) -> Outcome {
    // A leg that isn't there can't be brought up.
    let _ = life.world.ask(&["resync"]);
    life.ask_legs()
}

pub(super) fn kill(life: &mut Life) -> Outcome {
    if life.trouble.is_some() {
        life.ask_legs()?;
    }
    life.kill();
    Ok(())
}

pub(super) fn power_cut(life: &mut Life) -> Outcome {
    let disks = life.world.take_disks().expect("volatile disks");
    life.cut_during(disks, |_| Ok(()))
}
