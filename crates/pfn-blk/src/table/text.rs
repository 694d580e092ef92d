// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The table language: `dmsetup`'s grammar, a target a line.
//!
//! ```text
//! # start  length  target  its arguments      (in 512-byte sectors)
//! 0        262144  linear  /srv/pmem/a.img 0
//! 262144   262144  linear  /srv/pmem/b.img 0
//! ```
//!
//! Words are separated by blanks. As in the kernel's `dm_split_args`, a backslash takes the
//! special meaning from the character behind it, so a path may contain `\ ` and `\\`. Blank lines
//! and lines that start with `#` are passed over.

use std::path::PathBuf;

use thiserror::Error;

use crate::page::{InvalidPages, NrPages, PAGE_SIZE, Pgoff, PgoffRange};

const SECTOR_SIZE: u64 = 512;
const SECTORS_PER_PAGE: u64 = PAGE_SIZE / SECTOR_SIZE;

/// A place in a table's text, both counted from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// A line of a table: which pages, and what is to cover them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Where in the text it starts.
    pub position: Position,
    /// The pages of the table.
    pub pages: PgoffRange,
    /// The target for them.
    pub target: TargetSpec,
}

/// A target as the text names it, nothing opened yet.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TargetSpec {
    /// `linear PATH START`: pages of a file, from `start` on.
    Linear {
        /// The file, relative to the working directory if it isn't absolute.
        path: PathBuf,
        /// Its first page that is used.
        start: Pgoff,
    },
}

/// Text that is no table.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("{position}: {kind}")]
pub struct ParseTableError {
    /// Where.
    pub position: Position,
    /// What.
    pub kind: ParseTableErrorKind,
}

/// What is wrong with a word of a table.
#[derive(Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ParseTableErrorKind {
    /// The line ends too early.
    #[error("missing {0}; a line is: start length target arguments")]
    Missing(&'static str),
    /// The line goes on too long.
    #[error("unexpected {0:?}; the target takes no more arguments")]
    Unexpected(String),
    /// Not a number of sectors.
    #[error("{word:?} is not a number of {SECTOR_SIZE}-byte sectors for the {what}")]
    NotANumber {
        /// Which number.
        what: &'static str,
        /// What stands there.
        word: String,
    },
    /// Sectors that are not whole pages.
    #[error(
        "{what} {sectors} is not a multiple of {SECTORS_PER_PAGE} sectors, one page of {PAGE_SIZE} bytes"
    )]
    Misaligned {
        /// Which number.
        what: &'static str,
        /// What stands there.
        sectors: u64,
    },
    /// A number of pages that is none.
    #[error("{what}: {source}")]
    Pages {
        /// Which number.
        what: &'static str,
        /// Why it is none.
        source: InvalidPages,
    },
    /// A target that doesn't exist.
    #[error("unknown target {0:?}; this is known: linear")]
    UnknownTarget(String),
    /// A backslash with nothing behind it.
    #[error("a backslash with nothing behind it; write \\\\ for the character itself")]
    LoneBackslash,
}

impl Position {
    fn error(self, kind: ParseTableErrorKind) -> ParseTableError {
        ParseTableError { position: self, kind }
    }
}

/// Reads a table's text. The lines come out as they stand: that they tile the table is checked
/// when it is built.
pub fn parse(text: &str) -> Result<Vec<Line>, ParseTableError> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !matches!(line.trim_start().chars().next(), None | Some('#')))
        .map(|(index, line)| parse_line(index + 1, line))
        .collect()
}

fn parse_line(number: usize, line: &str) -> Result<Line, ParseTableError> {
    let mut words = Words { line: number, chars: line.chars(), column: 1 };
    let start = words.sectors("start")?;
    let position = start.position;
    let length = words.sectors("length")?;
    let pages = length.nr_pages("length").and_then(|nr_pages| {
        PgoffRange::try_new(start.pgoff("start")?, nr_pages).map_err(|source| {
            length.position.error(ParseTableErrorKind::Pages { what: "length", source })
        })
    })?;
    let target = words.required("target")?;
    let target = match target.text.as_str() {
        "linear" => TargetSpec::Linear {
            path: words.required("path")?.text.into(),
            start: words.sectors("start in the file")?.pgoff("start in the file")?,
        },
        _ => {
            return Err(target
                .position
                .error(ParseTableErrorKind::UnknownTarget(target.text.clone())));
        }
    };
    match words.word()? {
        Some(word) => Err(word.position.error(ParseTableErrorKind::Unexpected(word.text.clone()))),
        None => Ok(Line { position, pages, target }),
    }
}

struct Word {
    position: Position,
    text: String,
}

struct Sectors {
    position: Position,
    count: u64,
}

impl Sectors {
    fn pages(&self, what: &'static str) -> Result<u64, ParseTableError> {
        if self.count % SECTORS_PER_PAGE != 0 {
            let kind = ParseTableErrorKind::Misaligned { what, sectors: self.count };
            return Err(self.position.error(kind));
        }
        Ok(self.count / SECTORS_PER_PAGE)
    }

    fn pgoff(&self, what: &'static str) -> Result<Pgoff, ParseTableError> {
        Pgoff::try_new(self.pages(what)?)
            .map_err(|source| self.position.error(ParseTableErrorKind::Pages { what, source }))
    }

    fn nr_pages(&self, what: &'static str) -> Result<NrPages, ParseTableError> {
        NrPages::try_new(self.pages(what)?)
            .map_err(|source| self.position.error(ParseTableErrorKind::Pages { what, source }))
    }
}

struct Words<'a> {
    line: usize,
    chars: std::str::Chars<'a>,
    column: usize,
}

impl Words<'_> {
    fn position(&self) -> Position {
        Position { line: self.line, column: self.column }
    }

    fn advance(&mut self) -> Option<char> {
        let next = self.chars.next()?;
        self.column += 1;
        Some(next)
    }

    fn word(&mut self) -> Result<Option<Word>, ParseTableError> {
        while self.chars.as_str().starts_with(char::is_whitespace) {
            self.advance();
        }
        let position = self.position();
        let mut text = String::new();
        while !self.chars.as_str().starts_with(char::is_whitespace) {
            let at = self.position();
            match self.advance() {
                None => break,
                Some('\\') => {
                    let escaped = self.advance();
                    text.push(escaped.ok_or(at.error(ParseTableErrorKind::LoneBackslash))?);
                }
                Some(other) => text.push(other),
            }
        }
        Ok((!text.is_empty()).then_some(Word { position, text }))
    }

    fn required(&mut self, what: &'static str) -> Result<Word, ParseTableError> {
        let word = self.word()?;
        word.ok_or_else(|| self.position().error(ParseTableErrorKind::Missing(what)))
    }

    fn sectors(&mut self, what: &'static str) -> Result<Sectors, ParseTableError> {
        let word = self.required(what)?;
        match word.text.parse() {
            Ok(count) => Ok(Sectors { position: word.position, count }),
            Err(_) => {
                let kind = ParseTableErrorKind::NotANumber { what, word: word.text.clone() };
                Err(word.position.error(kind))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn parse_linear_reads_sectors_as_pages() {
        let lines = parse("# a comment\n\n 0 16\tlinear /a\\ b\\\\c 8\n").unwrap();
        let pages = PgoffRange::try_new(Pgoff::ZERO, NrPages::try_new(2).unwrap()).unwrap();
        let start = Pgoff::try_new(1).unwrap();
        let target = TargetSpec::Linear { path: "/a b\\c".into(), start };
        let position = Position { line: 3, column: 2 };
        assert_eq!(lines, [Line { position, pages, target }]);
    }

    #[test]
    fn parse_bad_line_says_where_and_what() {
        for (text, expected) in [
            ("0", "line 1, column 2: missing length; a line is: start length target arguments"),
            ("0 8 linear", "line 1, column 11: missing path"),
            ("\n0 8 linear /a 0 1", "line 2, column 17: unexpected \"1\""),
            ("0 x linear /a 0", "line 1, column 3: \"x\" is not a number of 512-byte sectors"),
            ("0 -8 linear /a 0", "line 1, column 3: \"-8\" is not a number"),
            ("0 9 linear /a 0", "line 1, column 3: length 9 is not a multiple of 8 sectors"),
            ("4 8 linear /a 0", "line 1, column 1: start 4 is not a multiple of 8 sectors"),
            ("0 8 linear /a 7", "line 1, column 15: start in the file 7 is not a multiple"),
            ("0 0 linear /a 0", "line 1, column 3: length: empty"),
            ("0 8 liner /a 0", "line 1, column 5: unknown target \"liner\"; this is known: linear"),
            ("0 8 linear /a\\", "line 1, column 14: a backslash with nothing behind it"),
            ("0 18446744073709551608 linear /a 0", "line 1, column 3: length: more than"),
            ("18014398509481976 16 linear /a 0", "line 1, column 19: length: more than"),
        ] {
            assert!(error(text).starts_with(expected), "{text:?}: {}", error(text));
        }
    }

    #[test]
    fn parse_empty_text_has_no_lines() {
        assert_eq!(parse("\n# nothing\n   \n"), Ok(vec![]));
    }
}
