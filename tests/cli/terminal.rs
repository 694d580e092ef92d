// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is shown in a terminal, and nowhere else: colours, and how far work has come.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use guest_harness::Daemon;
use pfn_blk::{FileStore, NrPages, PfnSpace, Region, Snapshot};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::json;

use crate::{DAEMON, Place};

/// Runs a command with both outputs in a terminal, and returns what that is sent.
fn in_terminal(place: &Place, args: &str, variables: &[(&str, &str)]) -> String {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let end = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let mut command = place.command(args);
    command.env("TERM", "xterm").env_remove("NO_COLOR").env_remove("CLICOLOR");
    command.envs(variables.iter().copied());
    command.stdout(end.try_clone().unwrap()).stderr(end);
    let mut child = command.spawn().unwrap();
    // The command's own ends are the only ones then.
    drop(command);
    let mut shown = Vec::new();
    // A terminal whose other end is closed is an error to read.
    let _ = File::from(terminal).read_to_end(&mut shown);
    assert!(child.wait().unwrap().success());
    String::from_utf8(shown).unwrap()
}

fn piped(place: &Place, args: &str) -> Output {
    place.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap()
}

#[test]
fn colours_are_for_a_terminal_that_wants_them() {
    let place = Place::new();
    let args = place.expand("--size 1M --file @/f --name vm --control @/control");
    let _daemon = Daemon::start(DAEMON, args.split_whitespace()).unwrap();
    for command in ["list --control @/control", "status --control @/control"] {
        let coloured = in_terminal(&place, command, &[]);
        assert!(coloured.contains("\x1b[1mvm"), "{coloured:?}");
        let plain = in_terminal(&place, command, &[("NO_COLOR", "1")]).replace("\r\n", "\n");
        assert!(plain.contains("vm") && !plain.contains('\x1b'), "{plain:?}");
        assert_eq!(piped(&place, command).stdout, plain.as_bytes());
    }
    let list = piped(&place, "list --control @/control").stdout;
    let expected = "\
        NAME   SIZE  WINDOW  FRONTEND  PAGES  STATE\n\
        vm    1 MiB  direct  none      -      good\n";
    assert_eq!(String::from_utf8(list).unwrap(), expected);
}

#[test]
fn reader_that_has_seen_enough_is_no_error() {
    let place = Place::new();
    let args = place.expand("--size 1M --file @/f --control @/control");
    let _daemon = Daemon::start(DAEMON, args.split_whitespace()).unwrap();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    drop(reader);
    for command in ["list --control @/control", "status --json --control @/control"] {
        let writer = writer.try_clone().unwrap();
        let output = place.command(command).stdout(writer).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && said.is_empty(), "{said}");
    }
}

/// A daemon that takes its time to merge: at the first look three chunks are left, and one less at each
/// further one.
fn slow_daemon(place: &Place) {
    let listener = UnixListener::bind(place.path("control")).unwrap();
    thread::spawn(move || {
        let mut left = 4;
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            let is_merge = line.contains("\"merge\"");
            left -= u64::from(left > 1 && !is_merge);
            let layer = json!({"name": "c", "chunk": 16384, "used": left, "capacity": 9});
            let layers = if is_merge { vec![] } else { vec![layer] };
            let device = json!({
                "name": "d", "state": "served", "size": 4096, "window": "served",
                "frontend": false, "layers": layers, "snapshots": [], "mirrors": [], "failures": [],
            });
            let reply = format!("{}\n", json!({"version": 1, "ok": [device]}));
            thread::spawn(move || {
                if is_merge {
                    thread::sleep(Duration::from_secs(2));
                }
                // Who has asked may be gone.
                let _ = stream.write_all(reply.as_bytes());
            });
        }
    });
}

#[test]
fn merge_of_a_daemon_shows_how_far_it_has_come() {
    let place = Place::new();
    slow_daemon(&place);
    let shown = in_terminal(&place, "merge --control @/control", &[]);
    assert!(shown.contains("merging"), "{shown:?}");
    assert!(shown.contains("32.00 KiB of 48.00 KiB"), "{shown:?}");
    // No bar is left behind.
    assert!(shown.trim_end().ends_with("frontend: none"), "{shown:?}");
    let output = piped(&place, "merge --control @/control");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn merge_of_an_overlay_shows_how_far_it_has_come() {
    const SIZE: u64 = 48 << 20;
    let place = Place::new();
    let overlay = || {
        let pages = NrPages::try_from_bytes(SIZE).unwrap();
        let chunk = NrPages::try_new(vhost_pmem::LAYER_CHUNK).unwrap();
        let ample = Snapshot::ample_cow(pages, chunk).unwrap();
        let open = |name, size| FileStore::open_sized(&place.path(name), size).unwrap().0;
        let mut space = PfnSpace::new();
        let base = space.add(Box::new(open("base", pages))).unwrap();
        let cow = space.add(Box::new(open("cow", ample))).unwrap();
        let snapshot = Arc::new(Snapshot::open(base, cow, chunk, pages).unwrap());
        let region = Region::try_new(snapshot).unwrap();
        region.write(region.pages(), &vec![7; usize::try_from(SIZE).unwrap()]).unwrap();
        region.persist(region.pages()).unwrap();
    };
    overlay();
    let merge = "merge --file @/base --overlay @/cow";
    let shown = in_terminal(&place, merge, &[]);
    assert!(shown.contains("merging") && shown.contains("of 48.00 MiB"), "{shown:?}");
    assert!(shown.contains("merged 48 MiB (50331648 bytes); the overlay is removed"), "{shown:?}");
    assert!(std::fs::read(place.path("base")).unwrap().iter().all(|byte| *byte == 7));
    overlay();
    let output = piped(&place, merge);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
