// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a daemon does that takes long, and how much of it is left.

use super::protocol::{Command, Cow, Status};
use crate::progress::{Progress, Unit};

/// Long work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Merge,
    Resync,
}

impl Work {
    /// What a command takes; nothing if that is done at once.
    pub(super) fn of(command: &Command) -> Option<Self> {
        match command {
            Command::Merge => Some(Self::Merge),
            Command::Resync | Command::Replace { .. } => Some(Self::Resync),
            Command::Status
            | Command::Snapshot { .. }
            | Command::Drop
            | Command::ClearFailure
            | Command::Reload => None,
        }
    }

    pub(super) fn begin(self) -> Progress {
        match self {
            Self::Merge => Progress::begin("merging", Unit::Bytes),
            Self::Resync => Progress::begin("copying", Unit::Regions),
        }
    }

    /// What is left of it: of a merge what the last snapshot still keeps, of a resync the regions in
    /// which legs may differ.
    pub(super) fn left(self, status: &Status) -> u64 {
        match self {
            Self::Merge => status.layers.last().map_or(0, |Cow { chunk, used, .. }| chunk * used),
            Self::Resync => status.mirrors.iter().map(|mirror| mirror.stale).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_left_is_what_the_status_says() {
        let status = serde_json::json!({
            "size": 1, "window": "served", "frontend": false, "snapshots": [], "failures": [],
            "layers": [
                {"name": "a", "chunk": 16384, "used": 9, "capacity": 10},
                {"name": "b", "chunk": 16384, "used": 3, "capacity": 10},
            ],
            "mirrors": [
                {"name": "m", "legs": ["healthy"], "stale": 5, "regions": 9},
                {"name": "n", "legs": ["healthy"], "stale": 2, "regions": 9},
            ],
        });
        let status: Status = serde_json::from_value(status).unwrap();
        assert_eq!(Work::Merge.left(&status), 3 * 16384);
        assert_eq!(Work::Resync.left(&status), 7);
    }
}
