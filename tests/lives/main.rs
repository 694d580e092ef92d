// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Lives of devices: what was acknowledged is there for as long as one place has it, whatever is
//! lost, comes back, is replaced or mixed up while nobody looks; and what is ambiguous is refused, with
//! a way out that works.

mod controls;
#[allow(dead_code, reason = "the frontend's tests use all of it")]
#[path = "../frontend/driver.rs"]
mod driver;
mod events;
mod life;
mod model;
#[path = "../frontend/power/record.rs"]
mod record;
mod refusals;
mod stack;
#[allow(dead_code, reason = "the frontend's tests use all of it")]
#[path = "../frontend/vmm.rs"]
mod vmm;
mod world;

use guest_harness::{Random, Rounds, serve_volatile_disks};

use self::life::Life;
use self::world::World;

/// How much happens in a life.
const EVENTS: usize = 40;

/// The default seed. It is fixed, so that a failure is due to the change.
const SEED: u64 = 3;

#[test]
#[ignore = "no test: the process that serves the disks of the others"]
fn serve_disks() {
    serve_volatile_disks().unwrap();
}

/// Whether this machine lets anybody have a served window and volatile disks.
fn can_live() -> bool {
    let mut world = World::new();
    world.make_blank("a.img", world::BYTES);
    let arguments = vec!["--file".into(), world.path("a.img").into()];
    let can = match world.start(arguments) {
        Err(refusal) => {
            assert!(refusal.contains("a served window needs"), "{refusal}");
            false
        }
        Ok(()) => world.stop().is_ok() && world.make_volatile(1, &[]),
    };
    if !can {
        eprintln!("skipped: no FUSE here");
    }
    can
}

/// Lives one life, and returns what is wrong.
fn live(seed: u64, lying: &'static [&'static str]) -> Result<(), String> {
    let mut life = Life::any(seed);
    life.lying = lying;
    let lived = events::begin(&mut life)
        .and_then(|()| (0..EVENTS).try_for_each(|_| events::any(&mut life)));
    lived.map_err(|wrong| {
        format!(
            "VHOST_PMEM_LIVES_ROUNDS=1 VHOST_PMEM_LIVES_SEED={seed}:\n{}\n  {wrong}",
            life.story()
        )
    })
}

#[test]
fn acknowledged_data_is_there_while_one_place_has_it() {
    if !can_live() {
        return;
    }
    let rounds = Rounds::from_environment_or("VHOST_PMEM_LIVES", 40, SEED);
    let mut seeds = Random::new(rounds.seed);
    let mut failed = 0;
    for _ in 0..rounds.count {
        // A single round is the life of that seed.
        let seed = if rounds.count == 1 { rounds.seed } else { seeds.number() };
        if let Err(wrong) = live(seed, &[]) {
            eprintln!("{wrong}\n");
            failed += 1;
        }
    }
    assert_eq!(failed, 0, "of {} lives", rounds.count);
}

/// These tests can fail: a disk that doesn't sync is found out.
#[test]
fn life_on_a_disk_that_lies_is_found_out() {
    if !can_live() {
        return;
    }
    let found = (0..60).find_map(|seed| live(seed, &["a.img"]).err());
    let found = found.expect("nobody noticed");
    eprintln!("{found}");
    // A page or a mark is lost.
    let is_it = ["holds write", "serves, without"].iter().any(|what| found.contains(what));
    assert!(is_it, "it was something else");
}
