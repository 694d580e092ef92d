// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A window that the VMM makes of several pieces, each at its place, and one of a block device.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use guest_harness::Daemon;
use tempfile::TempDir;

use super::{DAEMON, Memory, START, Vmm, mended, open, window};
use crate::loop_device::LoopDevice;

const MIB: u64 = 1 << 20;

/// A daemon that serves a table, in a window of this address.
fn serve(dir: &TempDir, table: &str) -> anyhow::Result<Daemon> {
    let path = dir.path().join("table");
    fs::write(&path, table).unwrap();
    let args = ["--window", "gpa=0x20000000", "--table"].map(Into::into);
    Daemon::start(DAEMON, args.into_iter().chain([path.into_os_string()]))
}

/// A linear table's line, of bytes.
fn linear(dir: &TempDir, start: u64, size: u64, file: &str, offset: u64) -> String {
    let path = dir.path().join(file);
    format!("{} {} linear {} {}\n", start / 512, size / 512, path.display(), offset / 512)
}

/// All of `a`, the second half of `b`, and all of `c`.
struct Joined {
    daemon: Daemon,
    files: [File; 3],
    _dir: TempDir,
}

impl Joined {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = ["a", "b", "c"].map(|name| open(&dir.path().join(name)));
        files.iter().for_each(|file| file.set_len(4 * MIB).unwrap());
        let lines = [
            linear(&dir, 0, 4 * MIB, "a", 0),
            linear(&dir, 4 * MIB, 2 * MIB, "b", 2 * MIB),
            linear(&dir, 6 * MIB, 4 * MIB, "c", 0),
        ];
        Self { daemon: serve(&dir, &lines.concat()).unwrap(), files, _dir: dir }
    }

    fn pieces(&self) -> [Memory<'_>; 3] {
        let [a, b, c] = &self.files;
        [(0, 4, a, 0), (4, 2, b, 2), (6, 4, c, 0)].map(|(start, size, file, offset)| Memory {
            start: START + start * MIB,
            size: size * MIB,
            file,
            offset: offset * MIB,
        })
    }
}

#[test]
fn pieces_each_at_its_place_are_one_window() {
    let joined = Joined::start();
    let mut vmm = Vmm::start(&joined.daemon, &joined.pieces());
    assert_eq!(vmm.config, [START.to_le_bytes(), (10 * MIB).to_le_bytes()].concat());
    assert_eq!(vmm.driver.flush(), 0);
}

#[test]
fn pieces_that_are_swapped_are_refused() {
    let joined = Joined::start();
    let [a, b, c] = joined.pieces();
    let swapped = [Memory { file: c.file, ..a }, b, Memory { file: a.file, ..c }];
    let found = c.file.metadata().unwrap().ino();
    let expected = format!("the guest's memory at 0x20000000 is inode {found} of device ");
    mended(&joined.daemon, &swapped, &expected, &[a, b, c]);
    assert!(joined.daemon.log().contains("/a, which is inode "), "{}", joined.daemon.log());
}

#[test]
fn piece_that_is_missing_is_named() {
    let joined = Joined::start();
    let [a, b, c] = joined.pieces();
    let expected = "the guest has no memory at 0x20400000, where ";
    mended(&joined.daemon, &[a, c], expected, &[a, b, c]);
    assert!(joined.daemon.log().contains("/b is to be;"), "{}", joined.daemon.log());
}

#[test]
fn last_piece_that_is_missing_is_missed() {
    let joined = Joined::start();
    let [a, b, c] = joined.pieces();
    let expected = "the guest has no memory at 0x20600000, where ";
    mended(&joined.daemon, &[a, b], expected, &[a, b, c]);
}

#[test]
fn piece_of_another_part_of_its_file_is_refused() {
    let joined = Joined::start();
    let [a, b, c] = joined.pieces();
    let expected = "/b from byte 0 on, and not from 2097152;";
    mended(&joined.daemon, &[a, Memory { offset: 0, ..b }, c], expected, &[a, b, c]);
}

/// A file of which so many pieces are a region of 2 MiB, back to front, so that none continues the
/// one before.
fn scattered(dir: &TempDir, pieces: u64) -> (String, Vec<(u64, u64, u64)>) {
    const PIECE: u64 = 64 << 10;
    open(&dir.path().join("a")).set_len(2 * MIB).unwrap();
    let first = 2 * MIB - (pieces - 1) * PIECE;
    let rest = (1..pieces).map(|index| {
        let start = first + (index - 1) * PIECE;
        (start, PIECE, 2 * MIB - start - PIECE)
    });
    let places: Vec<_> = [(0, first, 2 * MIB - first)].into_iter().chain(rest).collect();
    let line = |&(start, size, offset): &(u64, u64, u64)| linear(dir, start, size, "a", offset);
    (places.iter().map(line).collect(), places)
}

#[test]
fn region_of_as_many_pieces_as_a_memory_table_has_beside_ram_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (table, places) = scattered(&dir, 31);
    let daemon = serve(&dir, &table).unwrap();
    let file = &open(&dir.path().join("a"));
    let memory = |(start, size, offset)| Memory { start: START + start, size, file, offset };
    let memory: Vec<_> = places.into_iter().map(memory).collect();
    assert_eq!(Vmm::start(&daemon, &memory).driver.flush(), 0);
}

#[test]
fn region_of_more_pieces_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (table, _) = scattered(&dir, 32);
    let error = format!("{:#}", serve(&dir, &table).err().unwrap());
    let expected = "a VMM can't map the region's own files as memory of its guest: the region lies \
                    in more than 31 extents; give --publish PATH";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn block_device_is_told_from_the_file_below_it() {
    let dir = tempfile::tempdir().unwrap();
    let below = open(&dir.path().join("disk"));
    below.set_len(super::SIZE).unwrap();
    let Some(device) = LoopDevice::over(&dir.path().join("disk")) else {
        eprintln!("not tested: no loop device can be made here, which takes root");
        return;
    };
    let args = ["--window", "gpa=0x20000000", "--file"].map(AsRef::as_ref);
    let args = args.into_iter().chain([device.path().as_os_str()]);
    let daemon = Daemon::start(DAEMON, args).unwrap();
    let disk = open(device.path());
    let expected = format!("and not {}, which is block device ", device.path().display());
    mended(&daemon, &[window(&below)], &expected, &[window(&disk)]);

    // What the VMM has stored is brought down by the flush, and not before.
    let mut vmm = Vmm::start(&daemon, &[window(&disk)]);
    disk.write_all_at(b"stored", 4096).unwrap();
    assert_eq!(vmm.driver.flush(), 0);
    let mut bytes = [0; 6];
    below.read_exact_at(&mut bytes, 4096).unwrap();
    assert_eq!(&bytes, b"stored");
}
