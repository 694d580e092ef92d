// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The number of pieces that a table makes.
//!
//! A table is opened once, however often others use it. But all that walks a stack – to find what
//! must be synced, what may be written, what lies where – meets it once for each use, and a table
//! of two lines that both use the one before it doubles that number. So it is bounded before
//! anything is opened.

use std::collections::HashMap;

use super::error::{OpenTableError, OpenTableErrorKind};
use super::text::{DeviceSpec, Line, TargetSpec};

/// A table may be made of so many lines, each counted as often as it is used.
pub(super) const PIECES_MAX: u64 = 1 << 16;

/// Checks that no table of `definitions`, in order, is made of too many pieces.
pub(super) fn check(lines: &[Line]) -> Result<(), OpenTableError> {
    let mut known = HashMap::new();
    for lines in lines.chunk_by(|one, next| one.name == next.name) {
        let mut pieces = 0u64;
        for line in lines {
            let beneath = devices(&line.target).filter_map(|name| known.get(name));
            // What is known is within the bound, so this overflows for no text that fits in memory.
            pieces = beneath.fold(pieces.saturating_add(1), |sum, more| sum.saturating_add(*more));
            if pieces > PIECES_MAX {
                let kind = OpenTableErrorKind::TooManyPieces;
                return Err(OpenTableError { position: line.position, kind });
            }
        }
        if let Some(name) = &lines[0].name {
            known.insert(name.as_str(), pieces);
        }
    }
    Ok(())
}

/// What a target is made of: names of tables, or paths.
fn devices(target: &TargetSpec) -> impl Iterator<Item = &str> {
    let (named, specs): (Vec<_>, &[DeviceSpec]) = match target {
        TargetSpec::Linear(spec) => (vec![&spec.device], &[]),
        TargetSpec::Striped { stripes, .. } => (Vec::new(), stripes),
        TargetSpec::Mirror { log, legs } => (log.device.iter().collect(), legs),
        TargetSpec::Snapshot { origin, cow, .. } => (vec![origin, cow], &[]),
        TargetSpec::Zero | TargetSpec::Error => (Vec::new(), &[]),
    };
    let devices = named.into_iter().chain(specs.iter().map(|spec| &spec.device));
    devices.map(|word| word.text.as_str())
}
