// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--publish`: a window that others open by its path, here this process.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::Place;

/// A daemon without a socket, which has published its window.
pub(crate) struct Publisher(Child);

impl Publisher {
    /// None where there is no FUSE to be had.
    pub(crate) fn start(place: &Place, args: &str) -> Option<Self> {
        Self::spawn(place.command(args))
    }

    /// The same, for a command that starts the daemon.
    pub(crate) fn spawn(mut command: Command) -> Option<Self> {
        let mut daemon = Self(command.stderr(Stdio::piped()).spawn().unwrap());
        let mut log = Vec::new();
        for line in BufReader::new(daemon.0.stderr.take().unwrap()).lines() {
            log.push(line.unwrap());
            if log.last().unwrap().contains("INFO published") {
                return Some(daemon);
            }
        }
        let log = log.join("\n");
        assert!(log.contains("a served window needs"), "{log}");
        eprintln!("skipped: {log}");
        None
    }

    pub(crate) fn signal(&mut self, signal: Signal) -> bool {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
        self.0.wait().unwrap().success()
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        // In order, so that nothing stays mounted; it may have ended.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

/// Three pages, served through a window of four.
fn base(place: &Place) {
    fs::write(place.path("base"), [7; 3 * 4096]).unwrap();
}

const OVERLAY: &str = "--publish @/window --file @/base --overlay @/cow";

fn open(place: &Place) -> File {
    File::options().read(true).write(true).open(place.path("window")).unwrap()
}

#[test]
fn published_window_is_read_written_and_synced_by_any_bytes() {
    let place = Place::new();
    base(&place);
    let Some(mut daemon) = Publisher::start(&place, OVERLAY) else { return };
    let window = open(&place);
    assert_eq!(window.metadata().unwrap().len(), 4 * 4096);
    // Across the end of a page, and of the region.
    window.write_all_at(&[9; 200], 4096 - 100).unwrap();
    let mut bytes = [0; 300];
    window.read_exact_at(&mut bytes, 4096 - 150).unwrap();
    assert!(bytes[..50] == [7; 50] && bytes[50..250] == [9; 200] && bytes[250..] == [7; 50]);
    window.read_exact_at(&mut bytes, 3 * 4096 - 150).unwrap();
    assert!(bytes[..150] == [7; 150] && bytes[150..] == [0; 150]);
    window.sync_data().unwrap();
    drop(window);
    assert!(daemon.signal(Signal::TERM));
    assert!(!place.path("window").exists(), "what it made it takes away");
    assert_eq!(fs::read(place.path("base")).unwrap(), [7; 3 * 4096]);

    let _daemon = Publisher::start(&place, OVERLAY).unwrap();
    open(&place).read_exact_at(&mut bytes, 4096 - 150).unwrap();
    assert_eq!(bytes[50..250], [9; 200]);
}

#[test]
fn published_window_keeps_its_size_and_its_end() {
    let place = Place::new();
    base(&place);
    let Some(_daemon) = Publisher::start(&place, OVERLAY) else { return };
    let window = open(&place);
    assert_eq!(window.set_len(0).unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(window.set_len(1 << 20).unwrap_err().kind(), ErrorKind::PermissionDenied);
    window.write_all_at(&[9], 3 * 4096).unwrap_err();
    let truncated = File::options().write(true).truncate(true).open(place.path("window"));
    assert_eq!(truncated.unwrap_err().kind(), ErrorKind::PermissionDenied);
    let mut bytes = [0; 4096];
    window.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [7; 4096]);
}

#[test]
fn published_window_has_the_mode_of_the_file_that_was_there() {
    let place = Place::new();
    base(&place);
    let window = place.path("window");
    OpenOptions::new().write(true).create_new(true).mode(0o640).open(&window).unwrap();
    let mode = || fs::metadata(&window).unwrap().permissions().mode() & 0o777;
    let made = mode();
    let Some(mut daemon) = Publisher::start(&place, OVERLAY) else { return };
    assert_eq!((fs::metadata(&window).unwrap().len(), mode()), (4 * 4096, made));
    assert!(daemon.signal(Signal::TERM));
    assert_eq!((fs::metadata(&window).unwrap().len(), mode()), (0, made));
}

#[test]
fn published_window_of_a_killed_daemon_is_replaced() {
    let place = Place::new();
    base(&place);
    let Some(mut daemon) = Publisher::start(&place, OVERLAY) else { return };
    let window = open(&place);
    assert!(!daemon.signal(Signal::KILL));
    let mut bytes = [0; 4096];
    window.read_exact_at(&mut bytes, 4096).unwrap_err();
    let _daemon = Publisher::start(&place, OVERLAY).unwrap();
    open(&place).read_exact_at(&mut bytes, 4096).unwrap();
    assert_eq!(bytes, [7; 4096]);
}

#[test]
fn published_read_only_window_refuses_writes() {
    let place = Place::new();
    base(&place);
    let args = "--publish @/window --file @/base --read-only";
    let Some(_daemon) = Publisher::start(&place, args) else { return };
    let error = open(&place).write_all_at(&[9], 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    assert_eq!(fs::read(place.path("base")).unwrap(), [7; 3 * 4096]);
}

#[test]
fn publish_where_something_is_refused_and_leaves_it() {
    let place = Place::new();
    base(&place);
    fs::write(place.path("full"), "full").unwrap();
    fs::create_dir(place.path("dir")).unwrap();
    std::os::unix::fs::symlink("nowhere", place.path("link")).unwrap();
    for (name, why) in [
        ("full", "there is a file of that name, and it isn't empty"),
        ("dir", "there is something of that name, and it isn't a file"),
        ("link", "there is something of that name, and it isn't a file"),
        ("none/window", "No such file or directory (os error 2)"),
    ] {
        place.refuses(
            &format!("--publish @/{name} --file @/base --read-only --log-level off"),
            &format!(
                "the region can't be served: cannot publish the served window at @/{name}: {why}"
            ),
        );
    }
    assert_eq!(fs::read(place.path("full")).unwrap(), b"full");

    fs::copy(place.path("base"), place.path("other")).unwrap();
    let Some(_daemon) = Publisher::start(&place, OVERLAY) else { return };
    place.refuses(
        "--publish @/window --file @/other --read-only --log-level off",
        "the region can't be served: cannot publish the served window at @/window: \
         something is mounted there already; end who serves it, or unmount it",
    );
    let mut bytes = [0; 4096];
    open(&place).read_exact_at(&mut bytes, 0).unwrap();
}
