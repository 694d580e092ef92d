// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that grow: `--overlay` with a size of its own, and the ways of the other kinds.

use std::fs::{self, File};
use std::thread;
use std::time::{Duration, Instant};

use guest_harness::patience;
use rustix::process::Signal;

use crate::Place;
use crate::control::write;
use crate::publish::Publisher;

const SERVE: &str = "--publish @/window --file @/base --overlay @/cow";

/// A base of three pages.
fn place() -> Place {
    let place = Place::new();
    fs::write(place.path("base"), [1; 3 * 4096]).unwrap();
    place
}

/// The first byte of each page.
fn firsts(place: &Place, name: &str) -> Vec<u8> {
    fs::read(place.path(name)).unwrap().chunks(4096).map(|page| page[0]).collect()
}

#[test]
fn overlay_with_a_size_keeps_what_is_written_after_the_base() {
    let place = place();
    let Some(mut daemon) = Publisher::start(&place, &format!("{SERVE} --size 16K")) else { return };
    assert_eq!(firsts(&place, "window"), [1, 1, 1, 0]);
    write(&place, 3, 7);
    assert!(daemon.signal(Signal::TERM));
    // It is the overlay's from then on, until it is made larger.
    let mut daemon = Publisher::start(&place, SERVE).unwrap();
    assert_eq!(firsts(&place, "window"), [1, 1, 1, 7]);
    assert!(daemon.signal(Signal::TERM));
    let mut daemon = Publisher::start(&place, &format!("{SERVE} --size 128K")).unwrap();
    write(&place, 31, 8);
    write(&place, 0, 9);
    assert!(daemon.signal(Signal::TERM));
    for (size, why) in [
        ("8K", "--size 8192: the file is larger; give --size 12288 or more"),
        ("16K", "--size 16384: the overlay is larger; give --size 131072 or more"),
    ] {
        let expected = format!("cannot serve @/base: overlay @/cow: {why}");
        place.refuses(&format!("{SERVE} --size {size}"), &expected);
    }
    assert_eq!(fs::read(place.path("base")).unwrap(), [1; 3 * 4096]);
    // The base grows with what is merged into it.
    assert!(place.run("merge --file @/base --overlay @/cow").status.success());
    let mut expected = vec![9, 1, 1, 7];
    expected.resize(31, 0);
    expected.push(8);
    assert_eq!(firsts(&place, "base"), expected);
    assert!(!place.path("cow").exists());
}

/// What the daemon logs until it has published.
fn log(place: &Place, args: &str) -> Option<String> {
    let path = place.path("log");
    let mut command = place.command(args);
    let mut daemon = command.stderr(File::create(&path).unwrap()).spawn().unwrap();
    let deadline = Instant::now() + patience(Duration::from_secs(60));
    loop {
        let log = fs::read_to_string(&path).unwrap();
        let has_ended = daemon.try_wait().unwrap().is_some();
        if log.contains("INFO published") || has_ended {
            let pid = rustix::process::Pid::from_child(&daemon);
            if !has_ended {
                rustix::process::kill_process(pid, Signal::TERM).unwrap();
                daemon.wait().unwrap();
            }
            assert!(!has_ended || log.contains("a served window needs"), "{log}");
            return (!has_ended).then_some(log);
        }
        assert!(Instant::now() < deadline, "{log}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn window_that_is_larger_than_what_it_shows_is_warned_of() {
    let place = place();
    let warned = "what a guest writes after the end fails its flushes";
    let Some(said) = log(&place, SERVE) else { return };
    assert!(said.contains(warned) && said.contains("give --size 16384 to keep"), "{said}");
    let said = log(&place, "--publish @/window --file @/base").unwrap();
    assert!(said.contains(warned) && said.contains("give --size 16384 to grow"), "{said}");
    fs::write(place.path("table"), place.expand("0 24 snapshot @/base @/cow P 32\n")).unwrap();
    let said = log(&place, "--publish @/window --table @/table").unwrap();
    assert!(said.contains(warned) && said.contains("end at sector 32"), "{said}");
    for fine in
        [format!("{SERVE} --size 16K"), "--publish @/window --file @/base --read-only".into()]
    {
        let said = log(&place, &fine).unwrap();
        assert!(!said.contains(warned), "{said}");
    }
}

/// Each kind grows as the page on operation says, and has what it had.
#[test]
fn device_of_each_kind_grows_and_keeps_what_it_holds() {
    let table = |place: &Place, lines: &str| {
        fs::write(place.path("table"), place.expand(lines)).unwrap();
    };
    let file = |place: &Place, name: &str, pages: u64| {
        File::options().create(true).append(true).open(place.path(name)).unwrap();
        let file = File::options().write(true).open(place.path(name)).unwrap();
        file.set_len(pages * 4096).unwrap();
    };
    let by_table = "--publish @/window --table @/table";
    let mirror = "0 32 mirror core 2 8 nosync 2 @/a 0 @/b 0\n";
    type Grow<'a> = (&'a str, &'a dyn Fn(&Place), &'a str, &'a dyn Fn(&Place), &'a str);
    let kinds: [Grow<'_>; 4] = [
        (
            "file",
            &|place| file(place, "a", 4),
            "--publish @/window --file @/a",
            &|_| (),
            "--publish @/window --file @/a --size 32K",
        ),
        (
            "file in a table",
            &|place| {
                file(place, "a", 4);
                table(place, "0 32 linear @/a 0\n");
            },
            by_table,
            &|place| {
                file(place, "a", 8);
                table(place, "0 64 linear @/a 0\n");
            },
            by_table,
        ),
        (
            "mirror in a table",
            &|place| {
                ["a", "b"].iter().for_each(|name| file(place, name, 4));
                table(place, mirror);
            },
            by_table,
            &|place| {
                ["c", "d"].iter().for_each(|name| file(place, name, 4));
                let more = "32 32 mirror core 2 8 nosync 2 @/c 0 @/d 0\n";
                table(place, &format!("{mirror}{more}"));
            },
            by_table,
        ),
        (
            "file that a snapshot was taken of",
            &|place| file(place, "a", 4),
            "--publish @/window --file @/a --control @/control",
            &|place| {
                assert!(place.run("merge --file @/a --overlay @/cow").status.success());
            },
            "--publish @/window --file @/a --size 32K",
        ),
    ];
    for (kind, make, serve, grow, again) in kinds {
        let place = Place::new();
        make(&place);
        let Some(mut daemon) = Publisher::start(&place, serve) else { return };
        if serve.contains("--control") {
            crate::control::ask(&place, "snapshot @/cow");
        }
        write(&place, 3, 7);
        assert!(daemon.signal(Signal::TERM), "{kind}");
        grow(&place);
        let mut daemon = Publisher::start(&place, again).unwrap();
        assert_eq!(firsts(&place, "window"), [0, 0, 0, 7, 0, 0, 0, 0], "{kind}");
        write(&place, 7, 8);
        assert!(daemon.signal(Signal::TERM), "{kind}");
        let _daemon = Publisher::start(&place, again).unwrap();
        assert_eq!(firsts(&place, "window"), [0, 0, 0, 7, 0, 0, 0, 8], "{kind}");
    }
}
