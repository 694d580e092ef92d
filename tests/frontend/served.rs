// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A served window, whose frontends come and go when it suits them.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use guest_harness::{Daemon, patience};
use rustix::process::{Uid, geteuid};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set, set_thread_uid};
use tempfile::TempDir;
use vm_memory::VolatileMemory;

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

/// A daemon that must not mount has a user namespace, in which there is no user but its own. Pages are
/// fetched by others all the same: by KVM, whose threads for that are root's, and by VMMs of other users.
#[test]
fn window_served_in_a_user_namespace_is_read_by_a_user_who_is_not_in_it() {
    if !geteuid().is_root() || !fetches_for_all_users() {
        eprintln!("skipped: it takes root, who can be another user, and Linux 6.12");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let without_mounting = || {
        // Of this thread, and so of the daemon that it starts.
        remove_capability_from_bounding_set(CapabilitySet::SYS_ADMIN).unwrap();
        serve(&dir)
    };
    let daemon = thread::scope(|scope| scope.spawn(without_mounting).join().unwrap());
    let Some(daemon) = daemon else { return };
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    let other = thread::spawn(move || {
        set_thread_uid(Uid::from_raw(65534)).unwrap();
        let mut byte = [1];
        vmm.load(0, &mut byte);
        assert_eq!(byte, [0]);
    });
    other.join().unwrap();
}

/// Whether this kernel has FUSE of Linux 6.12.
fn fetches_for_all_users() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(12))
}

/// A device's own flushes and the fsyncs of others end in the same workers, and are counted once.
#[test]
fn flushes_and_fsyncs_of_a_published_window_are_counted_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let [file, window, control] = ["file", "window", "control"].map(path);
    File::create(&file).unwrap().set_len(PAGES * 4096).unwrap();
    let args = ["--file", "--publish", "--control"].map(AsRef::as_ref);
    let values = [&file, &window, &control].map(|path| path.as_os_str());
    let args = args.into_iter().zip(values).flat_map(|(name, value)| [name, value]);
    let Some(daemon) = Daemon::start_served(DAEMON, args).unwrap() else { return };
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    for _ in 0..3 {
        assert_eq!(vmm.driver.flush(), 0);
    }
    let published = File::open(&window).unwrap();
    published.sync_all().unwrap();
    published.sync_data().unwrap();
    let counters = crate::metrics::status(&control)[0]["counters"].clone();
    assert_eq!(counters["flushes"]["done"], 5, "{counters:#}");
    let syncs = counters["syncs"]["counts"].as_array().unwrap();
    assert_eq!(syncs.iter().map(|count| count.as_u64().unwrap()).sum::<u64>(), 5, "{counters:#}");
    assert_eq!(counters["sync_errors"], 0);
    drop(vmm);
    // In order, so that nothing stays mounted.
    daemon.terminate().unwrap();
}

/// Serves a file of which nothing can be written, as a VMM finds out.
fn serve_read_only(dir: &TempDir, more: &[&str]) -> Option<Daemon> {
    let base = dir.path().join("base");
    fs::write(&base, vec![7; 16 * 4096]).unwrap();
    let args = [base.as_os_str(), "--read-only".as_ref()].into_iter();
    let args = ["--file".as_ref()].into_iter().chain(args);
    Daemon::start_served(DAEMON, args.chain(more.iter().map(AsRef::as_ref))).unwrap()
}

#[test]
fn daemon_that_cannot_write_back_at_its_end_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let Some(daemon) = serve_read_only(&dir, &[]) else { return };
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    vmm.store(0, &[9; 4096]);
    let (status, log) = daemon.terminate().unwrap();
    assert!(status.success(), "{log}");
    assert!(log.contains("what the guest stored and did not flush may be lost"), "{log}");
}

/// A VMM by vhost-user, and a VMM with the window's path: what one lost both are told of.
#[test]
fn writeback_that_failed_fails_the_flushes_of_all_who_have_the_window() {
    let dir = tempfile::tempdir().unwrap();
    let window = dir.path().join("window");
    let Some(daemon) = serve_read_only(&dir, &["--publish", window.to_str().unwrap()]) else {
        return;
    };
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), 0);
    File::open(&window).unwrap().sync_all().unwrap();
    vmm.store(0, &[9; 4096]);
    for _ in 0..2 {
        // The first one writes back, and the kernel tells it so.
        File::open(&window).unwrap().sync_all().unwrap_err();
    }
    assert_eq!(vmm.driver.flush(), -1);
    drop(vmm);
    daemon.wait_for_log("frontend left").unwrap();
    let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
    assert_eq!(vmm.driver.flush(), -1);
    File::open(&window).unwrap().sync_all().unwrap_err();
    drop(vmm);
    daemon.terminate().unwrap();
}

/// Has the daemon drop what was written since the last snapshot, and returns why it would not.
fn try_drop(control: &Path) -> Result<(), String> {
    let output = Command::new(DAEMON).args(["drop", "--control"]).arg(control).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    if output.status.success() { Ok(()) } else { Err(said) }
}

/// Drops, once the kernel has told of all that was closed.
fn drop_changes(control: &Path) {
    let deadline = Instant::now() + patience(Duration::from_secs(60));
    while let Err(said) = try_drop(control) {
        assert!(Instant::now() < deadline, "{said}");
    }
}

fn first_byte(vmm: &Vmm) -> u8 {
    let mut byte = [0];
    vmm.load(0, &mut byte);
    byte[0]
}

/// A VMM whose connection is lost keeps what it has mapped, and so does its guest, which goes on.
fn drop_waits_for_the_last_mapping(more: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let [file, control, cow] = ["file", "control", "cow"].map(|name| dir.path().join(name));
    File::create(&file).unwrap().set_len(PAGES * 4096).unwrap();
    // For one who is another user.
    fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
    let args = ["--file".as_ref(), file.as_os_str(), "--control".as_ref(), control.as_os_str()];
    let more = ["--window", "served"].iter().chain(more).map(AsRef::as_ref);
    let Some(daemon) = Daemon::start_served(DAEMON, args.into_iter().chain(more)).unwrap() else {
        return;
    };
    let connect = || {
        let mut vmm = Vmm::start(daemon.socket(), Abilities::default());
        assert_eq!(vmm.driver.flush(), 0);
        vmm
    };
    for _ in 0..2 {
        let mut vmm = connect();
        vmm.store(0, &[1]);
        assert_eq!(vmm.driver.flush(), 0);
        let mut snapshot = Command::new(DAEMON);
        snapshot.arg("snapshot").arg(&cow).arg("--control").arg(&control);
        assert!(snapshot.output().unwrap().status.success());
        vmm.store(0, &[2]);
        assert_eq!(vmm.driver.flush(), 0);
        assert!(try_drop(&control).unwrap_err().contains("a frontend is connected"));

        let mapped = std::mem::take(&mut *vmm.mapper.maps.lock().unwrap());
        drop(vmm);
        daemon.wait_for_log("frontend left").unwrap();
        for _ in 0..2 {
            let said = try_drop(&control).unwrap_err();
            assert!(said.contains("a VMM still has the window mapped"), "{said}");
        }
        // Others come and go.
        let other = connect();
        assert_eq!(first_byte(&other), 2);
        mapped[0].region.as_volatile_slice().subslice(0, 1).unwrap().copy_from(&[3_u8]);
        assert_eq!(first_byte(&other), 3);
        drop(other);
        daemon.wait_for_log("frontend left").unwrap();
        assert!(try_drop(&control).unwrap_err().contains("a VMM still has the window mapped"));

        drop(mapped);
        drop_changes(&control);
        assert_eq!(first_byte(&connect()), 1);
        daemon.wait_for_log("frontend left").unwrap();
    }
    let (status, log) = daemon.terminate().unwrap();
    assert!(status.success(), "{log}");
}

#[test]
fn drop_with_a_mapping_that_outlives_its_connection_is_refused() {
    drop_waits_for_the_last_mapping(&[]);
}

#[test]
fn drop_by_another_user_with_a_mapping_that_outlives_its_connection_is_refused() {
    if !geteuid().is_root() {
        eprintln!("skipped: --user takes root");
        return;
    }
    drop_waits_for_the_last_mapping(&["--user", "65534:65534"]);
}
