// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an operator can do about what a line can't be made of.

use super::InvalidTable;
use super::words::SECTORS_PER_PAGE;
use crate::store::InvalidStore;
use crate::target::{InvalidMetadata, InvalidMirror};

/// What to do about a leg that is too short. Its label may still say that it has everything.
pub(super) const CUT_OFF: &str = "; if its end was cut off, run vhost-pmemd unmark on it, and then make it larger, \
                       to have it copied to";

/// What to do about a file that can't be a store.
pub(super) fn store_hint(error: &InvalidStore) -> &'static str {
    match error {
        InvalidStore::Missing => "; create it, with the size it is to have",
        InvalidStore::Directory | InvalidStore::NoPages => "; name a file or a block device",
        InvalidStore::Size(_) => "; grow it, which loses nothing",
        InvalidStore::Busy => "; unmount it",
        InvalidStore::Origin(_) => "; put a snapshot of it with that store in its place, or merge",
        InvalidStore::Locked(_) => "; end that process, or use another file",
        _ => "",
    }
}

/// What to do about legs and a log that make no mirror.
pub(super) fn mirror_hint(error: &InvalidMirror) -> &'static str {
    match error {
        InvalidMirror::Metadata(InvalidMetadata::Mismatch { .. }) => {
            "; after a mirror has grown, fill the log with zeroes, to have the legs compared"
        }
        InvalidMirror::Metadata(InvalidMetadata::Header | InvalidMetadata::HeaderLost) => {
            "; fill the log with zeroes, to have the legs compared"
        }
        InvalidMirror::Metadata(InvalidMetadata::Version(_)) => {
            "; if an earlier version wrote it, and all legs were healthy, fill the log with zeroes: the \
             first leg is copied to the others"
        }
        InvalidMirror::Leg { .. } => CUT_OFF,
        InvalidMirror::NewWithout(_) => "; create it, with the size it is to have",
        InvalidMirror::Label { source: InvalidMetadata::NoRoomForLabel { .. }, .. } => "",
        InvalidMirror::Label { .. } => "; run vhost-pmemd unmark on it, to have it copied to",
        InvalidMirror::OfAnother { .. } | InvalidMirror::Copied { .. } => {
            "; run vhost-pmemd unmark on the one to be copied to, which loses what is on it"
        }
        InvalidMirror::Diverged { .. } => {
            "; run vhost-pmemd unmark on the one whose changes are to be given up"
        }
        InvalidMirror::NoneCurrent => {
            "; bring one of those back; or give up what it had: run vhost-pmemd unmark on the others, \
             and fill the log with zeroes, if there is one"
        }
        InvalidMirror::LogNewer => {
            "; bring one of those that had it back; or give up what it had: fill the log with zeroes"
        }
        InvalidMirror::LogOfAnother => {
            "; name its own log, or fill this one with zeroes to have the legs compared"
        }
        InvalidMirror::NoLabels => {
            "; to make a new mirror, copied from its first leg, fill the log with zeroes"
        }
        _ => "",
    }
}

/// What to do about lines that don't tile a table.
pub(super) fn table_hint(error: &InvalidTable) -> String {
    let start = |page: u64| format!("; let the line start at sector {}", page * SECTORS_PER_PAGE);
    match error {
        InvalidTable::Gap { from, .. } => start(*from),
        InvalidTable::Overlap { to, .. } => start(*to),
        _ => String::new(),
    }
}
