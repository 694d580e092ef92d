// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A published window whose pages can't be written back: which fsyncs fail, and until when.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use serde_json::Value;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::Place;
use crate::publish::Publisher;

const SIZE: usize = 1 << 20;
/// The size of a snapshot's chunk. The COW store has room for one.
const CHUNK: usize = 16 << 10;

/// A published window of which the first chunk can be written.
struct Window {
    place: Place,
    /// As a VMM has it.
    mapped: MmapRegion,
    file: File,
    _daemon: Publisher,
}

impl Window {
    /// None where there is no FUSE.
    fn publish() -> Option<Self> {
        let place = Place::new();
        fs::write(place.path("base"), vec![7; SIZE]).unwrap();
        File::create(place.path("cow")).unwrap().set_len(3 * CHUNK as u64).unwrap();
        let table = place.expand("0 2048 snapshot @/base @/cow P 32\n");
        fs::write(place.path("table"), table).unwrap();
        let args = "--table @/table --publish @/window --control @/control";
        let daemon = Publisher::start(&place, args)?;
        let file = open(&place);
        let mapped = FileOffset::new(file.try_clone().unwrap(), 0);
        let mapped = MmapRegion::from_file(mapped, SIZE).unwrap();
        Some(Self { place, mapped, file, _daemon: daemon })
    }

    fn open(&self) -> File {
        open(&self.place)
    }

    /// Stores a page, as a guest does.
    fn store(&self, at: usize, byte: u8) {
        self.mapped.as_volatile_slice().subslice(at, 4096).unwrap().copy_from(&[byte; 4096]);
    }

    fn status(&self) -> Value {
        let output = self.place.run("status --json --control @/control");
        let mut all: Value = serde_json::from_slice(&output.stdout).unwrap();
        all[0].take()
    }

    /// How often an fsync was counted as done and as failed, and how often one failed first.
    fn counted(&self) -> [u64; 3] {
        let status = self.status();
        ["flushes/done", "flushes/failed", "sync_errors"]
            .map(|at| status.pointer(&format!("/counters/{at}")).unwrap().as_u64().unwrap())
    }
}

fn open(place: &Place) -> File {
    File::options().read(true).write(true).open(place.path("window")).unwrap()
}

#[test]
fn fsync_after_a_failed_writeback_fails_in_every_opening_until_it_is_cleared() {
    let Some(window) = Window::publish() else { return };
    let early = window.open();
    window.store(0, 1);
    window.file.sync_data().unwrap();
    assert_eq!(window.status()["failures"], Value::Array(Vec::new()));

    window.store(CHUNK, 2);
    window.file.sync_data().unwrap_err();
    window.file.sync_data().unwrap_err();
    // Where there is room.
    window.store(4096, 3);
    let late = window.open();
    for _ in 0..3 {
        for opening in [&window.file, &early, &late] {
            opening.sync_data().unwrap_err();
            opening.sync_all().unwrap_err();
        }
    }
    let failures = window.status()["failures"].clone();
    assert_eq!(failures.as_array().unwrap().len(), 1, "{failures}");
    assert_eq!(failures[0]["store"], "the served window");
    assert!(failures[0]["reason"].as_str().unwrap().contains("COW store is full"), "{failures}");
    let said = String::from_utf8(window.place.run("list --control @/control").stdout).unwrap();
    assert!(said.contains("the served window failed"), "{said}");

    assert!(window.place.run("clear-failure --control @/control").status.success());
    assert_eq!(window.status()["failures"], Value::Array(Vec::new()));
    window.store(4096, 4);
    for opening in [&window.file, &early, &late, &window.open()] {
        opening.sync_data().unwrap();
    }
    // And once more.
    window.store(2 * CHUNK, 5);
    window.file.sync_data().unwrap_err();
    window.open().sync_data().unwrap_err();
    late.sync_data().unwrap_err();
    late.sync_data().unwrap_err();
}

/// The kernel writes back when it likes: here, as another opening is closed, which asks nobody.
#[test]
fn fsync_after_a_writeback_that_failed_unseen_fails() {
    let Some(window) = Window::publish() else { return };
    window.store(0, 1);
    window.store(CHUNK, 2);
    drop(window.open());
    assert_eq!(window.status()["failures"][0]["store"], "the served window");
    for _ in 0..2 {
        window.open().sync_data().unwrap_err();
        window.file.sync_data().unwrap_err();
    }
    assert!(window.place.run("clear-failure --control @/control").status.success());
    window.open().sync_data().unwrap();
}

#[test]
fn clear_failure_with_pages_that_still_cannot_be_written_is_refused() {
    let Some(window) = Window::publish() else { return };
    window.store(0, 1);
    window.store(CHUNK, 2);
    window.file.sync_data().unwrap_err();
    window.store(2 * CHUNK, 3);
    // Not by a program: as it starts it closes a copy of our fd, which writes pages back.
    let mut control = UnixStream::connect(window.place.path("control")).unwrap();
    control.write_all(b"{\"version\":1,\"command\":\"clear-failure\"}\n").unwrap();
    let mut reply = String::new();
    control.read_to_string(&mut reply).unwrap();
    let error = "cannot sync what was written: cannot sync the served window: Input/output error";
    assert!(reply.contains(error), "{reply}");
    assert_eq!(window.status()["failures"].as_array().unwrap().len(), 1);
    window.open().sync_data().unwrap_err();
    // Nothing is left that can't be written.
    assert!(window.place.run("clear-failure --control @/control").status.success());
    window.open().sync_data().unwrap();
}

/// The caller is told, and knows what isn't there.
#[test]
fn fsync_after_a_write_that_failed_succeeds() {
    let Some(window) = Window::publish() else { return };
    window.file.write_all_at(&[1; 4096], 0).unwrap();
    let error = window.file.write_all_at(&[2; 4096], CHUNK as u64).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    window.file.sync_data().unwrap();
    window.open().sync_data().unwrap();
}

#[test]
fn fsyncs_of_a_published_window_are_counted_as_flushes() {
    let Some(window) = Window::publish() else { return };
    assert_eq!(window.counted(), [0, 0, 0]);
    window.store(0, 1);
    window.file.sync_data().unwrap();
    window.open().sync_all().unwrap();
    assert_eq!(window.counted(), [2, 0, 0]);
    window.store(CHUNK, 2);
    // The kernel answers this one itself: what it could not write back it says, and asks nobody.
    window.file.sync_data().unwrap_err();
    assert_eq!(window.counted(), [2, 0, 0]);
    window.file.sync_data().unwrap_err();
    assert_eq!(window.counted(), [2, 1, 1]);
    window.file.sync_data().unwrap_err();
    assert_eq!(window.counted(), [2, 2, 1]);
    assert!(window.place.run("clear-failure --control @/control").status.success());
    window.file.sync_data().unwrap();
    assert_eq!(window.counted(), [3, 2, 1]);
}
