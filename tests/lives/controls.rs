// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Lives that were once lost: what happens is said, and not left to chance.

use crate::can_live;
use crate::events;
use crate::life::{Life, Outcome};
use crate::stack::{Log, Plan};

/// Has a device on so many files live through these events; its pages are chosen by `seed`.
#[track_caller]
fn lives_through(legs: usize, log: Log, script: &[&str]) {
    if !can_live() {
        return;
    }
    for seed in 0..4 {
        let mut life = Life::new(legs, log, seed);
        let lived = events::begin(&mut life).and_then(|()| events::all(&mut life, script));
        told(&life, lived);
    }
}

#[track_caller]
fn told(life: &Life, lived: Outcome) {
    if let Err(wrong) = lived {
        panic!("{}\n  {wrong}", life.story());
    }
}

const STALE_LEG: &[&str] = &[
    "stop",
    "start on disks",
    "settle",
    "write",
    "flush",
    "leg a breaks",
    "write",
    "flush",
    "stop",
    "write back",
    "start",
    "settle",
    "stop",
];

#[test]
fn mirror_with_a_core_log_does_not_believe_a_stale_leg() {
    lives_through(2, Log::Core, STALE_LEG);
}

#[test]
fn mirror_whose_log_is_lost_does_not_believe_a_stale_leg() {
    let mut script = STALE_LEG.to_vec();
    script.insert(script.len() - 3, "log is lost");
    lives_through(2, Log::Disk, &script);
}

#[test]
fn mirror_does_not_believe_a_blank_leg() {
    for log in [Log::Core, Log::Disk] {
        let script = ["write", "flush", "stop", "leg a is replaced", "start", "settle", "stop"];
        lives_through(2, log, &script);
    }
}

#[test]
fn mirror_whose_legs_are_swapped_knows_them() {
    let mut script = STALE_LEG.to_vec();
    script[5] = "leg b breaks";
    script.insert(script.len() - 3, "first two legs are swapped");
    lives_through(2, Log::Disk, &script);
}

#[test]
fn resync_that_was_cut_at_any_point_is_gone_on_with() {
    if !can_live() {
        return;
    }
    for count in (0..60).step_by(2) {
        let mut life = Life::new(2, Log::Disk, count);
        let lived = events::begin(&mut life)
            .and_then(|()| events::all(&mut life, &["write", "flush", "stop", "leg b is replaced"]))
            .and_then(|()| {
                life.plan = Some(Plan { sync: true, ..Plan::of(&life.stack) });
                life.power_on();
                let mut disks = life.world.take_disks().expect("volatile disks");
                disks.cut_after(count).unwrap();
                life.cut(disks, |life| life.start().and_then(|()| events::all(life, &["settle"])))
            })
            .and_then(|()| events::all(&mut life, &["start", "settle", "stop"]));
        told(&life, lived);
    }
}

#[test]
fn published_window_remembers_a_write_that_failed() {
    for fault in ["disk is full", "disk breaks"] {
        lives_through(
            1,
            Log::None,
            &[
                "stop",
                "start on disks",
                "write",
                "flush",
                fault,
                "store",
                "flush",
                "flush",
                "disk is repaired",
                "flush",
                "clear failure",
                "write",
                "flush",
                "power cut",
                "start",
            ],
        );
    }
}

#[test]
fn overlay_does_not_rely_on_a_base_that_is_not_durable() {
    lives_through(
        1,
        Log::None,
        &[
            "stop",
            "start on disks",
            "stop",
            "base is changed, and not synced",
            "overlay is made",
            "start on disks",
            "write the same everywhere",
            "flush",
            "power cut",
            "start",
        ],
    );
}

#[test]
fn snapshot_is_not_dropped_while_a_vmm_has_the_window_mapped() {
    lives_through(1, Log::None, &["write", "flush", "snapshot", "write", "drop under a guest"]);
}

#[test]
fn snapshot_whose_changes_are_lost_is_not_served() {
    for layers in [1, 2] {
        let mut script = ["snapshot", "write", "flush"].repeat(layers);
        script.extend(["stop", "COW store is lost", "start"]);
        lives_through(1, Log::None, &script);
    }
}

#[test]
fn snapshot_whose_base_was_changed_is_not_served() {
    let script = ["snapshot", "write", "flush", "stop", "base is changed", "start"];
    lives_through(1, Log::None, &script);
}

#[test]
fn snapshot_over_an_older_copy_of_its_base_is_not_served() {
    lives_through(
        1,
        Log::None,
        &[
            "write",
            "flush",
            "stop",
            "base is copied",
            "start",
            "write",
            "flush",
            "snapshot",
            "write",
            "flush",
            "stop",
            "copy of base is put back",
            "start",
        ],
    );
}

#[test]
fn snapshots_over_one_another_are_merged_after_a_restart() {
    if !can_live() {
        return;
    }
    for end in ["kill", "stop"] {
        let mut life = Life::new(1, Log::None, 0);
        let mut taken = ["snapshot", "write", "flush"].repeat(2);
        taken.push(end);
        let lived =
            events::begin(&mut life).and_then(|()| events::all(&mut life, &taken)).and_then(|()| {
                // Only the marks tell of them.
                life.plan = Some(Plan { layers: 0, ..Plan::of(&life.stack) });
                events::all(&mut life, &["start", "merge", "write", "flush", "merge", end, "start"])
            });
        told(&life, lived);
    }
}
