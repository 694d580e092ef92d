// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ten thousand frontends, of which few take their leave.

use std::io::Write;
use std::os::unix::net::UnixStream;

use guest_harness::{Daemon, Held};
use vhost::VhostBackend;
use vhost::vhost_user::Frontend;

use crate::vmm::{Abilities, Vmm};

const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-pmemd");
const CONNECTS: u32 = 10_000;
/// When all that is made once has been made.
const WARM: u32 = 1000;

/// What the daemon holds for one frontend, which is served when the one before is gone altogether.
fn held(daemon: &Daemon) -> Held {
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    daemon.held().unwrap()
}

/// One frontend of many kinds.
fn connect(daemon: &Daemon, round: u32) {
    let stream = UnixStream::connect(daemon.socket()).unwrap();
    // The first three take their time.
    match round % 30 {
        // All there is to it, and then it is gone.
        0 => {
            let mut vmm = Vmm::over(stream, Abilities::default());
            vmm.activate();
            assert_eq!(vmm.driver.flush(), 0);
        }
        // With its memory and queue, and a flush that nobody waits for.
        1 => {
            let mut vmm = Vmm::over(stream, Abilities { shmem: false, ..Abilities::default() });
            vmm.activate();
            vmm.driver.add_flush(0);
            vmm.driver.publish();
        }
        2 => drop(Vmm::over(stream, Abilities::default())),
        3..9 => {
            let frontend = Frontend::from_stream(stream, 1);
            frontend.set_owner().unwrap();
            frontend.get_features().unwrap();
        }
        // Half a header, and a header without its body.
        9..14 => (&stream).write_all(&[1; 5]).unwrap(),
        14..19 => (&stream).write_all(&[2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0]).unwrap(),
        // Nonsense.
        19..24 => (&stream).write_all(&[0xff; 64]).unwrap(),
        _ => {}
    }
}

#[test]
fn ten_thousand_frontends_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pmem");
    let args = ["--file".as_ref(), file.as_os_str(), "--size".as_ref(), "1M".as_ref()];
    let daemon = Daemon::start(DAEMON, args).unwrap();
    (1..=WARM).for_each(|round| connect(&daemon, round));
    let warm = held(&daemon);
    (WARM + 1..=CONNECTS).for_each(|round| connect(&daemon, round));
    let last = held(&daemon);
    println!("after {WARM}: {warm:?}, after {CONNECTS}: {last:?}");
    assert_eq!((last.fds, last.threads), (warm.fds, warm.threads));
    // A leak of 32 bytes a frontend would be more.
    assert!(last.kib <= warm.kib + 256, "{warm:?}, then {last:?}");
}
