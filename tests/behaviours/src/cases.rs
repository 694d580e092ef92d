// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The cases, by theme.

mod clones;
mod coherence;
mod direct;
mod flags;
mod freeze;
mod full;
mod holes;
mod huge;
mod mappings;
mod names;
mod prealloc;
mod processes;
mod shutdown;
mod stress;
mod sync;
mod threads;
mod transfer;
mod truncate;

use crate::case::Case;

/// All cases.
pub(crate) fn all() -> Vec<Case> {
    [
        coherence::cases(),
        holes::cases(),
        prealloc::cases(),
        truncate::cases(),
        mappings::cases(),
        processes::cases(),
        huge::cases(),
        direct::cases(),
        transfer::cases(),
        sync::cases(),
        names::cases(),
        clones::cases(),
        threads::cases(),
        stress::cases(),
        full::cases(),
        freeze::cases(),
        flags::cases(),
        shutdown::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
