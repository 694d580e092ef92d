// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Messages that no VMM sends, in any order, to the daemon.

use std::fs;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use guest_harness::{Daemon, patience};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::message_oracle::check;
use crate::vmm::{Abilities, Vmm};

const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-pmemd");
const SEEDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/crates/vhost-pmem/fuzz/seeds/messages");
/// How long one frontend may take, and the next.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn any_messages_leave_a_daemon_that_serves_the_next_frontend() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pmem");
    let args = ["--file".as_ref(), file.as_os_str(), "--size".as_ref(), "1M".as_ref()];
    let daemon = Daemon::start(DAEMON, args).unwrap();
    // What is made once.
    drop(Vmm::start(daemon.socket(), Abilities::default()));
    daemon.wait_for_log("frontend left").unwrap();
    thread::sleep(Duration::from_millis(200));
    let pid = daemon.pid();
    let fds = move || guest_harness::fds(pid).unwrap();
    let idle = fds();

    let (sender, receiver) = channel::<Vec<u8>>();
    let (done, is_done) = channel();
    let socket = daemon.socket().to_owned();
    let checker = thread::spawn(move || {
        for data in receiver {
            check(&socket, fds, idle, &data);
            done.send(()).unwrap();
        }
    });
    let check = |data: Vec<u8>| {
        sender.send(data.clone()).unwrap();
        assert!(is_done.recv_timeout(patience(PATIENCE)).is_ok(), "{data:?}");
    };
    for seed in fs::read_dir(SEEDS).unwrap() {
        check(fs::read(seed.unwrap().path()).unwrap());
    }
    let messages = proptest::collection::vec(any::<u8>(), 0..100);
    let config =
        ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new(config);
    runner
        .run(&messages, |data| {
            check(data);
            Ok(())
        })
        .unwrap();
    drop(sender);
    checker.join().unwrap();
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}
