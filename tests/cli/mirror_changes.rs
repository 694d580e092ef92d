// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Snapshots and COW stores over mirrors, whose legs come and go.

use std::fs::{self, File};

use crate::Place;
use crate::control::ask;
use crate::mirrors::{LEGS, LOGS, SERVE, SIZE, end, first, flush, mirror, restart, take_away};
use crate::publish::Publisher;

#[test]
fn leg_that_was_replaced_before_or_after_a_snapshot_is_marked_until_it_is_merged() {
    for is_before in [true, false] {
        let place = Place::new();
        let Some(daemon) = mirror(&place, LOGS[0]) else { return };
        File::create(place.path("new")).unwrap().set_len(SIZE).unwrap();
        let commands = ["replace @/b @/new", "snapshot @/cow"];
        let order = if is_before { [0, 1] } else { [1, 0] };
        for command in order {
            ask(&place, commands[command]);
        }
        flush(&place, 2);
        end(daemon);
        // Nothing tells whether it had everything when the snapshot was taken.
        let refused = place.run("--publish @/window --file @/new --log-level off");
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(said.contains("the changes were made over a mirror, and this isn't one"), "{said}");
        // The same, and merged.
        let place = Place::new();
        let Some(daemon) = mirror(&place, LOGS[0]) else { return };
        File::create(place.path("new")).unwrap().set_len(SIZE).unwrap();
        for command in order {
            ask(&place, commands[command]);
        }
        flush(&place, 2);
        ask(&place, "merge");
        end(daemon);
        let daemon = Publisher::start(&place, "--publish @/window --file @/new").unwrap();
        assert_eq!(first(&place, "window"), 2);
        end(daemon);
    }
}

/// With `leg` away, a 2 is flushed if `is_behind`, a snapshot is taken, and a 3 is flushed.
fn snapshot_without(place: &Place, leg: &str, log: &str, is_behind: bool) -> bool {
    let Some(daemon) = mirror(place, log) else { return false };
    end(daemon);
    take_away(place, leg);
    let daemon = restart(place);
    if is_behind {
        flush(place, 2);
    }
    ask(place, "snapshot @/cow");
    flush(place, 3);
    end(daemon);
    true
}

#[test]
fn leg_that_was_away_at_a_snapshot_is_marked_when_it_is_back() {
    for (log, is_behind) in [(LOGS[0], true), (LOGS[0], false), (LOGS[1], true), (LOGS[1], false)] {
        // At the next start, and while the mirror is served.
        for is_later in [false, true] {
            let place = Place::new();
            if !snapshot_without(&place, "b", log, is_behind) {
                return;
            }
            let back = || fs::rename(place.path("elsewhere"), place.path("b")).unwrap();
            if !is_later {
                back();
            }
            let daemon = restart(&place);
            if is_later {
                back();
            }
            let whole = ask(&place, "resync");
            assert!(whole.contains("/b healthy"), "{whole}");
            end(daemon);
            take_away(&place, "a");
            let daemon = restart(&place);
            assert_eq!(first(&place, "window"), 3, "{log}, {is_behind}, {is_later}");
            ask(&place, "merge");
            end(daemon);
            assert_eq!(first(&place, "b"), 3);
        }
    }
}

#[test]
fn cow_store_of_a_mirror_that_is_lost_is_not_made_from_nothing() {
    for log in LOGS {
        let place = Place::new();
        let Some(daemon) = mirror(&place, log) else { return };
        ask(&place, "snapshot @/cow");
        flush(&place, 2);
        end(daemon);
        let line = format!("m: 0 2048 mirror {log} 2 @/a 0 @/b 0\n0 2048 snapshot m @/cow P 32\n");
        fs::write(place.path("table"), place.expand(&line)).unwrap();
        end(restart(&place));
        fs::rename(place.path("cow"), place.path("elsewhere")).unwrap();
        let refused = |lost: &str| {
            let output = place.run(SERVE);
            let said = String::from_utf8(output.stderr).unwrap();
            let lost = format!(
                "its changes since are in @/cow, which {lost}; bring it back, or, to give up what was written since the snapshot, run \"vhost-pmemd unmark @/a\""
            );
            assert!(said.contains(&place.expand(&lost)), "{said}");
            assert!(said.contains("a snapshot was taken of"), "{said}");
        };
        refused("doesn't exist");
        File::create(place.path("cow")).unwrap().set_len(SIZE).unwrap();
        refused("holds something else now");
        fs::rename(place.path("elsewhere"), place.path("cow")).unwrap();
        let daemon = restart(&place);
        assert_eq!(first(&place, "window"), 2);
        end(daemon);
    }
}

#[test]
fn mirror_that_was_written_beneath_a_cow_store_is_refused_until_that_is_accepted() {
    for log in LOGS {
        let place = Place::new();
        let Some(daemon) = mirror(&place, log) else { return };
        end(daemon);
        put_over(&place, log);
        let shown = |options: &str| {
            let daemon = Publisher::start(&place, &format!("{OVER}{options}")).unwrap();
            let byte = first(&place, "window");
            (byte, daemon)
        };
        let (byte, daemon) = shown("");
        assert_eq!(byte, 1);
        flush(&place, 2);
        end(daemon);
        // Bringing a leg up doesn't change the content.
        take_away(&place, "b");
        end(restart(&place));
        fs::rename(place.path("elsewhere"), place.path("b")).unwrap();
        let daemon = restart(&place);
        ask(&place, "resync");
        end(daemon);
        let (byte, daemon) = shown("");
        assert_eq!(byte, 2);
        end(daemon);
        let daemon = restart(&place);
        flush(&place, 3);
        end(daemon);
        place.refuses(
            &format!("{OVER} --log-level off"),
            "table @/over: line 2, column 1: the file beneath isn't what it was when the changes were \
             made: since then it was served by itself and written, or another overlay was merged into \
             it; bring it back as it was, or, if it is right as it is, give --accept-base",
        );
        for accepted in [" --accept-base", ""] {
            let (byte, daemon) = shown(accepted);
            assert_eq!(byte, 2);
            end(daemon);
        }
    }
}

#[test]
fn leg_that_was_away_at_a_drop_does_not_tell_of_the_snapshot() {
    for log in LOGS {
        let place = Place::new();
        let Some(daemon) = mirror(&place, log) else { return };
        ask(&place, "snapshot @/cow");
        end(daemon);
        take_away(&place, "b");
        let daemon = restart(&place);
        ask(&place, "drop");
        end(daemon);
        fs::rename(place.path("elsewhere"), place.path("b")).unwrap();
        end(restart(&place));
    }
}

const OVER: &str = "--publish @/window --table @/over";

/// A table of a snapshot of the mirror, with a COW store that is blank yet.
fn put_over(place: &Place, log: &str) {
    let line = format!("m: 0 2048 mirror {log} 2 @/a 0 @/b 0\n0 2048 snapshot m @/cow P 32\n");
    fs::write(place.path("over"), place.expand(&line)).unwrap();
    File::create(place.path("cow")).unwrap().set_len(2 * SIZE).unwrap();
}

fn is_refused_as_written(place: &Place) {
    let said = String::from_utf8(place.run(&format!("{OVER} --log-level off")).stderr).unwrap();
    assert!(said.contains("since then it was served by itself and written"), "{said}");
}

#[test]
fn new_mirror_that_is_written_beneath_a_cow_store_is_refused() {
    let place = Place::new();
    let Some(daemon) = mirror(&place, LOGS[0]) else { return };
    end(daemon);
    for leg in LEGS {
        fs::remove_file(place.path(leg)).unwrap();
        File::create(place.path(leg)).unwrap().set_len(SIZE).unwrap();
    }
    put_over(&place, LOGS[0]);
    let daemon = Publisher::start(&place, OVER).unwrap();
    flush(&place, 2);
    end(daemon);
    let daemon = restart(&place);
    flush(&place, 3);
    end(daemon);
    is_refused_as_written(&place);
}

/// A copy of a COW store that was dropped since, with the mirror written by the same daemon.
#[test]
fn mirror_that_was_written_after_a_drop_is_refused_beneath_the_dropped_changes() {
    let place = Place::new();
    let Some(daemon) = mirror(&place, LOGS[0]) else { return };
    put_over(&place, LOGS[0]);
    fs::remove_file(place.path("cow")).unwrap();
    ask(&place, "snapshot @/taken");
    flush(&place, 2);
    fs::copy(place.path("taken"), place.path("cow")).unwrap();
    ask(&place, "drop");
    flush(&place, 3);
    end(daemon);
    is_refused_as_written(&place);
}

#[test]
fn check_of_a_snapshot_over_each_leg_alone_changes_nothing() {
    for log in LOGS {
        let place = Place::new();
        let Some(daemon) = mirror(&place, log) else { return };
        end(daemon);
        put_over(&place, log);
        for leg in LEGS {
            take_away(&place, leg);
            let checked = place.run("check --table @/over");
            assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
            fs::rename(place.path("elsewhere"), place.path(leg)).unwrap();
        }
        let daemon = Publisher::start(&place, OVER).unwrap();
        assert_eq!(first(&place, "window"), 1);
        end(daemon);
    }
}

/// It has the mark of a snapshot that was merged without it.
#[test]
fn leg_that_is_behind_does_not_tell_of_snapshots() {
    let place = Place::new();
    let Some(daemon) = mirror(&place, LOGS[1]) else { return };
    ask(&place, "snapshot @/cow");
    end(daemon);
    take_away(&place, "b");
    let daemon = restart(&place);
    flush(&place, 2);
    ask(&place, "merge");
    end(daemon);
    fs::rename(place.path("elsewhere"), place.path("b")).unwrap();
    let line =
        format!("m: 0 2048 mirror {} 2 @/b 0 @/a 0\n0 2048 snapshot m @/cow P 32\n", LOGS[1]);
    fs::write(place.path("table"), place.expand(&line)).unwrap();
    File::create(place.path("cow")).unwrap().set_len(SIZE).unwrap();
    let daemon = restart(&place);
    assert_eq!(first(&place, "window"), 2);
    end(daemon);
}

/// Its mark names a COW store that was given up while it was away, and that came back.
#[test]
fn changes_that_were_given_up_while_a_leg_was_away_stay_so() {
    let place = Place::new();
    let Some(daemon) = mirror(&place, LOGS[0]) else { return };
    ask(&place, "snapshot @/cow");
    flush(&place, 2);
    end(daemon);
    take_away(&place, "b");
    assert!(place.run("unmark @/a").status.success());
    let daemon = restart(&place);
    assert_eq!(first(&place, "window"), 1);
    flush(&place, 3);
    end(daemon);
    fs::rename(place.path("elsewhere"), place.path("b")).unwrap();
    let daemon = restart(&place);
    assert_eq!(first(&place, "window"), 3);
    ask(&place, "resync");
    end(daemon);
    take_away(&place, "a");
    let daemon = restart(&place);
    assert_eq!(first(&place, "window"), 3);
    end(daemon);
}

#[test]
fn leg_whose_changes_are_given_up_is_still_believed() {
    let place = Place::new();
    if !snapshot_without(&place, "b", LOGS[0], true) {
        return;
    }
    fs::rename(place.path("elsewhere"), place.path("b")).unwrap();
    fs::remove_file(place.path("cow")).unwrap();
    let refused = place.run(&format!("{SERVE} --log-level off"));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains(&place.expand("run \"vhost-pmemd unmark @/a\"")), "{said}");
    let said = String::from_utf8(place.run("unmark @/a").stdout).unwrap();
    assert!(said.contains("removed user.pfn-blk.changes: "), "{said}");
    assert!(!said.contains("removed user.pfn-blk.leg"), "{said}");
    let advice = "it is still a mirror's leg; to give up what is on it, unmark it once more\n";
    assert!(said.ends_with(advice), "{said}");
    let daemon = restart(&place);
    assert_eq!(first(&place, "window"), 2);
    ask(&place, "resync");
    end(daemon);
    assert_eq!(LEGS.map(|leg| first(&place, leg)), [2, 2]);
    // Once more, it is given up.
    let said = String::from_utf8(place.run("unmark @/a").stdout).unwrap();
    assert!(said.contains("removed user.pfn-blk.leg.0: "), "{said}");
}
