// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is said on a control socket: a request, then its reply, each a line of JSON.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::measures::{Cache, Counters};
use super::process::Process;

/// Of requests and replies. Fields may be added to a version, and are ignored by who doesn't know
/// them.
pub(super) const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(super) version: u32,
    /// Which one is meant; nothing if there is but one, or all are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) device: Option<String>,
    #[serde(flatten)]
    pub(crate) command: Command,
}

/// What is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub(crate) enum Command {
    Status,
    /// Answered when it is taken.
    Snapshot {
        /// Where to keep what is written from then on: a path that is good in any directory.
        cow: PathBuf,
    },
    /// Answered when all is merged.
    Merge,
    Drop,
    /// Answered when all legs were copied to.
    Resync,
    /// Answered when the new leg was copied to.
    Replace {
        /// The leg, as the table names it.
        leg: String,
        /// The file that takes its place: a path that is good in any directory.
        path: PathBuf,
    },
    ClearFailure,
    /// Of all devices: read the configuration again.
    Reload,
}

impl Request {
    /// Asks how all devices are.
    pub(crate) fn status() -> Self {
        Self { version: VERSION, device: None, command: Command::Status }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Reply {
    pub(super) version: u32,
    #[serde(flatten)]
    pub(super) result: Outcome,
}

/// How it went.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    /// Well, and how the device is after it, or how all are.
    Ok(Vec<Report>),
    /// Not; nothing was changed, but for a merge, of which any part may be done.
    Error(String),
}

/// One device.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) name: String,
    /// How often its process ended by itself and was started again, where another process sees to
    /// that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) restarts: Option<u64>,
    #[serde(flatten)]
    pub(crate) state: State,
}

/// Whether it is served.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub(crate) enum State {
    Served(Box<Status>),
    /// Not now.
    Down {
        /// What became of its process.
        reason: String,
    },
}

/// How a device is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    /// In bytes, without what is shown behind its end.
    pub(crate) size: u64,
    /// `direct`, `served` or `gpa=ADDR`.
    pub(crate) window: String,
    /// Whether a frontend is connected.
    pub(crate) frontend: bool,
    /// How many bytes the guest reaches: all, or none while its pages are not mapped.
    #[serde(default)]
    pub(crate) mapped: u64,
    /// Whether the guest has its pages.
    #[serde(default)]
    pub(crate) pages: Option<Pages>,
    /// The requests that can't be answered.
    #[serde(default)]
    pub(crate) waiting: Option<Waiting>,
    /// Of a window in guest memory: whether it is there.
    #[serde(default)]
    pub(crate) placement: Option<Placement>,
    /// The snapshots that were taken since the daemon started, the first one first.
    pub(crate) layers: Vec<Cow>,
    /// Those of the command line or the table.
    pub(crate) snapshots: Vec<Cow>,
    pub(crate) mirrors: Vec<Mirror>,
    /// The stores that failed a sync, for which every flush fails, but for mirrors' legs.
    pub(crate) failures: Vec<Failure>,
    /// The stores that are being synced now.
    #[serde(default)]
    pub(crate) syncing: Vec<Syncing>,
    /// The stores whose files were removed: what is flushed is gone when the daemon ends.
    #[serde(default)]
    pub(crate) removed: Vec<String>,
    /// Those that the page cache is known of, and a served window's own file.
    #[serde(default)]
    pub(crate) caches: Vec<Cache>,
    #[serde(default)]
    pub(crate) counters: Option<Counters>,
    #[serde(default)]
    pub(crate) process: Option<Process>,
}

/// Whether a window in guest memory is where the guest looks for it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub(crate) enum Placement {
    /// No frontend has told of its guest's memory yet.
    Unknown,
    Found,
    /// It is not, and every flush fails.
    Misplaced {
        /// What is wrong, and what to do about it.
        reason: String,
    },
}

/// Whether a guest has its pages.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub(crate) enum Pages {
    /// Not yet: none has activated the device.
    Idle,
    Mapped,
    /// No, and every flush fails.
    Unmapped {
        /// What is wrong, and what to do about it.
        reason: String,
        /// Since when, in milliseconds of Unix time.
        since_ms: u64,
    },
}

/// Requests that stay in the queue, as the first of them can't be answered.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Waiting {
    pub(crate) requests: u64,
    /// `unshared`, `no_room` or `queue`.
    pub(crate) cause: String,
    /// What is wrong, and what to do about it.
    pub(crate) reason: String,
    /// Since when, in milliseconds of Unix time.
    pub(crate) since_ms: u64,
}

/// A store that is being synced.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Syncing {
    pub(crate) store: String,
    /// Since when, in milliseconds of Unix time.
    pub(crate) since_ms: u64,
}

/// A store that failed a sync.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) store: String,
    /// What the system said.
    pub(crate) reason: String,
    /// When that was, in milliseconds of Unix time.
    #[serde(default)]
    pub(crate) since_ms: Option<u64>,
}

/// How full a snapshot's COW store is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Cow {
    /// A path, or a place in the table.
    pub(crate) name: String,
    /// In bytes.
    pub(crate) chunk: u64,
    /// In chunks.
    pub(crate) used: u64,
    /// In chunks.
    pub(crate) capacity: u64,
}

/// How a mirror is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Mirror {
    /// A place in the table.
    pub(crate) name: String,
    /// Of each leg: `healthy`, `recovering`, `failed` or `missing`.
    pub(crate) legs: Vec<String>,
    /// The legs' files or tables.
    #[serde(default)]
    pub(crate) leg_names: Vec<String>,
    /// In how many regions they may differ.
    pub(crate) stale: u64,
    /// How many regions there are.
    pub(crate) regions: u64,
}
