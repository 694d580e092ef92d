// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why lines make no table.

use thiserror::Error;

use super::InvalidTable;
use super::hint::{CUT_OFF, mirror_hint, store_hint, table_hint};
use super::open::DEPTH_MAX;
use super::pieces::PIECES_MAX;
use super::words::Position;
use crate::page::InvalidPages;
use crate::store::InvalidStore;
use crate::target::{InvalidLinear, InvalidMirror, InvalidSnapshot, InvalidStriped};

/// Lines that make no table.
#[derive(Debug, Error)]
#[error("{position}: {kind}")]
pub struct OpenTableError {
    /// Where in the text.
    pub position: Position,
    /// What.
    pub kind: OpenTableErrorKind,
}

/// What is wrong with what a line stands for.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenTableErrorKind {
    /// The file can't be a store.
    #[error("{path}: {}{}", chain(.source), store_hint(.source))]
    Store {
        /// The file.
        path: String,
        /// Why it can't.
        source: InvalidStore,
    },
    /// The file of a mirror's leg has a size that none has.
    #[error("{path}: {}{CUT_OFF}", chain(.source))]
    LegSize {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: InvalidStore,
    },
    /// It reaches past what is beneath.
    #[error("{device}: {source}; end it there, or make {device} larger")]
    Linear {
        /// What is beneath.
        device: String,
        /// How far it reaches.
        source: InvalidLinear,
    },
    /// The stripes don't make a target.
    #[error("{}", chain(.0))]
    Striped(InvalidStriped),
    /// The legs and the log don't make a target.
    #[error("{}{}", chain(.0), mirror_hint(.0))]
    Mirror(InvalidMirror),
    /// The origin and the COW device don't make a target.
    #[error("{}", chain(.0))]
    Snapshot(InvalidSnapshot),
    /// The lines of a table don't tile it.
    #[error("{}{}", .0, table_hint(.0))]
    Table(InvalidTable),
    /// The lines of a table don't stand together.
    #[error("{0} is defined already; the lines of a table stand together")]
    DefinedTwice(String),
    /// A table that nothing is made of.
    #[error("{0} is not used by any line behind it; use it, or leave it away")]
    Unused(String),
    /// There is no device, only tables to make one of.
    #[error("no line without a name; those are the device itself")]
    NoDevice,
    /// Tables of tables of tables.
    #[error("more than {DEPTH_MAX} tables one above another; use fewer")]
    TooDeep,
    /// Tables that use others too often.
    #[error(
        "with this line its table is made of more than {PIECES_MAX} lines, each counted as often as \
         it is used; use fewer"
    )]
    TooManyPieces,
    /// The pfn space is used up, or a page number too large.
    #[error(transparent)]
    Pages(InvalidPages),
}

/// An error and what caused it, on one line: a position goes before them both.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}
