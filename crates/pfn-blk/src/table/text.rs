// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The table language: `dmsetup`'s grammar, a target a line.
//!
//! ```text
//! # start  length  target  its arguments      (in 512-byte sectors)
//! 0        262144  linear  /srv/pmem/a.img 0
//! 262144   262144  linear  /srv/pmem/b.img 0
//! ```
//!
//! | Target | Arguments |
//! |---|---|
//! | `linear` | *device* *start* |
//! | `striped` | *stripes* *chunk*, then *device* *start* for each stripe |
//! | `mirror` | `disk` *count* *log device* *region*, or `core` *count* *region*, where *count* is how many words follow up to the legs, then perhaps `sync` or `nosync`; *legs*, then *device* *start* for each |
//! | `snapshot` | *origin* *COW device* `P` *chunk* |
//! | `zero` | |
//! | `error` | |
//!
//! A *device* is a file, or another table: lines that begin with `name:`, as `dmsetup table` prints
//! them, are a table of that name, for use in the lines behind it. The lines without a name are the
//! device itself.
//!
//! Words are separated by blanks. As in the kernel's `dm_split_args`, a backslash takes the
//! special meaning from the character behind it, so a path may contain `\ ` and `\\`. Blank lines
//! and lines that start with `#` are passed over.

use std::fmt;

use thiserror::Error;

use super::words::{Position, SECTOR_SIZE, SECTORS_PER_PAGE, Word, Words, escape};
use crate::page::{InvalidPages, NrPages, PAGE_SIZE, Pgoff, PgoffRange};
use crate::target::InSync;

/// A line of a table: which pages, and what is to cover them. Displays as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Where in the text it starts.
    pub position: Position,
    /// The table it belongs to; none for the device itself.
    pub name: Option<String>,
    /// The pages of the table.
    pub pages: PgoffRange,
    /// The target for them.
    pub target: TargetSpec,
}

/// A target as the text names it, nothing opened yet. Displays as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TargetSpec {
    /// `linear`
    Linear(DeviceSpec),
    /// `striped`
    Striped {
        /// The size of a chunk.
        chunk: NrPages,
        /// The stripes, at least one.
        stripes: Vec<DeviceSpec>,
    },
    /// `mirror`
    Mirror {
        /// Where it keeps in mind how the legs differ.
        log: LogSpec,
        /// The legs.
        legs: Vec<DeviceSpec>,
    },
    /// `snapshot`
    Snapshot {
        /// What is not written.
        origin: Word,
        /// Where changes go.
        cow: Word,
        /// The size of a chunk.
        chunk: NrPages,
    },
    /// `zero`
    Zero,
    /// `error`
    Error,
}

/// Pages of what a word names, from some page on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSpec {
    /// The name of a table, or else the path of a file.
    pub device: Word,
    /// The first page that is used.
    pub start: Pgoff,
}

/// A mirror's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSpec {
    /// Where it is written down: `disk`; in memory if nowhere: `core`.
    pub device: Option<Word>,
    /// The size of a region.
    pub region: NrPages,
    /// `sync` if nothing is to be taken for the same, `nosync` if everything.
    pub in_sync: InSync,
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
    /// Not a number.
    #[error("{word:?} is not a number, as the {what} must be")]
    NotANumber {
        /// Which number.
        what: &'static str,
        /// What stands there.
        word: String,
    },
    /// Sectors that are not whole pages.
    #[error(
        "{what} {sectors} is not a multiple of {SECTORS_PER_PAGE} sectors of {SECTOR_SIZE} bytes, \
         one page of {PAGE_SIZE} bytes"
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
    /// A number of stripes that can't be.
    #[error("{0} stripes; there must be from 1 to {STRIPES_MAX}")]
    Stripes(u64),
    /// A number of legs that can't be.
    #[error("{} legs; there must be from 2 to {}", .0, LEGS.end())]
    Legs(u64),
    /// A kind of log that doesn't exist.
    #[error("{0:?} is no kind of log; use disk, or core for one that is forgotten")]
    UnknownLog(String),
    /// A number of arguments that a log can't have.
    #[error(
        "a {log} log has {} or {} arguments, not {count}: {}the region size, \
         and perhaps sync or nosync",
        .least, .least + 1, if *.least == 2 { "its device, " } else { "" }
    )]
    LogArguments {
        /// The kind.
        log: &'static str,
        /// How many arguments stand there.
        count: u64,
        /// How many it has at least.
        least: u64,
    },
    /// Something else where a log is said to be in sync, or not.
    #[error("{0:?} is neither sync, to copy everything, nor nosync, to copy nothing")]
    NotSync(String),
    /// A snapshot that is to be forgotten.
    #[error("{0:?} is no kind of snapshot; use P, for one whose changes are kept")]
    NotPersistent(String),
    /// A name that can't be one.
    #[error("{0:?} is no name for a table; use letters, digits and _-.")]
    InvalidName(String),
    /// A target that doesn't exist.
    #[error("unknown target {:?}; these are known: {}", .0, KNOWN.join(", "))]
    UnknownTarget(String),
    /// A backslash with nothing behind it.
    #[error("a backslash with nothing behind it; write \\\\ for the character itself")]
    LoneBackslash,
}

/// All targets.
const KNOWN: [&str; 6] = ["linear", "striped", "mirror", "snapshot", "zero", "error"];

/// More stripes than any table needs.
const STRIPES_MAX: u64 = 1024;

/// As many legs as a mirror can have.
const LEGS: std::ops::RangeInclusive<u64> = 2..=8;

/// Reads a table's text. The lines come out as they stand: that they tile their tables is checked
/// when those are built.
pub fn parse(text: &str) -> Result<Vec<Line>, ParseTableError> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !matches!(line.trim_start().chars().next(), None | Some('#')))
        .map(|(index, line)| parse_line(Words::new(index + 1, line)))
        .collect()
}

fn parse_line(mut words: Words<'_>) -> Result<Line, ParseTableError> {
    let name = words.name()?;
    let start = words.sectors("start")?;
    let position = name.as_ref().map_or(start.position, |name| name.position);
    let length = words.sectors("length")?;
    let nr_pages = length.nr_pages()?;
    let pages = PgoffRange::try_new(start.pgoff()?, nr_pages).map_err(|source| {
        length.position.error(ParseTableErrorKind::Pages { what: "length", source })
    })?;
    let target = words.required("target")?;
    let target = match target.text.as_str() {
        "linear" => TargetSpec::Linear(device(&mut words)?),
        "striped" => striped(&mut words)?,
        "mirror" => mirror(&mut words)?,
        "snapshot" => snapshot(&mut words)?,
        "zero" => TargetSpec::Zero,
        "error" => TargetSpec::Error,
        _ => {
            return Err(target.position.error(ParseTableErrorKind::UnknownTarget(target.text)));
        }
    };
    words.end()?;
    Ok(Line { position, name: name.map(|name| name.text), pages, target })
}

fn device(words: &mut Words<'_>) -> Result<DeviceSpec, ParseTableError> {
    let device = words.required("device, a path or the name of a table")?;
    Ok(DeviceSpec { device, start: words.sectors("start on the device")?.pgoff()? })
}

fn striped(words: &mut Words<'_>) -> Result<TargetSpec, ParseTableError> {
    let (position, count) = words.number("number of stripes")?;
    if !(1..=STRIPES_MAX).contains(&count) {
        return Err(position.error(ParseTableErrorKind::Stripes(count)));
    }
    let chunk = words.sectors("chunk size")?.nr_pages()?;
    let stripes = (0..count).map(|_| device(words)).collect::<Result<_, _>>()?;
    Ok(TargetSpec::Striped { chunk, stripes })
}

fn mirror(words: &mut Words<'_>) -> Result<TargetSpec, ParseTableError> {
    let log = log(words)?;
    let (position, count) = words.number("number of legs")?;
    if !LEGS.contains(&count) {
        return Err(position.error(ParseTableErrorKind::Legs(count)));
    }
    let legs = (0..count).map(|_| device(words)).collect::<Result<_, _>>()?;
    Ok(TargetSpec::Mirror { log, legs })
}

fn log(words: &mut Words<'_>) -> Result<LogSpec, ParseTableError> {
    let kind = words.required("kind of log")?;
    let (log, least) = match kind.text.as_str() {
        "disk" => ("disk", 2),
        "core" => ("core", 1),
        _ => return Err(kind.position.error(ParseTableErrorKind::UnknownLog(kind.text))),
    };
    let (position, count) = words.number("number of the log's arguments")?;
    if !(least..=least + 1).contains(&count) {
        return Err(position.error(ParseTableErrorKind::LogArguments { log, count, least }));
    }
    let device = (least == 2).then(|| words.required("log device")).transpose()?;
    let region = words.sectors("region size")?.nr_pages()?;
    let mut in_sync = InSync::AsLogged;
    if count > least {
        let word = words.required("sync or nosync")?;
        in_sync = match word.text.as_str() {
            "sync" => InSync::No,
            "nosync" => InSync::Yes,
            _ => return Err(word.position.error(ParseTableErrorKind::NotSync(word.text))),
        };
    }
    Ok(LogSpec { device, region, in_sync })
}

fn snapshot(words: &mut Words<'_>) -> Result<TargetSpec, ParseTableError> {
    let origin = words.required("origin")?;
    let cow = words.required("COW device")?;
    let persistent = words.required("P, as the changes are to be kept")?;
    if persistent.text != "P" {
        let kind = ParseTableErrorKind::NotPersistent(persistent.text);
        return Err(persistent.position.error(kind));
    }
    let chunk = words.sectors("chunk size")?.nr_pages()?;
    Ok(TargetSpec::Snapshot { origin, cow, chunk })
}

fn sectors(pages: u64) -> u64 {
    pages * SECTORS_PER_PAGE
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "{name}: ")?;
        }
        let start = sectors(self.pages.start().get());
        let length = sectors(self.pages.nr_pages().get());
        write!(f, "{start} {length} {}", self.target)
    }
}

impl fmt::Display for TargetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linear(device) => write!(f, "linear {device}"),
            Self::Striped { chunk, stripes } => {
                write!(f, "striped {} {}", stripes.len(), sectors(chunk.get()))?;
                stripes.iter().try_for_each(|device| write!(f, " {device}"))
            }
            Self::Mirror { log, legs } => {
                write!(f, "mirror {log} {}", legs.len())?;
                legs.iter().try_for_each(|device| write!(f, " {device}"))
            }
            Self::Snapshot { origin, cow, chunk } => {
                let (origin, cow) = (escape(&origin.text), escape(&cow.text));
                write!(f, "snapshot {origin} {cow} P {}", sectors(chunk.get()))
            }
            Self::Zero => f.write_str("zero"),
            Self::Error => f.write_str("error"),
        }
    }
}

impl fmt::Display for LogSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_sync = match self.in_sync {
            InSync::AsLogged => None,
            InSync::No => Some("sync"),
            InSync::Yes => Some("nosync"),
        };
        let more = usize::from(in_sync.is_some());
        match &self.device {
            Some(device) => write!(f, "disk {} {}", 2 + more, escape(&device.text))?,
            None => write!(f, "core {}", 1 + more)?,
        }
        write!(f, " {}", sectors(self.region.get()))?;
        in_sync.map_or(Ok(()), |word| write!(f, " {word}"))
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", escape(&self.device.text), sectors(self.start.get()))
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
        let position = |column| Position { line: 3, column };
        let device = Word { position: position(14), text: "/a b\\c".to_owned() };
        let target = TargetSpec::Linear(DeviceSpec { device, start });
        assert_eq!(lines, [Line { position: position(2), name: None, pages, target }]);
    }

    #[test]
    fn parse_then_print_then_parse_is_the_same() {
        let text = "s: 0 32 striped 2 8 /a\\ b 0 /c\\\\d 16\n\
                    s: 32 8 zero\n\
                    0 32 linear s 0\n\
                    32 8 error\n\
                    40 8 linear ./e 8\n\
                    48 8 mirror disk 2 /log\\ s 8 2 /a 0 s 8\n\
                    56 8 mirror disk 3 /log 16 nosync 2 /a 0 /b 0\n\
                    64 8 mirror core 1 8 2 /a 0 /b 0\n\
                    72 8 mirror core 2 8 sync 3 /a 0 /b 0 /c 0\n\
                    80 8 snapshot /a\\ b s P 32\n";
        let lines = parse(text).unwrap();
        let printed: Vec<_> = lines.iter().map(Line::to_string).collect();
        assert_eq!(printed.join("\n") + "\n", text);
    }

    #[test]
    fn parse_bad_line_says_where_and_what() {
        for (text, expected) in [
            ("0", "line 1, column 2: missing length; a line is: start length target arguments"),
            ("0 8 linear", "line 1, column 11: missing device"),
            ("\n0 8 linear /a 0 1", "line 2, column 17: unexpected \"1\""),
            ("0 8 zero /a", "line 1, column 10: unexpected \"/a\""),
            ("0 x linear /a 0", "line 1, column 3: \"x\" is not a number, as the length must be"),
            ("0 -8 linear /a 0", "line 1, column 3: \"-8\" is not a number"),
            ("0 9 linear /a 0", "line 1, column 3: length 9 is not a multiple of 8 sectors"),
            ("4 8 linear /a 0", "line 1, column 1: start 4 is not a multiple of 8 sectors"),
            ("0 8 linear /a 7", "line 1, column 15: start on the device 7 is not a multiple"),
            ("0 0 linear /a 0", "line 1, column 3: length: empty"),
            (
                "0 8 liner /a 0",
                "line 1, column 5: unknown target \"liner\"; these are known: linear",
            ),
            ("0 8 linear /a\\", "line 1, column 14: a backslash with nothing behind it"),
            ("0 18446744073709551608 linear /a 0", "line 1, column 3: length: more than"),
            ("18014398509481976 16 linear /a 0", "line 1, column 19: length: more than"),
            ("0 8 striped 0 8", "line 1, column 13: 0 stripes; there must be from 1 to 1024"),
            ("0 8 striped 9999999999 8", "line 1, column 13: 9999999999 stripes"),
            ("0 8 striped 2 8 /a 0", "line 1, column 21: missing device"),
            ("0 8 striped 1 4 /a 0", "line 1, column 15: chunk size 4 is not a multiple"),
            ("0 8 mirror disc 2 /l 8 2", "line 1, column 12: \"disc\" is no kind of log; use disk"),
            (
                "0 8 mirror disk 1 8 2 /a 0 /b 0",
                "line 1, column 17: a disk log has 2 or 3 arguments, not 1: its device, the region",
            ),
            (
                "0 8 mirror core 3 8 2 /a 0 /b 0",
                "line 1, column 17: a core log has 1 or 2 arguments, not 3: the region size",
            ),
            ("0 8 mirror core 2 8 2 /a 0", "line 1, column 21: \"2\" is neither sync"),
            ("0 8 mirror core 1 8 1 /a 0", "line 1, column 21: 1 legs; there must be from 2 to 8"),
            ("0 8 mirror core 1 8 9", "line 1, column 21: 9 legs; there must be from 2 to 8"),
            ("0 8 mirror core 1 4 2", "line 1, column 19: region size 4 is not a multiple"),
            ("0 8 mirror core 1 8 2 /a 0", "line 1, column 27: missing device"),
            ("0 8 snapshot /a", "line 1, column 16: missing COW device"),
            ("0 8 snapshot /a /b N 8", "line 1, column 20: \"N\" is no kind of snapshot; use P"),
            ("0 8 snapshot /a /b P 9", "line 1, column 22: chunk size 9 is not a multiple"),
            ("a/b: 0 8 zero", "line 1, column 1: \"a/b\" is no name for a table"),
            (": 0 8 zero", "line 1, column 1: \"\" is no name for a table"),
            ("a : 0 8 zero", "line 1, column 1: \"a\" is not a number"),
        ] {
            assert!(error(text).starts_with(expected), "{text:?}: {}", error(text));
        }
    }

    #[test]
    fn parse_empty_text_has_no_lines() {
        assert_eq!(parse("\n# nothing\n   \n"), Ok(vec![]));
    }
}
