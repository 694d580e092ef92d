// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What happens in a life.

mod can;
mod down;
mod up;

use std::thread;
use std::time::{Duration, Instant};

use guest_harness::{Fault, patience};

use crate::life::{Life, Outcome};

/// How long something may take that is done in its own time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Something that happens.
pub(crate) struct Event {
    pub(crate) name: &'static str,
    /// How often, of all that can happen.
    weight: u64,
    can: fn(&Life) -> bool,
    happen: fn(&mut Life) -> Outcome,
}

pub(crate) const EVENTS: &[Event] = &[
    // While the daemon serves.
    event("write", 12, Life::is_up, up::write),
    event("store", 6, Life::is_up, up::store),
    event("write the same", 3, Life::is_up, up::write_same),
    event("write the same everywhere", 1, Life::is_up, up::write_same_everywhere),
    event("flush", 10, Life::is_up, up::flush),
    event("look", 2, Life::is_up, |life| life.check("looked at")),
    event("snapshot", 3, can::snapshot, up::snapshot),
    event("merge", 3, can::merge, up::merge),
    event("drop", 1, can::drop, up::drop_layer),
    event("drop under a guest", 1, can::drop, up::drop_under_guest),
    event("clone", 1, can::has_layers_up, up::clone),
    event(
        "leg a is replaced live",
        1,
        |life| can::replace_live(life, 0),
        |life| up::replace(life, 0),
    ),
    event(
        "leg b is replaced live",
        1,
        |life| can::replace_live(life, 1),
        |life| up::replace(life, 1),
    ),
    event("settle", 3, can::is_mirror_up, up::settle),
    event("resync", 2, can::is_mirror_up, up::resync),
    event("clear failure", 3, can::has_failed, up::clear_failure),
    event("stop", 3, Life::is_up, Life::stop),
    event("kill", 3, Life::is_up, up::kill),
    event("power cut", 3, can::is_up_on_disks, up::power_cut),
    event("disk is full", 1, can::break_disk, |life| up::break_any(life, Fault::Full)),
    event("disk breaks", 1, can::break_disk, |life| up::break_any(life, Fault::Broken)),
    event("leg a breaks", 1, |life| can::break_leg(life, 0), |life| up::break_leg(life, 0)),
    event("leg b breaks", 1, |life| can::break_leg(life, 1), |life| up::break_leg(life, 1)),
    event("disk is repaired", 4, can::has_trouble, up::repair),
    // While it doesn't.
    event("start", 6, can::is_down, down::start),
    event("start on disks", 6, can::is_down, down::start_on_disks),
    event("power cut at its start", 1, can::is_down, down::start_and_cut),
    event("write back", 6, can::is_down_on_disks, down::write_back),
    event("leg a is lost", 1, |life| can::lose(life, 0), |life| down::lose(life, 0)),
    event("leg b is lost", 1, |life| can::lose(life, 1), |life| down::lose(life, 1)),
    event("leg a is back", 2, |life| can::be_back(life, 0), |life| down::bring_back(life, 0)),
    event("leg b is back", 2, |life| can::be_back(life, 1), |life| down::bring_back(life, 1)),
    event("leg a is replaced", 1, |life| can::replace(life, 0), |life| down::replace(life, 0)),
    event("leg b is replaced", 1, |life| can::replace(life, 1), |life| down::replace(life, 1)),
    event("leg a alone", 1, |life| can::be_alone(life, 0), |life| down::alone(life, 0)),
    event("leg b alone", 1, |life| can::be_alone(life, 1), |life| down::alone(life, 1)),
    event("leg b is a copy of leg a", 1, can::copy_leg, down::copy_leg),
    event("log is another mirror's", 1, can::has_log_down, down::put_strange_log),
    event("log is lost", 1, can::has_log_down, down::lose_log),
    event("legs are swapped", 1, can::is_mirror_down, down::swap),
    event("first two legs are swapped", 1, can::is_mirror_down, down::swap_first),
    event("older table", 2, can::has_marked_layers_down, down::older_table),
    event("COW store is lost", 1, can::has_marked_layers_down, down::lose_cow),
    event("merge offline", 1, can::merge_offline, down::merge_offline),
    event("base is copied", 1, can::is_file_down, down::copy_base),
    event("copy of base is put back", 1, can::has_copy_down, down::put_copy_back),
    event("base is changed", 1, can::change_base, down::change_base),
    event(
        "base is changed, and not synced",
        2,
        can::is_bare_file_on_disks,
        down::change_base_unsynced,
    ),
    event("overlay is made", 1, can::is_bare_file, down::make_overlay),
];

/// In the midst of which the power may be cut. A guest that stores dies with its disks.
const CUT: &[&str] =
    &["write", "write the same", "flush", "snapshot", "merge", "drop", "resync", "stop"];

const fn event(
    name: &'static str,
    weight: u64,
    can: fn(&Life) -> bool,
    happen: fn(&mut Life) -> Outcome,
) -> Event {
    Event { name, weight, can, happen }
}

/// Has any event happen that can.
pub(crate) fn any(life: &mut Life) -> Outcome {
    let can: Vec<_> = EVENTS.iter().filter(|event| (event.can)(life)).collect();
    let mut at = life.random.below(can.iter().map(|event| event.weight).sum());
    let event = can.into_iter().find(|event| {
        let is_it = at < event.weight;
        at = at.wrapping_sub(event.weight);
        is_it
    });
    let event = event.expect("a weight");
    life.note(event.name);
    // Now and then the power is cut in the midst of it.
    let can_cut = life.world.is_volatile() && CUT.contains(&event.name);
    if can_cut && life.random.one_in(12) {
        let disks = life.world.take_disks().expect("volatile disks");
        return life.cut_during(disks, event.happen);
    }
    (event.happen)(life)
}

/// How a life begins: whole.
pub(crate) fn begin(life: &mut Life) -> Outcome {
    life.start()?;
    if life.stack.is_mirror() { up::settle(life) } else { Ok(()) }
}

/// Has these happen, one after another.
pub(crate) fn all(life: &mut Life, names: &[&str]) -> Outcome {
    for name in names {
        let event = EVENTS.iter().find(|event| event.name == *name);
        let event = event.unwrap_or_else(|| panic!("there is no event {name:?}"));
        assert!((event.can)(life), "{name:?} can't happen");
        life.note(*name);
        (event.happen)(life)?;
    }
    Ok(())
}

/// Tries something until it is done; or says what keeps it from that.
fn eventually<T>(mut attempt: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let deadline = Instant::now() + patience(PATIENCE);
    loop {
        match attempt() {
            Err(obstacle) if Instant::now() < deadline => drop(obstacle),
            done => return done,
        }
        thread::sleep(Duration::from_millis(2));
    }
}
