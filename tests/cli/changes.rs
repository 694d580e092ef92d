// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Changes that are kept apart from their file, and are lost, or not that file's: refused, with a
//! way out that is gone here.

use std::fs;
use std::process::Command;
use std::sync::Arc;

use pfn_blk::{Access, CowFile, FileStore, NrPages, PfnSpace, Snapshot, Target, mark_origin};
use rustix::process::Signal;

use crate::Place;
use crate::control::{ask, is_marked, pages, serve, write};
use crate::publish::Publisher;

const SERVE: &str = "--publish @/window --file @/base";

/// A base that a snapshot was taken of, whose daemon was killed since; none where there is no FUSE, or
/// there are no marks.
fn taken() -> Option<Place> {
    let place = Place::new();
    let mut daemon = serve(&place)?;
    ask(&place, "snapshot @/cow");
    write(&place, 1, 3);
    assert!(!daemon.signal(Signal::KILL));
    if !is_marked(&place) {
        eprintln!("skipped: no extended attributes here");
        return None;
    }
    Some(place)
}

const GIVE_UP: &str = "bring it back, or, to give up what was written since the snapshot, run \
                       \"vhost-pmemd unmark @/base\"";

#[test]
fn cow_store_that_is_missing_is_not_made_from_nothing() {
    let Some(place) = taken() else { return };
    fs::rename(place.path("cow"), place.path("elsewhere")).unwrap();
    let lost = "its changes since are in @/cow, which doesn't exist; ";
    place.refuses(
        SERVE,
        &format!("cannot serve @/base: a snapshot was taken of it, and {lost}{GIVE_UP}"),
    );
    // At the very path that the mark names, and at any other.
    for overlay in ["cow", "other"] {
        place.refuses(
            &format!("{SERVE} --overlay @/{overlay}"),
            &format!(
                "cannot serve @/base: overlay @/{overlay}: nothing is kept in it yet, but a snapshot \
                 was taken of @/base, and {lost}{GIVE_UP}; to keep an overlay over the state of the \
                 snapshot, give --accept-base"
            ),
        );
        assert!(!place.path(overlay).exists());
    }
    place.refuses(
        "merge --file @/base --overlay @/cow",
        &format!(
            "cannot merge @/cow into @/base: the changes since its snapshot are in @/cow, which \
             doesn't exist; {GIVE_UP}"
        ),
    );
    // One that was made by hand, without a size and with one.
    for size in [0, 1 << 20] {
        fs::File::create(place.path("cow")).unwrap().set_len(size).unwrap();
        place.refuses(
            "merge --file @/base --overlay @/cow",
            &format!(
                "cannot merge @/cow into @/base: the changes since its snapshot are in @/cow, which \
                 holds something else now; {GIVE_UP}"
            ),
        );
        let output = place.run(&format!("{SERVE} --overlay @/cow"));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("nothing is kept in it yet, but a snapshot was taken"), "{said}");
        assert!(is_marked(&place));
    }
    // Back where it was it is served, and merged from wherever it is.
    fs::rename(place.path("elsewhere"), place.path("cow")).unwrap();
    let mut daemon = Publisher::start(&place, &format!("{SERVE} --overlay @/cow")).unwrap();
    assert_eq!(pages(&place, "window"), [1, 3, 1, 1]);
    assert!(daemon.signal(Signal::TERM));
    fs::rename(place.path("cow"), place.path("elsewhere")).unwrap();
    assert!(place.run("merge --file @/base --overlay @/elsewhere").status.success());
    assert_eq!(pages(&place, "base"), [1, 3, 1, 1]);
    assert!(!is_marked(&place));
}

#[test]
fn changes_that_are_given_up_leave_the_state_of_the_snapshot() {
    let Some(place) = taken() else { return };
    let cow = fs::read(place.path("cow")).unwrap();
    let output = place.run("unmark @/base");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("removed user.pfn-blk.changes: "), "{said}");
    assert!(said.contains(&place.expand("@/cow\n")), "{said}");
    assert!(!said.contains("generation"), "{said}");
    let mut daemon = Publisher::start(&place, SERVE).unwrap();
    assert_eq!(pages(&place, "window"), [1; 4]);
    place.refuses("unmark @/base", "cannot unmark @/base: locked: another process serves it");
    write(&place, 2, 4);
    assert!(daemon.signal(Signal::TERM));
    // What was given up fits no more, and nothing of it was touched.
    let output = place.run(&format!("{SERVE} --overlay @/cow"));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("the file beneath isn't what it was when the changes were made"),
        "{said}"
    );
    assert_eq!(fs::read(place.path("cow")).unwrap(), cow);
}

/// As a daemon leaves it that was killed in the midst of a merge.
#[test]
fn changes_that_were_merged_in_part_can_only_be_merged() {
    let Some(place) = taken() else { return };
    let mut space = PfnSpace::new();
    let mut add = |store| space.add(Box::new(store)).unwrap() as Arc<dyn Target>;
    let base = add(FileStore::open_origin(&place.path("base")).unwrap());
    let cow = add(FileStore::open(&place.path("cow"), Access::ReadWrite).unwrap());
    let [chunk, size] = [4; 2].map(|pages| NrPages::try_new(pages).unwrap());
    Snapshot::open(base, cow, chunk, size).unwrap().begin_merge().unwrap();
    drop(space);
    let begun = "a merge of the changes since its snapshot was begun, and the others are still in \
                 @/cow; merge those";
    place.refuses("unmark @/base", &format!("cannot unmark @/base: {begun}"));
    place.refuses(&format!("{SERVE} --read-only"), &format!("cannot serve @/base: {begun}"));
    let mut daemon = Publisher::start(&place, &format!("{SERVE} --control @/control")).unwrap();
    // That it has begun isn't forgotten with the next write.
    write(&place, 2, 4);
    assert!(!daemon.signal(Signal::KILL));
    let mut daemon = Publisher::start(&place, &format!("{SERVE} --control @/control")).unwrap();
    place.refuses(
        "drop --control @/control",
        "the daemon refuses: a merge was begun, and has written changes since the snapshot to what \
         is beneath already; merge the others",
    );
    assert_eq!(pages(&place, "window"), [1, 3, 4, 1]);
    ask(&place, "merge");
    assert_eq!(pages(&place, "base"), [1, 3, 4, 1]);
    assert!(!is_marked(&place));
    // The next snapshot is a new one.
    ask(&place, "snapshot @/cow");
    ask(&place, "drop");
    assert!(daemon.signal(Signal::TERM));
}

/// Of an overlay that no mark told of.
#[test]
fn base_of_a_merge_that_was_killed_is_served_with_what_is_left() {
    let place = Place::new();
    fs::write(place.path("base"), [1; 16 * 4096]).unwrap();
    let overlay = format!("{SERVE} --overlay @/cow");
    let Some(mut daemon) = Publisher::start(&place, &overlay) else { return };
    write(&place, 0, 3);
    write(&place, 12, 3);
    assert!(daemon.signal(Signal::TERM));
    assert!(!is_marked(&place));
    // It can't write to the last chunk.
    let merge = "ulimit -f 40; exec \"$0\" merge --file \"$1/base\" --overlay \"$1/cow\"";
    let mut shell = Command::new("bash");
    shell.args(["-c", merge, env!("CARGO_BIN_EXE_vhost-pmemd")]).arg(place.path(""));
    let id = CowFile::read(&place.path("cow")).unwrap().id.unwrap();
    let probe = fs::File::create(place.path("probe")).unwrap();
    if mark_origin(probe, id, &place.path("cow")).is_err() {
        eprintln!("skipped: no extended attributes here");
        return;
    }
    assert!(!shell.output().unwrap().status.success());
    let shown = |name| {
        let bytes = fs::read(place.path(name)).unwrap();
        [0, 1, 12].map(|page| bytes[page * 4096])
    };
    assert_eq!(shown("base"), [3, 1, 1]);
    for other in ["memory", "@/other"] {
        place.refuses(
            &format!("{SERVE} --overlay {other} --accept-base"),
            &format!(
                "cannot serve @/base: overlay {other}: a merge of the changes since its snapshot was \
                 begun, and the others are still in @/cow; merge those"
            ),
        );
    }
    let mut daemon = Publisher::start(&place, SERVE).unwrap();
    assert_eq!(shown("window"), [3, 1, 3]);
    assert!(daemon.signal(Signal::TERM));
    assert!(place.run("merge --file @/base --overlay @/cow").status.success());
    assert!(!is_marked(&place));
}

/// A backup restored by a tool that writes into the old file, which keeps its mark.
#[test]
fn backup_written_over_a_marked_file_is_refused_and_says_how_it_is_served() {
    let Some(place) = taken() else { return };
    let refuses_backup = || {
        let len = fs::metadata(place.path("base")).unwrap().len();
        fs::write(place.path("base"), vec![7; len.try_into().unwrap()]).unwrap();
        let stderr = String::from_utf8(place.run(SERVE).stderr).unwrap();
        let refusal =
            "cannot open what was written since a snapshot: the file beneath isn't what it was";
        assert!(stderr.contains(refusal), "{stderr}");
        let ways = "; bring it back as it was, or, if it is right as it is, give --accept-base; or, to \
                    give up what was written since the snapshot, run \"vhost-pmemd unmark @/base\"\n";
        assert!(stderr.ends_with(&place.expand(ways)), "{stderr}");
    };
    refuses_backup();
    let accepted = format!("{SERVE} --accept-base");
    let mut daemon = Publisher::start(&place, &accepted).unwrap();
    // All of them are in the one chunk that was written.
    assert_eq!(pages(&place, "window"), [1, 3, 1, 1]);
    assert!(daemon.signal(Signal::TERM));
    refuses_backup();
    assert!(place.run("unmark @/base").status.success());
    let mut daemon = Publisher::start(&place, SERVE).unwrap();
    assert_eq!(pages(&place, "window"), [7; 4]);
    assert!(daemon.signal(Signal::TERM));
}

/// A backup that was made while a snapshot was open, by a tool that keeps attributes.
#[test]
fn copy_of_a_marked_file_costs_the_original_nothing() {
    let Some(place) = taken() else { return };
    let copied =
        Command::new("cp").arg("-a").args([place.path("base"), place.path("copy")]).status();
    assert!(copied.unwrap().success());
    let advice = "this file was copied or moved since: to use a copy as it is, in the state of the \
                  snapshot, run \"vhost-pmemd unmark @/copy\"; serve a file that was moved with that \
                  as its --overlay";
    let serve = "--publish @/window --file @/copy";
    place.refuses(
        serve,
        &format!(
            "cannot serve @/copy: a snapshot was taken of it, and its changes since are in @/cow; \
             {advice}"
        ),
    );
    place.refuses(
        "merge --file @/copy --overlay @/cow",
        &format!(
            "cannot merge @/cow into @/copy: the changes since its snapshot are in @/cow; {advice}"
        ),
    );
    let mut daemon = Publisher::start(&place, &format!("{serve} --overlay @/cow")).unwrap();
    assert_eq!(pages(&place, "window"), [1, 3, 1, 1]);
    assert!(daemon.signal(Signal::TERM));
    assert!(place.run("unmark @/copy").status.success());
    let mut daemon = Publisher::start(&place, serve).unwrap();
    assert_eq!(pages(&place, "window"), [1; 4]);
    assert!(daemon.signal(Signal::TERM));
    assert!(place.run("merge --file @/base --overlay @/cow").status.success());
    assert_eq!(pages(&place, "base"), [1, 3, 1, 1]);
}

#[test]
fn overlay_of_a_base_that_has_changed_is_refused_until_that_is_accepted() {
    let place = Place::new();
    fs::write(place.path("base"), [1; 4 * 4096]).unwrap();
    let over = |overlay: &str| format!("--publish @/window --file @/base --overlay @/{overlay}");
    for (overlay, page) in [("one", 0), ("two", 1)] {
        let Some(mut daemon) = Publisher::start(&place, &over(overlay)) else { return };
        write(&place, page, 3);
        assert!(daemon.signal(Signal::TERM));
    }
    assert!(place.run("merge --file @/base --overlay @/one").status.success());
    let refused = |why: &str| {
        let what = "the file beneath isn't what it was when the changes were made:";
        let advice = "bring it back as it was, or, if it is right as it is, give --accept-base";
        place.refuses(
            &over("two"),
            &format!("cannot serve @/base: overlay @/two: {what} {why}; {advice}"),
        );
        place.refuses(
            "merge --file @/base --overlay @/two",
            &format!("cannot merge @/two into @/base: {what} {why}; {advice}"),
        );
        fs::write(place.path("table"), place.expand("0 32 snapshot @/base @/two P 32\n")).unwrap();
        place.refuses(
            "--publish @/window --table @/table",
            &format!("table @/table: line 1, column 1: {what} {why}; {advice}"),
        );
    };
    if pfn_blk::FileStore::forget_records(&place.path("base")).unwrap().is_empty() {
        eprintln!("skipped: no extended attributes here");
        return;
    }
    // By its times now, and by its size.
    let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    let file = fs::File::options().write(true).open(place.path("base")).unwrap();
    file.set_modified(time).unwrap();
    refused("another program has written it, at 2001-09-09T01:46:40Z");
    file.set_len(5 * 4096).unwrap();
    let output = place.run(&over("two"));
    assert!(!output.status.success());
    file.set_len(4 * 4096).unwrap();
    let accepted = format!("{} --accept-base", over("two"));
    drop(Publisher::start(&place, &accepted).unwrap());
    // From then on. The chunk that was copied is as it was.
    let _daemon = Publisher::start(&place, &over("two")).unwrap();
    assert_eq!(pages(&place, "window"), [1, 3, 1, 1]);
}

#[test]
fn check_of_a_table_leaves_overlays_of_its_files_good() {
    let place = Place::new();
    fs::write(place.path("base"), [1; 4 * 4096]).unwrap();
    let over = "--publish @/window --file @/base --overlay @/cow";
    let Some(mut daemon) = Publisher::start(&place, over) else { return };
    write(&place, 0, 3);
    assert!(daemon.signal(Signal::TERM));
    fs::write(place.path("table"), place.expand("0 32 linear @/base 0\n")).unwrap();
    assert!(place.run("check --table @/table").status.success());
    let mut daemon = Publisher::start(&place, over).unwrap();
    assert_eq!(pages(&place, "window"), [3, 1, 1, 1]);
    assert!(daemon.signal(Signal::TERM));
    // Served it may have been written.
    let mut daemon = Publisher::start(&place, "--publish @/window --table @/table").unwrap();
    assert!(daemon.signal(Signal::TERM));
    assert!(!place.run(over).status.success());
}
