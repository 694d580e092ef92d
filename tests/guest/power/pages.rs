// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A file that a guest changes in place, by write, store and hole, each of them synced.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::ops::Range;

use guest_harness::Random;

const PAGE: usize = 4096;
const PAGES: usize = 64;
/// How many values a write may have; a hole has zero.
const VALUES: usize = 251;
/// How many changes there are until they begin anew, each with the value that it had.
const CHANGES: usize = 4 * VALUES;
/// How many changes the guest may have synced, and said so, and nobody heard it: as many lines as its
/// serial line holds back.
const UNHEARD: usize = 100;

/// What each page of the file may hold.
pub(crate) struct Pages(Vec<BTreeSet<u8>>);

/// What is done, one after another.
pub(crate) struct Changes(Vec<Change>);

struct Change {
    pages: Range<usize>,
    value: u8,
    how: How,
}

#[derive(Clone, Copy)]
enum How {
    Write,
    Store,
    Punch,
}

impl Changes {
    pub(crate) fn new(random: &mut Random) -> Self {
        let mut below = |end: usize| usize::try_from(random.below(end as u64)).unwrap();
        let first = below(VALUES);
        let changes = (0..CHANGES).map(|at| {
            let start = below(PAGES);
            let end = start + 1 + below(4.min(PAGES - start));
            let value = u8::try_from(1 + (first + at) % VALUES).unwrap();
            let (how, value) = match below(5) {
                0 | 1 => (How::Write, value),
                2 | 3 => (How::Store, value),
                _ => (How::Punch, 0),
            };
            Change { pages: start..end, value, how }
        });
        Self(changes.collect())
    }

    /// Commands that do it without an end. There is a line for each change that was synced.
    pub(crate) fn script(&self) -> String {
        let mut script = "while :; do\n".to_owned();
        for batch in self.0.chunks(VALUES) {
            write!(script, "xfs_io -c 'mmap 0 {}'", PAGES * PAGE).unwrap();
            for Change { pages, value, how } in batch {
                let at = format!("{} {}", pages.start * PAGE, pages.len() * PAGE);
                let commands = match how {
                    How::Write => format!("-c 'pwrite -q -S {value} {at}' -c fsync"),
                    How::Store => format!("-c 'mwrite -S {value} {at}' -c 'msync -s {at}'"),
                    How::Punch => format!("-c 'fpunch {at}' -c fsync"),
                };
                write!(script, " {commands} -c file").unwrap();
            }
            script += " /mnt/pages\n";
        }
        script + "done"
    }
}

/// How many changes a guest has said to be synced.
pub(crate) fn count_synced(serial: &str) -> usize {
    // As `xfs_io` names the file that it has open.
    serial.lines().filter(|line| line.starts_with("[000] /mnt/pages ")).count()
}

impl Pages {
    /// Those of an empty file.
    pub(crate) fn new() -> Self {
        Self(vec![BTreeSet::from([0]); PAGES])
    }

    /// Commands that make the file where there is none.
    pub(crate) fn create() -> String {
        format!("xfs_io -fc 'truncate {}' -c fsync /mnt/pages; sync /mnt", PAGES * PAGE)
    }

    /// Commands that say what the file holds.
    pub(crate) fn report() -> String {
        // Lines that are like the last one are left out.
        "if [ -e /mnt/pages ]; then od -A d -t x1 /mnt/pages | sed 's/^/HELD page /'; fi".to_owned()
    }

    /// The first `count` of `changes` were made and synced, and others may have been made.
    ///
    /// Where one that wasn't synced fills a hole there may be anything: the block may be the file's
    /// before it was cleared, for the reason that [`super::Machine::attempt`] tells.
    pub(crate) fn change(&mut self, changes: &Changes, count: usize) {
        let all = changes.0.iter().cycle();
        for (at, Change { pages, value, .. }) in all.take(count + UNHEARD).enumerate() {
            for page in &mut self.0[pages.clone()] {
                if at < count {
                    page.clear();
                } else if page.contains(&0) {
                    page.extend(1..=u8::MAX);
                }
                page.insert(*value);
            }
        }
    }

    /// Checks what a guest has said that the file holds.
    pub(crate) fn check(&self, serial: &str) -> Result<(), String> {
        let wrong = |(number, (page, bytes)): (usize, (&BTreeSet<u8>, BTreeSet<u8>))| {
            let is_wrong = !bytes.is_subset(page);
            is_wrong.then(|| format!("page {number} holds {bytes:x?}, not of {page:x?}"))
        };
        match self.0.iter().zip(held(serial)).enumerate().find_map(wrong) {
            Some(wrong) => Err(wrong),
            None => Ok(()),
        }
    }

    /// Takes what a guest has said that the file holds for what it holds.
    pub(crate) fn take_held(&mut self, serial: &str) {
        self.0 = held(serial);
    }
}

/// What a guest has said that each page holds.
fn held(serial: &str) -> Vec<BTreeSet<u8>> {
    let held = read_report(serial);
    assert!(held.len() <= PAGES * PAGE, "the file is {} bytes long", held.len());
    let page = |number| held.get(number * PAGE..(number + 1) * PAGE).unwrap_or(&[0; PAGE]);
    (0..PAGES).map(|number| page(number).iter().copied().collect()).collect()
}

/// The bytes of the file, from lines as `od` prints them.
fn read_report(serial: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut last = Vec::new();
    for line in serial.lines().filter_map(|line| line.strip_prefix("HELD page ")) {
        let mut words = line.split_whitespace();
        let Some(address) = words.next().filter(|word| *word != "*") else { continue };
        let address: usize = address.parse().unwrap();
        while bytes.len() < address {
            bytes.extend_from_slice(&last);
        }
        last = words.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        bytes.extend_from_slice(&last);
    }
    bytes
}

#[test]
fn report_with_lines_left_out_is_read() {
    let line = |byte: &str| [byte; 16].join(" ");
    let report = format!(
        "HELD page 0000000 {}\nHELD page *\n[ 1.0] other\nHELD page 0000064 {}\nHELD page 0000080\n",
        line("00"),
        line("a7")
    );
    assert_eq!(read_report(&report), [[0; 64].as_slice(), &[0xa7; 16]].concat());
}

#[test]
fn page_without_its_last_synced_change_is_found() {
    let changes = Changes(vec![
        Change { pages: 0..2, value: 7, how: How::Write },
        Change { pages: 1..2, value: 8, how: How::Store },
    ]);
    let mut pages = Pages::new();
    pages.change(&changes, 2);
    // Both are made over and over.
    assert_eq!((&pages.0[0], &pages.0[1], &pages.0[2]), (&[7].into(), &[7, 8].into(), &[0].into()));
    // One that was not synced fills a hole.
    pages.change(&Changes(vec![Change { pages: 2..3, value: 9, how: How::Write }]), 0);
    assert_eq!((pages.0[0].len(), pages.0[2].len()), (1, 256));
}
