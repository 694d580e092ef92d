// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A ring starts at its used index. cloud-hypervisor connects again to a daemon that was restarted
//! under its guest, and names the available index as the ring's base; what was not answered before
//! must be answered then.

use std::fs::File;
use std::time::Duration;

use guest_harness::Daemon;
use rustix::process::Signal;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use super::{Served, Vmm, window};
use crate::driver::{Driver, QUEUE_SIZE};

/// How long a daemon that was killed may take to be gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// What sets up a ring.
#[derive(Debug, Clone, Copy)]
enum Message {
    Addresses,
    Base(u16),
    Kick,
    Enable,
}

/// A guest whose VMM isn't connected.
struct Guest {
    driver: Driver,
    ram: File,
}

impl Guest {
    /// It adds flushes, of which no device need be told.
    fn add_flushes(&mut self, count: u64) {
        add_flushes(&mut self.driver, count);
    }

    /// Its VMM connects again; the guest notices nothing.
    fn connect(self, daemon: &Daemon, file: &File, messages: &[Message]) -> Vmm {
        // What the former device didn't see must not wake the next one.
        self.driver.forget_kick();
        let mut vmm = Vmm::negotiate(daemon, self.ram, self.driver);
        vmm.share(&[window(file)]);
        vmm.frontend.set_vring_num(0, QUEUE_SIZE).unwrap();
        vmm.frontend.set_vring_call(0, &vmm.driver.call).unwrap();
        messages.iter().for_each(|message| vmm.send(*message));
        vmm
    }
}

fn add_flushes(driver: &mut Driver, count: u64) {
    for slot in 0..count {
        driver.add_flush(slot);
    }
    driver.publish();
}

impl Vmm {
    fn disconnect(self) -> Guest {
        Guest { driver: self.driver, ram: self.ram }
    }

    fn send(&mut self, message: Message) {
        match message {
            Message::Addresses => self.set_addresses(),
            Message::Base(base) => self.frontend.set_vring_base(0, base).unwrap(),
            Message::Kick => self.frontend.set_vring_kick(0, &self.driver.kick).unwrap(),
            Message::Enable => self.frontend.set_vring_enable(0, true).unwrap(),
        }
    }

    /// The guest resets the device; its requests so far were answered.
    fn stop(&mut self, requests: u32) {
        self.frontend.set_vring_enable(0, false).unwrap();
        assert_eq!(self.frontend.get_vring_base(0).unwrap(), requests);
        self.frontend.set_vring_call(0, &self.driver.call).unwrap();
    }

    /// All flushes that were added are answered, once each.
    #[track_caller]
    fn expect_answers(&mut self, count: u64, context: &str) {
        for _ in 0..count {
            assert_eq!(self.driver.answer().1, 4, "{context}");
        }
        for slot in 0..count {
            assert_eq!(self.driver.status(slot), 0, "{context}");
        }
        assert_eq!(self.driver.flush(), 0, "{context}");
        assert_eq!(self.driver.answers(), 0, "{context}");
    }
}

/// All orders of some messages.
fn orders(messages: &[Message]) -> Vec<Vec<Message>> {
    if messages.is_empty() {
        return vec![Vec::new()];
    }
    let first = |index: usize| {
        let mut rest = messages.to_vec();
        let first = rest.remove(index);
        orders(&rest).into_iter().map(move |rest| [vec![first], rest].concat())
    };
    (0..messages.len()).flat_map(first).collect()
}

#[test]
fn ring_starts_at_its_used_index_in_every_order_of_the_messages() {
    let served = Served::start();
    let file = served.file();
    let mut vmm = Vmm::start(&served.daemon, &[window(&file)]);
    assert_eq!(vmm.driver.flush(), 0);
    let orders = orders(&[Message::Addresses, Message::Base(0), Message::Kick, Message::Enable]);
    assert_eq!(orders.len(), 24);
    for mut order in orders {
        let mut guest = vmm.disconnect();
        guest.add_flushes(3);
        let available = guest.driver.available();
        for message in &mut order {
            if let Message::Base(base) = message {
                *base = available;
            }
        }
        vmm = guest.connect(&served.daemon, &file, &order);
        vmm.expect_answers(3, &format!("{order:?}"));
    }
}

#[test]
fn ring_whose_base_is_before_or_beyond_it_starts_at_its_used_index() {
    let served = Served::start();
    let file = served.file();
    for base in [0, 1, 2, 4, 5, 200, u16::MAX] {
        let mut vmm = Vmm::start(&served.daemon, &[window(&file)]);
        assert_eq!((vmm.driver.flush(), vmm.driver.flush()), (0, 0));
        vmm.stop(2);
        add_flushes(&mut vmm.driver, 2);
        vmm.driver.forget_kick();
        let messages = [Message::Addresses, Message::Base(base), Message::Kick, Message::Enable];
        messages.into_iter().for_each(|message| vmm.send(message));
        vmm.expect_answers(2, &format!("{base}"));
    }
}

#[test]
fn ring_that_its_driver_has_set_up_again_starts_at_its_used_index_without_addresses() {
    let served = Served::start();
    let file = served.file();
    let mut vmm = Vmm::start(&served.daemon, &[window(&file)]);
    assert_eq!((vmm.driver.flush(), vmm.driver.flush()), (0, 0));
    vmm.stop(2);
    vmm.driver.restart();
    [Message::Kick, Message::Enable].into_iter().for_each(|message| vmm.send(message));
    assert_eq!(vmm.driver.flush(), 0);
}

/// Ends a daemon while its guest adds flushes.
type End = fn(Daemon, &mut Driver);

#[test]
fn flushes_under_way_when_the_daemon_ends_are_answered_by_the_next_one() {
    const FLUSHES: u64 = 50;
    let ends: [(&str, End); 3] = [
        // What waits for its turn stays in the queue.
        ("SIGTERM", |daemon, driver| {
            add_flushes(driver, FLUSHES);
            let (status, log) = daemon.terminate().unwrap();
            assert!(status.success(), "{log}");
        }),
        // Some may have been answered.
        ("SIGKILL", |daemon, driver| {
            add_flushes(driver, FLUSHES);
            daemon.kill(PATIENCE).unwrap();
        }),
        // None was seen.
        ("SIGSTOP and SIGKILL", |daemon, driver| {
            daemon.signal(Signal::STOP).unwrap();
            add_flushes(driver, FLUSHES);
            daemon.kill(PATIENCE).unwrap();
        }),
    ];
    let limit = ["--max-syncs", "1"];
    let mut served = Served::with(&limit);
    let file = served.file();
    let mut vmm = Vmm::start(&served.daemon, &[window(&file)]);
    for (name, end) in ends {
        assert_eq!(vmm.driver.flush(), 0, "before {name}");
        let Served { dir, daemon } = served;
        end(daemon, &mut vmm.driver);
        served = Served::again(dir, &limit);
        let guest = vmm.disconnect();
        // In cloud-hypervisor's order.
        let base = Message::Base(guest.driver.available());
        let messages = [Message::Addresses, base, Message::Kick, Message::Enable];
        vmm = guest.connect(&served.daemon, &file, &messages);
        vmm.expect_answers(FLUSHES, name);
    }
}
