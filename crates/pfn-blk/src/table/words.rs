// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The words of a table's lines, each with its place.

use super::text::{ParseTableError, ParseTableErrorKind};
use crate::page::{NrPages, PAGE_SIZE, Pgoff};

pub(super) const SECTOR_SIZE: u64 = 512;
pub(super) const SECTORS_PER_PAGE: u64 = PAGE_SIZE / SECTOR_SIZE;

/// A place in a table's text, both counted from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

impl Position {
    pub(super) fn error(self, kind: ParseTableErrorKind) -> ParseTableError {
        ParseTableError { position: self, kind }
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// A word, its backslashes taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// Where it stands.
    pub position: Position,
    /// What it is.
    pub text: String,
}

/// `text` as a word that is read back as it is.
pub(super) fn escape(text: &str) -> String {
    let escaped = text.chars().flat_map(|character| {
        let special = character.is_whitespace() || character == '\\';
        special.then_some('\\').into_iter().chain([character])
    });
    escaped.collect()
}

/// A number of sectors, and what it is for.
pub(super) struct Sectors {
    pub(super) position: Position,
    what: &'static str,
    count: u64,
}

impl Sectors {
    fn pages(&self) -> Result<u64, ParseTableError> {
        let Self { position, what, count } = *self;
        if count % SECTORS_PER_PAGE != 0 {
            return Err(position.error(ParseTableErrorKind::Misaligned { what, sectors: count }));
        }
        Ok(count / SECTORS_PER_PAGE)
    }

    pub(super) fn pgoff(&self) -> Result<Pgoff, ParseTableError> {
        let Self { position, what, .. } = *self;
        Pgoff::try_new(self.pages()?)
            .map_err(|source| position.error(ParseTableErrorKind::Pages { what, source }))
    }

    pub(super) fn nr_pages(&self) -> Result<NrPages, ParseTableError> {
        let Self { position, what, .. } = *self;
        NrPages::try_new(self.pages()?)
            .map_err(|source| position.error(ParseTableErrorKind::Pages { what, source }))
    }
}

/// What is left of a line.
pub(super) struct Words<'a> {
    line: usize,
    chars: std::str::Chars<'a>,
    column: usize,
}

impl<'a> Words<'a> {
    pub(super) fn new(line: usize, text: &'a str) -> Self {
        Self { line, chars: text.chars(), column: 1 }
    }

    fn position(&self) -> Position {
        Position { line: self.line, column: self.column }
    }

    fn advance(&mut self) -> Option<char> {
        let next = self.chars.next()?;
        self.column += 1;
        Some(next)
    }

    /// The next word, if there is one.
    pub(super) fn word(&mut self) -> Result<Option<Word>, ParseTableError> {
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

    /// A name with a colon behind it, if that is next.
    pub(super) fn name(&mut self) -> Result<Option<Word>, ParseTableError> {
        let end = self.chars.as_str().trim_start().split(char::is_whitespace).next();
        if !end.is_some_and(|word| word.ends_with(':')) {
            return Ok(None);
        }
        let Some(mut name) = self.word()? else { return Ok(None) };
        name.text.pop();
        let valid =
            |character: char| character.is_ascii_alphanumeric() || "_-.".contains(character);
        if name.text.is_empty() || !name.text.chars().all(valid) {
            return Err(name.position.error(ParseTableErrorKind::InvalidName(name.text)));
        }
        Ok(Some(name))
    }

    /// The next word, which must be there.
    pub(super) fn required(&mut self, what: &'static str) -> Result<Word, ParseTableError> {
        let word = self.word()?;
        word.ok_or_else(|| self.position().error(ParseTableErrorKind::Missing(what)))
    }

    /// The next word, as a number.
    pub(super) fn number(
        &mut self,
        what: &'static str,
    ) -> Result<(Position, u64), ParseTableError> {
        let Word { position, text } = self.required(what)?;
        match text.parse() {
            Ok(number) => Ok((position, number)),
            Err(_) => Err(position.error(ParseTableErrorKind::NotANumber { what, word: text })),
        }
    }

    /// The next word, as a number of sectors.
    pub(super) fn sectors(&mut self, what: &'static str) -> Result<Sectors, ParseTableError> {
        let (position, count) = self.number(what)?;
        Ok(Sectors { position, what, count })
    }

    /// Nothing more may follow.
    pub(super) fn end(&mut self) -> Result<(), ParseTableError> {
        match self.word()? {
            Some(Word { position, text }) => {
                Err(position.error(ParseTableErrorKind::Unexpected(text)))
            }
            None => Ok(()),
        }
    }
}
