// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Snapshots that were open when the daemon ended: the next one finds them by their marks.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, UNIX_EPOCH};

use rustix::process::Signal;

use crate::Place;
use crate::control::{ask, is_marked, write};
use crate::publish::Publisher;

const SERVE: &str = "--publish @/window --file @/base --control @/control";
/// Pages of a snapshot's chunk.
const CHUNK: u64 = 4;

/// The first byte of each of the first three chunks.
fn chunks(place: &Place, name: &str) -> [u8; 3] {
    let bytes = fs::read(place.path(name)).unwrap();
    [0, 1, 2].map(|chunk| bytes[chunk * 4 * 4096])
}

/// A file of which two snapshots were taken, one over another, by a daemon that was killed; none where
/// there is no FUSE, or there are no marks.
fn taken_twice() -> Option<Place> {
    let place = Place::new();
    fs::write(place.path("base"), vec![1; 12 * 4096]).unwrap();
    let mut daemon = Publisher::start(&place, SERVE)?;
    ask(&place, "snapshot @/one");
    write(&place, CHUNK, 2);
    ask(&place, "snapshot @/two");
    write(&place, 2 * CHUNK, 3);
    assert!(!daemon.signal(Signal::KILL));
    if !is_marked(&place) {
        eprintln!("skipped: no extended attributes here");
        return None;
    }
    Some(place)
}

#[test]
fn snapshots_of_snapshots_are_served_and_merged_after_a_restart() {
    let Some(place) = taken_twice() else { return };
    let mut daemon = Publisher::start(&place, SERVE).unwrap();
    assert_eq!(chunks(&place, "window"), [1, 2, 3]);
    let status = ask(&place, "status");
    assert!(status.contains("/one: 1 of 3 chunks") && status.contains("/two: 1 of 3"), "{status}");
    write(&place, 0, 4);
    ask(&place, "merge");
    assert!(!place.path("two").exists() && place.path("one").exists());
    assert_eq!((chunks(&place, "window"), chunks(&place, "base")), ([4, 2, 3], [1, 1, 1]));
    assert!(!daemon.signal(Signal::KILL));

    let mut daemon = Publisher::start(&place, SERVE).unwrap();
    assert_eq!(chunks(&place, "window"), [4, 2, 3]);
    ask(&place, "snapshot @/two");
    write(&place, 0, 5);
    assert!(daemon.signal(Signal::TERM));
    let _daemon = Publisher::start(&place, &format!("{SERVE} --size 48K")).unwrap();
    assert_eq!(chunks(&place, "window"), [5, 2, 3]);
    ask(&place, "merge");
    ask(&place, "merge");
    assert_eq!(chunks(&place, "base"), [5, 2, 3]);
    assert!(!is_marked(&place) && !place.path("one").exists());
}

#[test]
fn base_of_snapshots_that_has_changed_is_refused_until_that_is_accepted() {
    let Some(place) = taken_twice() else { return };
    let base = fs::File::options().write(true).open(place.path("base")).unwrap();
    base.write_all_at(&[9; 4096], 0).unwrap();
    base.set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000_000)).unwrap();
    place.refuses(
        &format!("{SERVE} --log-level off"),
        "the region can't be served: cannot open what was written since a snapshot: the file beneath \
         isn't what it was when the changes were made: another program has written it, at \
         2001-09-09T01:46:40Z; bring it back as it was, or, if it is right as it is, give \
         --accept-base; or, to give up what was written since the snapshot, run \"vhost-pmemd unmark \
         @/base\"",
    );
    // Each layer remembers that.
    for accepted in [" --accept-base", ""] {
        let mut daemon = Publisher::start(&place, &format!("{SERVE}{accepted}")).unwrap();
        assert_eq!(chunks(&place, "window"), [9, 2, 3]);
        assert!(daemon.signal(Signal::TERM));
    }
}

#[test]
fn base_of_a_tables_snapshots_that_is_accepted_is_known_to_each_of_them() {
    let Some(place) = taken_twice() else { return };
    let table = "s: 0 96 snapshot @/base @/one P 32\n0 96 snapshot s @/two P 32\n";
    fs::write(place.path("table"), place.expand(table)).unwrap();
    let base = fs::File::options().write(true).open(place.path("base")).unwrap();
    base.write_all_at(&[9; 4096], 0).unwrap();
    base.set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000_000)).unwrap();
    let serve = "--publish @/window --table @/table";
    assert!(!place.run(&format!("{serve} --log-level off")).status.success());
    for accepted in [" --accept-base", ""] {
        let mut daemon = Publisher::start(&place, &format!("{serve}{accepted}")).unwrap();
        assert_eq!(chunks(&place, "window"), [9, 2, 3]);
        assert!(daemon.signal(Signal::TERM));
    }
}

#[test]
fn snapshots_of_snapshots_are_merged_last_first_while_nobody_serves_them() {
    let Some(place) = taken_twice() else { return };
    place.refuses(
        "merge --file @/base --overlay @/one",
        "cannot merge @/one into @/base: the overlay: a snapshot was taken of it, and its changes \
         since are in @/two; merge those first: vhost-pmemd merge --file @/one --overlay @/two",
    );
    place.refuses(
        "merge --file @/base --overlay @/two",
        "cannot merge @/two into @/base: the changes since its snapshot are in @/one",
    );
    let merge = |file, overlay| {
        let output = place.run(&format!("merge --file @/{file} --overlay @/{overlay}"));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        assert_eq!(output.stdout[..7], *b"merged ");
        assert!(!place.path(overlay).exists());
    };
    merge("one", "two");
    let mut daemon = Publisher::start(&place, SERVE).unwrap();
    assert_eq!(chunks(&place, "window"), [1, 2, 3]);
    assert!(daemon.signal(Signal::TERM));
    merge("base", "one");
    assert_eq!(chunks(&place, "base"), [1, 2, 3]);
    assert!(!is_marked(&place));
}

/// In a directory that the daemon is told of by the mark only.
#[test]
fn overlay_that_is_elsewhere_is_found_and_removed_after_the_merge() {
    let place = Place::new();
    fs::write(place.path("base"), vec![1; 12 * 4096]).unwrap();
    fs::create_dir(place.path("kept")).unwrap();
    let serve = format!("{SERVE} --allow-dir @/kept");
    let Some(mut daemon) = Publisher::start(&place, &serve) else { return };
    ask(&place, "snapshot @/kept/cow");
    write(&place, CHUNK, 2);
    assert!(daemon.signal(Signal::TERM));
    if !is_marked(&place) {
        return;
    }
    let _daemon = Publisher::start(&place, SERVE).unwrap();
    ask(&place, "merge");
    assert_eq!(chunks(&place, "base"), [1, 2, 1]);
    assert!(!is_marked(&place) && !place.path("kept/cow").exists());
}

/// What is given as the overlay is beneath what its own mark tells of.
#[test]
fn snapshot_of_an_overlay_is_found_over_it() {
    let Some(place) = taken_twice() else { return };
    let serve = format!("{SERVE} --overlay @/one");
    let _daemon = Publisher::start(&place, &serve).unwrap();
    assert_eq!(chunks(&place, "window"), [1, 2, 3]);
    ask(&place, "merge");
    assert_eq!((chunks(&place, "window"), place.path("two").exists()), ([1, 2, 3], false));
    place.refuses(
        "merge --control @/control",
        "the daemon refuses: there is no snapshot that was taken of what is served; an overlay is \
         merged into its file while no daemon serves them: vhost-pmemd merge --file FILE --overlay \
         OVERLAY",
    );
}

#[test]
fn snapshot_of_a_table_is_found_by_the_marks_of_its_files() {
    let place = Place::new();
    let table = place.expand("0 32 linear @/a 0\n32 64 linear @/base 0\n");
    fs::write(place.path("table"), table).unwrap();
    fs::write(place.path("a"), vec![1; 4 * 4096]).unwrap();
    fs::write(place.path("base"), vec![1; 8 * 4096]).unwrap();
    let serve = "--publish @/window --table @/table --control @/control";
    let Some(mut daemon) = Publisher::start(&place, serve) else { return };
    ask(&place, "snapshot @/cow");
    write(&place, CHUNK, 2);
    assert!(daemon.signal(Signal::TERM));
    if !is_marked(&place) {
        return;
    }
    let said = String::from_utf8(place.run("check --table @/table").stdout).unwrap();
    assert!(said.contains(&place.expand("since a snapshot: @/cow\n")), "{said}");
    let mut daemon = Publisher::start(&place, serve).unwrap();
    assert_eq!(chunks(&place, "window"), [1, 2, 1]);
    ask(&place, "merge");
    assert!(daemon.signal(Signal::TERM));
    assert_eq!(fs::read(place.path("base")).unwrap()[0], 2);

    // Each of the files was served by itself since, and has changes of its own.
    for file in ["a", "base"] {
        let serve = format!("--publish @/window --file @/{file} --control @/control");
        let mut daemon = Publisher::start(&place, &serve).unwrap();
        ask(&place, &format!("snapshot @/{file}.cow"));
        assert!(daemon.signal(Signal::TERM));
    }
    place.refuses(
        "--publish @/window --table @/table",
        "table @/table: @/a has its changes since a snapshot in @/a.cow, and @/base has them in \
         @/base.cow; merge one of them, by \"vhost-pmemd merge --file FILE --overlay OVERLAY\"",
    );
}

#[test]
fn snapshots_that_are_as_many_as_may_be_are_served_and_merged() {
    let place = Place::new();
    fs::write(place.path("base"), vec![1; 12 * 4096]).unwrap();
    let Some(mut daemon) = Publisher::start(&place, SERVE) else { return };
    for snapshot in 0..16 {
        ask(&place, &format!("snapshot @/{snapshot}"));
        write(&place, u64::from(snapshot % 12_u8), snapshot);
    }
    let refused =
        "the daemon refuses: 16 snapshots are open already; merge or drop the last one first";
    place.refuses("snapshot @/16 --control @/control", refused);
    assert!(!place.path("16").exists());
    let held = fs::read(place.path("window")).unwrap();
    assert!(daemon.signal(Signal::TERM));
    if !is_marked(&place) {
        return;
    }
    let mut daemon = Publisher::start(&place, SERVE).unwrap();
    assert!(fs::read(place.path("window")).unwrap() == held);
    place.refuses("snapshot @/16 --control @/control", refused);
    (0..8).for_each(|_| drop(ask(&place, "merge")));
    assert!(daemon.signal(Signal::TERM));
    // As a table has them, also.
    let mut table = place.expand("0: 0 96 snapshot @/base @/0 P 32\n");
    (1..7).for_each(|at| {
        let line = format!("{at}: 0 96 snapshot {} @/{at} P 32\n", at - 1);
        table += &place.expand(&line);
    });
    table += &place.expand("0 96 snapshot 6 @/7 P 32\n");
    fs::write(place.path("table"), table).unwrap();
    let mut daemon = Publisher::start(&place, "--publish @/window --table @/table").unwrap();
    assert!(fs::read(place.path("window")).unwrap() == held);
    assert!(daemon.signal(Signal::TERM));
    for overlay in (0..8).rev() {
        let file = if overlay == 0 { "base".to_owned() } else { (overlay - 1).to_string() };
        let output = place.run(&format!("merge --file @/{file} --overlay @/{overlay}"));
        assert!(output.status.success(), "{output:?}");
    }
    let base = fs::read(place.path("base")).unwrap();
    assert!(base == held[..base.len()]);
}

#[test]
fn file_with_a_snapshot_keeps_its_size_and_takes_a_served_window() {
    let Some(place) = taken_twice() else { return };
    place.refuses(
        "--publish @/window --file @/base --size 64K",
        "cannot serve @/base: a snapshot was taken of it, so it can't be given another size than \
         49152 bytes; merge first",
    );
    let output = place.run("--socket-path @/socket --file @/base --window direct");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("can't be mapped with the rest; give --window served"), "{said}");
    // One of them is gone, though not the first.
    fs::rename(place.path("two"), place.path("elsewhere")).unwrap();
    let output = place.run("--publish @/window --file @/base");
    let said = String::from_utf8(output.stderr).unwrap();
    let expected = "cannot serve @/base: @/one: a snapshot was taken of it, and its changes since are in \
                    @/two, which doesn't exist; bring it back, or, to give up what was written since \
                    the snapshot, run \"vhost-pmemd unmark @/one\"\n";
    assert!(said.ends_with(&place.expand(expected)), "{said}");
}
