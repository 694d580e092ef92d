// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How the legs are.

use std::fmt;

use super::{LEGS_MAX, bit};

/// How a leg is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegState {
    /// It has all that was written.
    Healthy,
    /// A resync is bringing it up; it is written, and not read.
    Recovering,
    /// It failed something that another leg did, and is left alone.
    Failed,
    /// It couldn't be read when the mirror was opened, and is left alone.
    Missing,
}

impl fmt::Display for LegState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Healthy => "healthy",
            Self::Recovering => "recovering",
            Self::Failed => "failed",
            Self::Missing => "missing",
        })
    }
}

/// How a mirror is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorStatus {
    /// Its legs, in order.
    pub legs: Vec<LegState>,
    /// In how many regions they may differ, but for writes under way.
    pub stale: u64,
    /// How many regions there are.
    pub regions: u64,
}

impl MirrorStatus {
    /// Whether all legs have all that was written.
    pub fn is_healthy(&self) -> bool {
        self.legs.iter().all(|leg| *leg == LegState::Healthy)
    }
}

/// How the legs are, a bit for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct States {
    pub(super) failed: u8,
    /// They are written, and must not be read: they may differ.
    pub(super) recovering: u8,
    /// Those of them that may differ in what was acknowledged. The others have all of that.
    pub(super) lacking: u8,
    /// Those of the failed that weren't there at first.
    pub(super) missing: u8,
}

impl States {
    pub(super) fn of(self, leg: usize) -> LegState {
        let has = |mask: u8| mask & bit(leg) != 0;
        match (has(self.missing), has(self.failed), has(self.recovering)) {
            (true, ..) => LegState::Missing,
            (_, true, _) => LegState::Failed,
            (_, _, true) => LegState::Recovering,
            _ => LegState::Healthy,
        }
    }

    /// The legs that lack something that was acknowledged.
    pub(super) fn behind(self) -> u8 {
        self.failed | self.lacking
    }

    /// Returns the legs that have all acknowledged writes but may differ in others, after a power cut.
    pub(super) fn unsettled(self) -> u8 {
        self.recovering & !self.lacking
    }

    /// The same, but for a leg that has failed.
    pub(super) fn without(self, leg: usize) -> Self {
        let kept = !bit(leg);
        Self {
            failed: self.failed | bit(leg),
            recovering: self.recovering & kept,
            lacking: self.lacking & kept,
            ..self
        }
    }

    /// The same, but for a leg that is brought up.
    pub(super) fn recover(self, leg: usize) -> Self {
        Self {
            failed: self.failed & !bit(leg),
            recovering: self.recovering | bit(leg),
            lacking: self.lacking | bit(leg),
            missing: self.missing & !bit(leg),
        }
    }

    /// The same, but all that were brought up have everything.
    pub(super) fn recovered(self) -> Self {
        Self { recovering: 0, lacking: 0, ..self }
    }

    /// Whether another leg than this one is healthy, of `legs`.
    pub(super) fn has_other(self, leg: usize, legs: usize) -> bool {
        let all = u8::MAX >> (LEGS_MAX - legs);
        all & !self.failed & !self.recovering & !bit(leg) != 0
    }
}

impl From<u32> for States {
    fn from(packed: u32) -> Self {
        let [failed, recovering, lacking, missing] = packed.to_le_bytes();
        Self { failed, recovering, lacking, missing }
    }
}

impl From<States> for u32 {
    fn from(States { failed, recovering, lacking, missing }: States) -> Self {
        Self::from_le_bytes([failed, recovering, lacking, missing])
    }
}
