// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--control`: snapshots of a window that is served, here to this process, which opens it by its
//! path.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use guest_harness::{Daemon, patience};
use rustix::process::Signal;

use crate::publish::Publisher;
use crate::{DAEMON, Place};

const SERVE: &str = "--publish @/window --file @/base --control @/control";

/// A daemon that serves a base of four pages; none where there is no FUSE to be had.
pub(crate) fn serve(place: &Place) -> Option<Publisher> {
    fs::write(place.path("base"), [1; 4 * 4096]).unwrap();
    Publisher::start(place, SERVE)
}

/// Has the daemon do something.
#[track_caller]
pub(crate) fn ask(place: &Place, args: &str) -> String {
    let output = place.run(&format!("{args} --control @/control"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Writes a page through the window, durably.
pub(crate) fn write(place: &Place, page: u64, byte: u8) {
    let window = File::options().write(true).open(place.path("window")).unwrap();
    window.write_all_at(&[byte; 4096], page * 4096).unwrap();
    window.sync_data().unwrap();
}

/// The first byte of each page.
pub(crate) fn pages(place: &Place, name: &str) -> [u8; 4] {
    let bytes = fs::read(place.path(name)).unwrap();
    [0, 1, 2, 3].map(|page| bytes[page * 4096])
}

#[test]
fn snapshot_freezes_the_file_until_it_is_merged() {
    let place = Place::new();
    let Some(mut daemon) = serve(&place) else { return };
    write(&place, 0, 2);
    assert!(ask(&place, "snapshot @/cow").contains("/cow: 0 of 1 chunks of 16 KiB"));
    write(&place, 1, 3);
    assert_eq!((pages(&place, "base"), pages(&place, "window")), ([2, 1, 1, 1], [2, 3, 1, 1]));
    assert!(ask(&place, "status").contains("/cow: 1 of 1 chunks"));
    assert!(!ask(&place, "merge").contains("/cow"));
    assert!(!place.path("cow").exists());
    write(&place, 2, 4);
    assert_eq!((pages(&place, "base"), pages(&place, "window")), ([2, 3, 4, 1], [2, 3, 4, 1]));
    assert!(daemon.signal(Signal::TERM));
    assert!(!place.path("control").exists());
    drop(Publisher::start(&place, SERVE).unwrap());
}

#[test]
fn snapshot_dropped_is_the_state_that_it_was_taken_of() {
    let place = Place::new();
    let Some(_daemon) = serve(&place) else { return };
    ask(&place, "snapshot @/cow");
    write(&place, 1, 3);
    let window = File::open(place.path("window")).unwrap();
    place.refuses(
        "drop --control @/control",
        "the daemon refuses: a VMM still has the window mapped, or a process has it open; \
         end its guest first",
    );
    drop(window);
    // The kernel tells of the closing in its own time.
    let deadline = Instant::now() + patience(Duration::from_secs(20));
    while !place.run("drop --control @/control").status.success() {
        assert!(Instant::now() < deadline, "the window is in use for ever");
    }
    assert_eq!(pages(&place, "window"), [1; 4]);
    assert!(!place.path("cow").exists());
    write(&place, 1, 4);
    assert_eq!(pages(&place, "base"), [1, 4, 1, 1]);
}

/// Its sandbox would refuse the COW store as well, and that is no help.
#[test]
fn snapshot_of_a_direct_window_says_that_it_is_direct() {
    let place = Place::new();
    let path = |name| place.path(name);
    let args = ["--file".into(), path("file"), "--size".into(), "1M".into()];
    let control = ["--control".into(), path("control")];
    let _daemon = Daemon::start(DAEMON, args.into_iter().chain(control)).unwrap();
    for command in ["snapshot @/elsewhere/cow", "merge", "drop"] {
        place.refuses(
            &format!("{command} --control @/control"),
            "the daemon refuses: the window is direct: the guest maps the files themselves; restart \
             the daemon with --window served for snapshots and changes while it runs",
        );
    }
}

#[test]
fn snapshot_into_a_file_that_is_something_else_leaves_it_as_it_was() {
    let place = Place::new();
    let Some(_publisher) = serve(&place) else { return };
    let other = vec![7; 5000];
    fs::write(place.path("other"), &other).unwrap();
    place.refuses(
        "snapshot @/other --control @/control",
        "the daemon refuses: cannot open the COW store: it holds 5000 bytes already; name a new file",
    );
    assert_eq!(fs::read(place.path("other")).unwrap(), other);
    assert!(!is_marked(&place));
    // What an attempt has made that was cut short is as good as nothing.
    let ample = (3 * 16384) as usize;
    for (name, bytes) in [("empty", 0), ("blank", ample)] {
        fs::write(place.path(name), vec![0; bytes]).unwrap();
        ask(&place, &format!("snapshot @/{name}"));
    }
    write(&place, 1, 3);
    let cow = fs::read(place.path("blank")).unwrap();
    fs::write(place.path("copy"), &cow).unwrap();
    place.refuses(
        "snapshot @/copy --control @/control",
        "the daemon refuses: the COW store has changes already, in 1 chunks; name a new file",
    );
    assert_eq!(fs::read(place.path("copy")).unwrap(), cow);
}

/// Were the origin served by itself, what was written since the snapshot would be lost.
#[test]
fn snapshot_outlives_the_daemon_and_its_origin_is_not_written() {
    let place = Place::new();
    let Some(mut daemon) = serve(&place) else { return };
    ask(&place, "snapshot @/cow");
    write(&place, 1, 3);
    assert!(!daemon.signal(Signal::KILL));
    if !is_marked(&place) {
        eprintln!("skipped: no extended attributes here");
        return;
    }
    // By its mark, or as its overlay.
    let mut daemon = Publisher::start(&place, SERVE).unwrap();
    assert_eq!(pages(&place, "window"), [1, 3, 1, 1]);
    assert!(ask(&place, "status").contains("/cow: 1 of 1 chunks"));
    assert!(daemon.signal(Signal::TERM));
    let mut daemon = Publisher::start(&place, &format!("{SERVE} --overlay @/cow")).unwrap();
    assert_eq!(pages(&place, "window"), [1, 3, 1, 1]);
    place.refuses(
        "merge --file @/base --overlay @/cow",
        "cannot merge @/cow into @/base: the base: locked: another process serves it",
    );
    write(&place, 2, 4);
    assert!(daemon.signal(Signal::TERM));
    place.refuses(
        "merge --file @/base --overlay @/other",
        "cannot merge @/other into @/base: the changes since its snapshot are in @/cow",
    );
    let output = place.run("merge --file @/base --overlay @/cow");
    assert_eq!(output.stdout, b"merged 16 KiB (16384 bytes); the overlay is removed\n");
    assert_eq!(pages(&place, "base"), [1, 3, 4, 1]);
    assert!(!place.path("cow").exists() && !is_marked(&place));
}

pub(crate) fn is_marked(place: &Place) -> bool {
    pfn_blk::origin_mark(File::open(place.path("base")).unwrap()).unwrap().is_some()
}

#[test]
fn request_that_is_none_is_answered_with_an_error() {
    let place = Place::new();
    let Some(_daemon) = serve(&place) else { return };
    let mode = fs::metadata(place.path("control")).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0);
    for (request, said) in [
        ("\n", "not a request"),
        ("{}\n", "not a request"),
        ("{\"version\":1,\"command\":\"explode\"}\n", "not a request"),
        ("{\"version\":2,\"command\":\"status\"}\n", "speaks version 1"),
        (&"x".repeat(70_000), "not a request"),
    ] {
        let mut stream = UnixStream::connect(place.path("control")).unwrap();
        // Of one that is too long the daemon reads a part.
        let _ = stream.write_all(request.as_bytes());
        let mut reply = String::new();
        let _ = stream.read_to_string(&mut reply);
        assert!(
            reply.contains("\"error\"") && reply.contains(said) || request.len() > 65536,
            "{reply}"
        );
    }
    assert!(ask(&place, "status --json").contains("\"window\": \"served\""));
}

#[test]
fn operation_that_can_not_be_is_refused_with_the_reason() {
    let place = Place::new();
    place.refuses(
        "status --control @/none",
        "@/none: cannot connect: No such file or directory (os error 2)",
    );
    let Some(_daemon) = serve(&place) else { return };
    for (command, why) in [
        ("merge", "there is no snapshot that was taken of what is served"),
        ("drop", "there is no snapshot that was taken of what is served"),
        ("resync", "there is no mirror"),
        ("snapshot @/base", "cannot open the COW store: locked: another process serves it"),
        (
            "snapshot @/none/cow",
            "cannot open the COW store: cannot open it: No such file or directory (os error 2)",
        ),
    ] {
        let expected = format!("the daemon refuses: {why}");
        place.refuses(&format!("{command} --control @/control"), &expected);
        assert!(!is_marked(&place), "{command}");
    }
}
