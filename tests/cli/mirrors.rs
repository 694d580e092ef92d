// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Mirrors whose legs are lost, come back old, or are replaced, as an operator meets them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

use rustix::process::Signal;

use crate::Place;
use crate::control::ask;
use crate::publish::Publisher;

pub(crate) const SIZE: u64 = 1 << 20;
pub(crate) const LEGS: [&str; 2] = ["a", "b"];
pub(crate) const SERVE: &str = "--publish @/window --table @/table --control @/control";

/// The log's words, for each kind of it.
pub(crate) const LOGS: [&str; 2] = ["core 1 64", "disk 2 @/log 64"];

/// A mirror that has a log of this kind, and that was written to: a 1 is flushed.
pub(crate) fn mirror(place: &Place, log: &str) -> Option<Publisher> {
    for leg in LEGS {
        File::create(place.path(leg)).unwrap().set_len(SIZE).unwrap();
    }
    File::create(place.path("log")).unwrap().set_len(8192).unwrap();
    table(place, log);
    let daemon = Publisher::start(place, SERVE)?;
    flush(place, 1);
    ask(place, "resync");
    Some(daemon)
}

fn table(place: &Place, log: &str) {
    let line = format!("0 2048 mirror {log} 2 @/a 0 @/b 0\n");
    fs::write(place.path("table"), place.expand(&line)).unwrap();
}

pub(crate) fn restart(place: &Place) -> Publisher {
    Publisher::start(place, SERVE).unwrap()
}

/// Writes to the first page, and has it be acknowledged.
pub(crate) fn flush(place: &Place, byte: u8) {
    let window = File::options().write(true).open(place.path("window")).unwrap();
    window.write_all_at(&[byte; 4096], 0).unwrap();
    window.sync_data().unwrap();
}

/// What a file begins with.
pub(crate) fn first(place: &Place, name: &str) -> u8 {
    let mut bytes = [0; 4096];
    File::open(place.path(name)).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    bytes[0]
}

pub(crate) fn end(mut daemon: Publisher) {
    assert!(daemon.signal(Signal::TERM));
}

/// Takes the leg away, as a disk that is pulled: the file isn't where it was.
pub(crate) fn take_away(place: &Place, leg: &str) {
    fs::rename(place.path(leg), place.path("elsewhere")).unwrap();
}

#[test]
fn mirror_begins_without_a_leg_and_copies_to_it_when_it_is_back() {
    for log in LOGS {
        for leg in LEGS {
            let place = Place::new();
            let Some(daemon) = mirror(&place, log) else { return };
            end(daemon);
            take_away(&place, leg);
            let daemon = restart(&place);
            flush(&place, 2);
            let shown = ask(&place, "status");
            assert!(shown.contains(&format!("/{leg} missing")), "{shown}");
            let shown = ask(&place, "list");
            assert!(shown.contains(&format!("/{leg} missing")), "{shown}");
            end(daemon);
            fs::rename(place.path("elsewhere"), place.path(leg)).unwrap();
            let daemon = restart(&place);
            assert_eq!(first(&place, "window"), 2, "{log}, {leg}");
            let whole = ask(&place, "resync");
            assert!(whole.contains("/a healthy") && whole.contains("/b healthy"), "{whole}");
            end(daemon);
            assert_eq!(LEGS.map(|leg| first(&place, leg)), [2, 2], "{log}, {leg}");
        }
    }
}

#[test]
fn leg_that_is_lost_is_replaced_with_the_guest_running_and_without() {
    for log in LOGS {
        for leg in LEGS {
            let place = Place::new();
            let Some(daemon) = mirror(&place, log) else { return };
            // While it is served: under the same name, and under another one.
            take_away(&place, leg);
            File::create(place.path(leg)).unwrap().set_len(SIZE).unwrap();
            ask(&place, "resync");
            flush(&place, 2);
            assert_eq!(first(&place, leg), 2, "{log}, {leg}");
            File::create(place.path("new")).unwrap().set_len(SIZE).unwrap();
            let shown = ask(&place, &format!("replace @/{leg} @/new"));
            assert!(shown.contains("/new healthy"), "{shown}");
            flush(&place, 3);
            end(daemon);
            assert_eq!((first(&place, "new"), first(&place, leg)), (3, 2), "{log}, {leg}");
            // What it took the place of is out of date, wherever it comes back.
            let daemon = restart(&place);
            assert_eq!(first(&place, "window"), 3, "{log}, {leg}");
            ask(&place, "resync");
            end(daemon);
            // While it isn't served: a blank file in its place, also where sync is said.
            fs::remove_file(place.path(leg)).unwrap();
            File::create(place.path(leg)).unwrap().set_len(SIZE).unwrap();
            let sync = log.replace("core 1", "core 2").replace("disk 2", "disk 3") + " sync";
            table(&place, &sync);
            let daemon = restart(&place);
            assert_eq!(first(&place, "window"), 3, "{log}, {leg}");
            ask(&place, "resync");
            end(daemon);
            assert_eq!(LEGS.map(|leg| first(&place, leg)), [3, 3], "{log}, {leg}");
        }
    }
}

#[test]
fn mirror_grows_with_its_legs() {
    for log in LOGS {
        let place = Place::new();
        let Some(daemon) = mirror(&place, log) else { return };
        end(daemon);
        for leg in LEGS {
            File::options().write(true).open(place.path(leg)).unwrap().set_len(2 * SIZE).unwrap();
        }
        let line = format!("0 4096 mirror {log} 2 @/a 0 @/b 0\n");
        fs::write(place.path("table"), place.expand(&line)).unwrap();
        if log != LOGS[0] {
            let refused = place.run(&format!("{SERVE} --log-level off"));
            let said = String::from_utf8(refused.stderr).unwrap();
            assert!(said.contains("after a mirror has grown, fill the log with zeroes"), "{said}");
            File::create(place.path("log")).unwrap().set_len(8192).unwrap();
        }
        let daemon = restart(&place);
        assert_eq!(first(&place, "window"), 1);
        let window = File::options().write(true).open(place.path("window")).unwrap();
        window.write_all_at(&[9; 4096], 2 * SIZE - 4096).unwrap();
        window.sync_data().unwrap();
        drop(window);
        ask(&place, "resync");
        end(daemon);
        let [a, b] = LEGS.map(|leg| fs::read(place.path(leg)).unwrap());
        assert!(a == b && a[0] == 1 && a.ends_with(&[9; 4096]));
    }
}

#[test]
fn leg_that_is_served_alone_is_believed_afterwards() {
    let place = Place::new();
    let Some(daemon) = mirror(&place, LOGS[1]) else { return };
    end(daemon);
    let alone = "--publish @/window --file @/b --control @/control";
    let daemon = Publisher::start(&place, alone).unwrap();
    flush(&place, 4);
    end(daemon);
    let daemon = restart(&place);
    assert_eq!(first(&place, "window"), 4);
    ask(&place, "resync");
    end(daemon);
    assert_eq!(first(&place, "a"), 4);
}

#[test]
fn copy_of_a_leg_that_went_on_by_itself_is_refused_beside_the_legs() {
    let place = Place::new();
    let Some(daemon) = mirror(&place, LOGS[0]) else { return };
    let copied = Command::new("cp").arg("-a").args([place.path("a"), place.path("copy")]).status();
    assert!(copied.unwrap().success());
    // What the copy lacks.
    flush(&place, 2);
    end(daemon);
    let alone = "--publish @/window --file @/copy --control @/control";
    let daemon = Publisher::start(&place, alone).unwrap();
    flush(&place, 5);
    end(daemon);
    let line = "0 2048 mirror core 1 64 2 @/copy 0 @/b 0\n";
    fs::write(place.path("table"), place.expand(line)).unwrap();
    let refused = place.run(&format!("{SERVE} --log-level off"));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("were each written without the other"), "{said}");
    assert!(place.run("unmark @/copy").status.success());
    let daemon = restart(&place);
    assert_eq!(first(&place, "window"), 2);
    end(daemon);
}

#[test]
fn leg_that_an_overlay_was_merged_into_is_believed_afterwards() {
    let place = Place::new();
    let Some(daemon) = mirror(&place, LOGS[1]) else { return };
    end(daemon);
    let overlay = "--publish @/window --file @/b --overlay @/cow";
    let daemon = Publisher::start(&place, overlay).unwrap();
    flush(&place, 4);
    end(daemon);
    assert!(place.run("merge --file @/b --overlay @/cow").status.success());
    let daemon = restart(&place);
    assert_eq!(first(&place, "window"), 4);
    end(daemon);
}

#[test]
fn legs_that_both_went_on_are_refused_with_the_way_out() {
    let place = Place::new();
    let Some(daemon) = mirror(&place, LOGS[0]) else { return };
    end(daemon);
    for (leg, byte) in [("a", 5), ("b", 6)] {
        let alone = format!("--publish @/window --file @/{leg} --control @/control");
        let daemon = Publisher::start(&place, &alone).unwrap();
        flush(&place, byte);
        end(daemon);
    }
    place.refuses(
        &format!("{SERVE} --log-level off"),
        "table @/table: line 1, column 1: leg 0 and leg 1 were each written without the other, and \
         differ; run vhost-pmemd unmark on the one whose changes are to be given up",
    );
    assert!(place.run("unmark @/a").status.success());
    let daemon = restart(&place);
    assert_eq!(first(&place, "window"), 6);
    end(daemon);
}

#[test]
fn replace_of_what_can_not_be_is_refused_and_changes_nothing() {
    let place = Place::new();
    let Some(daemon) = mirror(&place, LOGS[0]) else { return };
    let refused = |words: &str, why: &str| {
        let output = place.run(&format!("replace {words} --control @/control"));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(&place.expand(why)), "{said}");
    };
    refused("@/c @/new", "@/c is not a leg; there are @/a, @/b");
    refused("@/a @/new", "cannot replace a leg by @/new: no such file");
    refused("@/a @/b", "cannot replace a leg by @/b: locked: another process serves it");
    File::create(place.path("new")).unwrap().set_len(SIZE / 2).unwrap();
    refused("@/a @/new", "leg 0: pgoff 0x0 + 256 pages reaches past the end at 128 pages");
    let shown = ask(&place, "status");
    assert!(shown.contains("/a healthy") && shown.contains("/b healthy"), "{shown}");
    end(daemon);
}

#[test]
fn leg_whose_directory_was_missed_is_back_after_a_resync() {
    let place = Place::new();
    for leg in LEGS {
        fs::create_dir(place.path(&format!("disk-{leg}"))).unwrap();
        let path = place.path(&format!("disk-{leg}/leg"));
        File::create(path).unwrap().set_len(SIZE).unwrap();
    }
    let line = "0 2048 mirror core 1 64 2 @/disk-a/leg 0 @/disk-b/leg 0\n";
    fs::write(place.path("table"), place.expand(line)).unwrap();
    let Some(daemon) = Publisher::start(&place, SERVE) else { return };
    flush(&place, 1);
    end(daemon);
    take_away(&place, "disk-b/leg");
    let daemon = restart(&place);
    flush(&place, 2);
    fs::rename(place.path("elsewhere"), place.path("disk-b/leg")).unwrap();
    let shown = ask(&place, "resync");
    assert!(shown.contains("/disk-b/leg healthy"), "{shown}");
    end(daemon);
    assert_eq!(first(&place, "disk-b/leg"), 2);
}

#[test]
fn leg_that_went_on_by_itself_is_refused_by_a_resync() {
    let place = Place::new();
    let Some(daemon) = mirror(&place, LOGS[1]) else { return };
    end(daemon);
    take_away(&place, "b");
    let daemon = restart(&place);
    flush(&place, 2);
    let alone = "--publish @/alone --file @/elsewhere";
    let other = Publisher::start(&place, alone).unwrap();
    end(other);
    fs::rename(place.path("elsewhere"), place.path("b")).unwrap();
    let output = place.run("resync --control @/control");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("it was written without the mirror, and differs"), "{said}");
    assert!(!output.status.success());
    assert!(ask(&place, "status").contains("/b missing"));
    assert!(place.run("unmark @/b").status.success());
    let shown = ask(&place, "resync");
    assert!(shown.contains("/b healthy"), "{shown}");
    end(daemon);
    assert_eq!(first(&place, "b"), 2);
}

#[test]
fn leg_that_two_mirrors_share_is_replaced_in_both() {
    let place = Place::new();
    for leg in ["a", "b", "new"] {
        File::create(place.path(leg)).unwrap().set_len(2 * SIZE).unwrap();
    }
    let lines = "0 2048 mirror core 1 64 2 @/a 0 @/b 0\n\
                 2048 2048 mirror core 1 64 2 @/a 2048 @/b 2048\n";
    fs::write(place.path("table"), place.expand(lines)).unwrap();
    let Some(daemon) = Publisher::start(&place, SERVE) else { return };
    let pages = |name: &str| {
        let file = File::open(place.path(name)).unwrap();
        [0, SIZE].map(|at| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            byte[0]
        })
    };
    let window = File::options().write(true).open(place.path("window")).unwrap();
    for (at, byte) in [(0, 1), (SIZE, 2)] {
        window.write_all_at(&[byte; 4096], at).unwrap();
    }
    window.sync_data().unwrap();
    let shown = ask(&place, "replace @/b @/new");
    assert_eq!(shown.matches("/new healthy").count(), 2, "{shown}");
    assert_eq!(pages("new"), [1, 2]);
    // Under the same path, too.
    fs::remove_file(place.path("new")).unwrap();
    File::create(place.path("new")).unwrap().set_len(2 * SIZE).unwrap();
    let shown = ask(&place, "resync");
    assert_eq!(shown.matches("/new healthy").count(), 2, "{shown}");
    assert_eq!(pages("new"), [1, 2]);
    drop(window);
    end(daemon);
}

#[test]
fn leg_that_was_cut_off_is_copied_to_after_what_the_refusal_says() {
    for log in LOGS {
        for (len, why) in [
            (
                0,
                "line 1, column AT: @/a: unusable size: empty, but at least one page of 4096 bytes is needed",
            ),
            (
                SIZE / 2,
                "line 1, column 1: leg 0: pgoff 0x0 + 256 pages reaches past the end at 128 pages",
            ),
        ] {
            let place = Place::new();
            let Some(daemon) = mirror(&place, log) else { return };
            end(daemon);
            let leg = File::options().write(true).open(place.path("a")).unwrap();
            leg.set_len(len).unwrap();
            let line = fs::read_to_string(place.path("table")).unwrap();
            let leg_at = line.find(&place.expand("@/a 0")).unwrap() + 1;
            let why = why.replace("AT", &leg_at.to_string());
            place.refuses(
                &format!("{SERVE} --log-level off"),
                &format!(
                    "table @/table: {why}; if its end was cut off, run vhost-pmemd unmark on it, and \
                     then make it larger, to have it copied to"
                ),
            );
            assert!(place.run("unmark @/a").status.success());
            leg.set_len(SIZE).unwrap();
            let daemon = restart(&place);
            assert_eq!(first(&place, "window"), 1);
            ask(&place, "resync");
            end(daemon);
            assert_eq!(LEGS.map(|leg| first(&place, leg)), [1, 1]);
        }
    }
}
