// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A served window, whose frontends come and go when it suits them.

use std::fs::{self, File};
use std::path::Path;

use guest_harness::Daemon;
use tempfile::TempDir;

use crate::vmm::{Abilities, Vmm};

const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-pmemd");
const PAGES: u64 = 1024;

/// The daemon, serving what is changed of a file of zeroes; none where there is no FUSE to be had.
fn serve(dir: &TempDir) -> Option<Daemon> {
    let [base, cow] = ["base", "cow"].map(|name| dir.path().join(name));
    File::create(&base).unwrap().set_len(PAGES * 4096).unwrap();
    let args = ["--file".as_ref(), base.as_os_str(), "--overlay".as_ref(), cow.as_os_str()];
    Daemon::start_served(DAEMON, args).unwrap()
}

/// Whether the COW store at `cow` has a page of `byte` for each page.
fn holds(cow: &Path, byte: u8) -> bool {
    let bytes = fs::read(cow).unwrap();
    let pages = bytes.chunks_exact(4096).filter(|page| page.iter().all(|at| *at == byte));
    pages.count() as u64 == PAGES
}

#[test]
fn frontend_that_leaves_in_the_midst_of_flushes_has_all_written_back() {
    let dir = tempfile::tempdir().unwrap();
    let Some(daemon) = serve(&dir) else { return };
    for round in 1..=20 {
        let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
        assert_eq!(vmm.driver.flush(), 0);
        for page in 0..PAGES {
            vmm.store(page * 4096, &[round; 4096]);
            if page % 256 == 0 {
                vmm.driver.add_flush(page / 256);
                vmm.driver.publish();
            }
        }
        // Nobody waits for the answers.
        drop(vmm);
        daemon.wait_for_log("frontend left").unwrap();
        assert!(holds(&dir.path().join("cow"), round), "round {round}");
    }
    let (status, log) = daemon.terminate().unwrap();
    assert!(status.success(), "{log}");
}

/// What a guest has flushed is in the COW store, and what it stored after that too, where the
/// daemon is told to end.
#[test]
fn daemon_that_ends_in_order_has_all_written_back() {
    let dir = tempfile::tempdir().unwrap();
    let Some(daemon) = serve(&dir) else { return };
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    (0..PAGES).for_each(|page| vmm.store(page * 4096, &[7; 4096]));
    assert_eq!(vmm.driver.flush(), 0);
    assert!(holds(&dir.path().join("cow"), 7));
    (0..PAGES).for_each(|page| vmm.store(page * 4096, &[8; 4096]));
    let (status, log) = daemon.terminate().unwrap();
    assert!(status.success(), "{log}");
    assert!(holds(&dir.path().join("cow"), 8));
}
