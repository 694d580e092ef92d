// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What was stored and what was flushed, written down as it happens: the one who does may be killed
//! at any time.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// For each page the last store that was begun, and the last one that a flush has answered for; 0 if
/// there was none.
pub(super) struct Ledger(File);

/// What is known of a page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) stored: u32,
    pub(super) flushed: u32,
}

impl Ledger {
    /// An empty one.
    pub(super) fn create(path: &Path, pages: usize) -> Self {
        let options = File::options().read(true).write(true).create(true).truncate(true).open(path);
        let file = options.unwrap();
        file.set_len(pages as u64 * 8).unwrap();
        Self(file)
    }

    /// One that somebody has created.
    pub(super) fn open(path: &Path) -> Self {
        Self(File::options().write(true).open(path).unwrap())
    }

    pub(super) fn store(&self, page: usize, number: u32) {
        self.0.write_all_at(&number.to_le_bytes(), page as u64 * 8).unwrap();
    }

    pub(super) fn flush(&self, page: usize, number: u32) {
        self.0.write_all_at(&number.to_le_bytes(), page as u64 * 8 + 4).unwrap();
    }

    /// What is known of each page.
    pub(super) fn read(&self) -> Vec<Entry> {
        let mut bytes = vec![0; usize::try_from(self.0.metadata().unwrap().len()).unwrap()];
        self.0.read_exact_at(&mut bytes, 0).unwrap();
        let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
        let entry =
            |entry: &[u8]| Entry { stored: number(&entry[..4]), flushed: number(&entry[4..]) };
        bytes.chunks_exact(8).map(entry).collect()
    }
}
