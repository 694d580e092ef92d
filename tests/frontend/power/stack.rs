// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the daemon serves from the disks.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::record::{self, PAGE};

/// The size of what the guest sees.
pub(super) const PAGES: usize = 1024;
const BYTES: u64 = (PAGES * PAGE) as u64;
const SECTORS: u64 = BYTES / 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stack {
    Direct,
    Striped,
    Served,
    Overlay,
    Mirror,
    /// A served file, of which snapshots are taken and merged meanwhile.
    Snapshots,
}

impl Stack {
    /// Makes the media of its disks.
    pub(super) fn make_media(self, media: &Path) {
        let make = |name: &str, bytes| {
            File::create(media.join(name)).unwrap().set_len(bytes).unwrap();
        };
        match self {
            Self::Direct | Self::Served | Self::Snapshots => make("one", BYTES),
            Self::Striped => ["one", "other"].into_iter().for_each(|name| make(name, BYTES / 2)),
            Self::Overlay => {
                let base: Vec<_> = (0..PAGES).flat_map(|page| record::bytes(1, page)).collect();
                fs::write(media.join("base"), base).unwrap();
            }
            Self::Mirror => {
                ["one", "other"].into_iter().for_each(|name| make(name, BYTES));
                make("log", 2 * PAGE as u64);
            }
        }
    }

    /// What every page holds at first, in words.
    pub(super) fn first_content(self) -> Vec<u64> {
        match self {
            Self::Overlay => {
                (0..PAGES).flat_map(|page| record::words(&record::bytes(1, page))).collect()
            }
            _ => vec![0; PAGES * record::WORDS],
        }
    }

    /// The daemon's arguments, to serve it from what is at `path`. `dir` is for a table.
    pub(super) fn arguments(self, path: impl Fn(&str) -> PathBuf, dir: &Path) -> Vec<OsString> {
        let shown = |name| path(name).display().to_string();
        let table = match self {
            Self::Direct => return vec!["--file".into(), path("one").into()],
            Self::Served | Self::Snapshots => {
                return vec![
                    "--window".into(),
                    "served".into(),
                    "--file".into(),
                    path("one").into(),
                ];
            }
            Self::Overlay => {
                return vec![
                    "--file".into(),
                    path("base").into(),
                    "--overlay".into(),
                    path("cow").into(),
                ];
            }
            // Sixteen pieces in turn.
            Self::Striped => format!("striped 2 512 {} 0 {} 0", shown("one"), shown("other")),
            Self::Mirror => format!(
                "mirror disk 3 {} 64 nosync 2 {} 0 {} 0",
                shown("log"),
                shown("one"),
                shown("other")
            ),
        };
        let file = dir.join("table");
        fs::write(&file, format!("0 {SECTORS} {table}\n")).unwrap();
        vec!["--table".into(), file.into()]
    }
}
