// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests that come, go, are cut short and lose their device, one after another, on daemons that
//! stay: what a guest has synced is there after whatever came next, and the daemons hold no more at
//! the end than at the beginning.
//!
//! # Model
//!
//! - There are two [devices](device::Device), one in a direct window and one that is an overlay in a
//!   served one, each with a daemon, which serves all the way.
//! - A [session](session) is a QEMU on one of them, in turn: a guest boots, and a few
//!   [events](event::Event) happen to it.
//! - The guest says over its serial line what it has synced and, whenever it has mounted the
//!   filesystem, what is in it; the [ledger](ledger::Ledger) compares.
//! - A short round is a test. `cargo xtask soak` goes on for longer: `VHOST_PMEM_SOAK_MINUTES`.

mod device;
mod event;
#[allow(dead_code, reason = "the tests of guests use all of it")]
#[path = "../guest/filesystem.rs"]
mod filesystem;
mod held;
mod ledger;
mod progress;
mod session;

use std::time::Duration;

use guest_harness::{Lab, Random, Rounds};

use crate::device::Device;
use crate::filesystem::Filesystem;
use crate::progress::Progress;
use crate::session::Session;

const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-pmemd");

/// For as long as the environment says, else for a session on each device.
fn time_limit() -> Duration {
    let minutes = std::env::var("VHOST_PMEM_SOAK_MINUTES").map_or(0, |minutes| {
        minutes.parse().unwrap_or_else(|_| panic!("VHOST_PMEM_SOAK_MINUTES={minutes} is no number"))
    });
    Duration::from_secs(60 * minutes)
}

#[test]
fn soaked_devices_lose_nothing_and_leak_nothing() {
    let limit = time_limit();
    // The rounds are sessions on each device, of which there are more for as long as there is time.
    let rounds = Rounds::from_environment("VHOST_PMEM_SOAK", 1);
    let mut random = Random::new(rounds.seed);
    let lab = Lab::open().unwrap();
    let mut filesystems = [Filesystem::Ext4, Filesystem::Xfs];
    random.shuffle(&mut filesystems);
    let devices = [Device::direct(&lab, filesystems[0]), Device::overlay(&lab, filesystems[1])];
    let mut devices: Vec<_> = devices.into_iter().flatten().collect();
    let progress = Progress::new(rounds.seed);

    let mut round = 0;
    while round < rounds.count || progress.elapsed() < limit {
        for device in &mut devices {
            let mut session = Session::boot(&lab, device, &progress);
            event::plan(&mut random, limit.is_zero()).into_iter().for_each(|event| {
                session.happen(event, &mut random);
            });
        }
        round += 1;
    }
    let sessions = devices.iter_mut().map(|device| Session::boot(&lab, device, &progress));
    // All of them at once.
    let sessions: Vec<_> = sessions.collect();
    sessions.into_iter().for_each(Session::end_in_order);
    let held: Vec<_> = devices.into_iter().map(Device::finish).collect();
    progress.summarise(&held);
}
