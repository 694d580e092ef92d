// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why legs and a log make no mirror.

use thiserror::Error;

use super::LEGS_MAX;
use crate::bio::BioError;
use crate::claim::Claimed;
use crate::page::{InvalidPages, NrPages};
use crate::target::InvalidLinear;
use crate::target::metadata::InvalidMetadata;

/// Legs and a log that make no mirror.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum InvalidMirror {
    /// An impossible number of legs.
    #[error("{0} legs; there must be from 2 to {LEGS_MAX}")]
    Legs(usize),
    /// A leg that reaches past what is beneath it.
    #[error("leg {leg}")]
    Leg {
        /// Which one.
        leg: usize,
        /// How far it reaches.
        #[source]
        source: InvalidLinear,
    },
    /// A leg's first page that is too large a number.
    #[error(transparent)]
    Pages(#[from] InvalidPages),
    /// More regions than can be kept track of.
    #[error("with regions of {0} there are more than 2^27; choose larger regions")]
    SmallRegion(NrPages),
    /// A log without room for all bits.
    #[error("a log of {log} is too small; it needs {least}")]
    SmallLog {
        /// Its size.
        log: NrPages,
        /// The least that it must be.
        least: NrPages,
    },
    /// A leg or the log can't be written, and others can.
    #[error("a leg or the log is read-only; all of them must be, or none")]
    ReadOnly,
    /// The log isn't one, or another's.
    #[error("the log can't be used")]
    Metadata(#[from] InvalidMetadata),
    /// Another target writes to a leg or the log.
    #[error(transparent)]
    Claimed(#[from] Claimed),
    /// A leg can't be read.
    #[error("cannot read leg {leg}")]
    Read {
        /// Which one.
        leg: usize,
        /// Why.
        source: BioError,
    },
    /// No identities can be made.
    #[error(transparent)]
    Random(#[from] BioError),
    /// A leg's label isn't what was written.
    #[error("the label of {leg} can't be used")]
    Label {
        /// The leg's name.
        leg: String,
        /// What is wrong with it.
        source: InvalidMetadata,
    },
    /// A leg that has no extended attributes, and no page that follows it.
    #[error(
        "leg {leg} has no place for its label: it needs extended attributes, or a page that follows \
         its last one; make the mirror 8 sectors shorter"
    )]
    NoPlace {
        /// Which one.
        leg: usize,
    },
    /// A leg is missing, and nothing says that the others have everything.
    #[error("leg {0} can't be read, and no other leg says that it belongs to this mirror")]
    NewWithout(usize),
    /// A new mirror whose first leg looks empty, while another doesn't.
    #[error(
        "leg 0, which a new mirror is copied from, begins with zeroes, and leg {0} doesn't; name the \
         leg with the data first"
    )]
    BlankFirst(usize),
    /// Nothing tells which leg to believe.
    #[error("the log is a mirror's, but no leg has a label")]
    NoLabels,
    /// A leg of another mirror.
    #[error("leg {leg} and leg {other} belong to different mirrors")]
    OfAnother {
        /// One of them.
        leg: usize,
        /// The other.
        other: usize,
    },
    /// A leg that is a copy of another one, with its label.
    #[error("leg {other} is a copy of leg {leg}, or an older one")]
    Copied {
        /// One of them.
        leg: usize,
        /// The other.
        other: usize,
    },
    /// Legs that both went on without the other.
    #[error("leg {leg} and leg {other} were each written without the other, and differ")]
    Diverged {
        /// One of them.
        leg: usize,
        /// The other.
        other: usize,
    },
    /// The legs that had everything aren't there.
    #[error("no leg that is there has all that was written: the ones that had it are missing")]
    NoneCurrent,
    /// The log is of another mirror.
    #[error("the log is another mirror's")]
    LogOfAnother,
    /// The legs are older than the log.
    #[error("no leg that is there has all that was written: the log is newer than all of them")]
    LogNewer,
}

/// Why a leg can't take another's place.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum ReplaceError {
    /// There is no such leg.
    #[error("there is no leg {0}")]
    NoLeg(usize),
    /// Nothing else has what it has.
    #[error("it is the last healthy leg; bring up another one first")]
    LastHealthy,
    /// The mirror can't be written.
    #[error("the mirror is read-only")]
    ReadOnly,
    /// What is to be a leg can't be one.
    #[error(transparent)]
    Invalid(#[from] InvalidMirror),
    /// It can't be read.
    #[error("it can't be read")]
    Unreadable,
    /// It is a leg of another mirror.
    #[error(
        "it is a leg of another mirror; to use it here and lose what is on it, unmark it first"
    )]
    OfAnother,
    /// It has what no other leg has.
    #[error(
        "it was written without the mirror, and differs; to use it here and lose what was written, \
         unmark it first"
    )]
    Diverged,
    /// That the old one is out of date can't be written down.
    #[error("cannot write down that the leg is replaced")]
    Record(#[source] BioError),
}
