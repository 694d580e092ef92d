// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A second, plain reading of the table language, to hold the first one against.
//!
//! Also used by the fuzz targets.

use pfn_blk::table;

/// Any text is read the same by both, or refused by both, at a place that is in it.
pub(crate) fn check(text: &str) {
    match (table::parse(text), canonical(text)) {
        (Ok(lines), Some(expected)) => {
            let printed = lines.iter().flat_map(|line| [line.to_string(), "\n".to_owned()]);
            let printed: String = printed.collect();
            assert_eq!(printed, expected);
            let again = table::parse(&printed).expect("what is printed can be read");
            assert!(again.iter().map(ToString::to_string).eq(printed.lines()));
        }
        (Err(error), None) => {
            let line = text.lines().nth(error.position.line - 1).expect("a line of the text");
            assert!((1..=line.chars().count() + 1).contains(&error.position.column), "{error}");
        }
        (read, expected) => panic!("{read:?}, not {expected:?}"),
    }
}

/// The text as it would be printed, if it is a table.
fn canonical(text: &str) -> Option<String> {
    let lines = text.lines().filter(|line| {
        let line = line.trim_start();
        !line.is_empty() && !line.starts_with('#')
    });
    lines.map(line).collect()
}

fn line(text: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut words = words(text)?;
    let is_named = text.split_whitespace().next()?.ends_with(':');
    if is_named {
        let name = words.remove(0);
        let name = &name[..name.len() - 1];
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        if name.is_empty() || !name.bytes().all(valid) {
            return None;
        }
        out.push(format!("{name}:"));
    }
    let mut words = words.into_iter();
    let start = sectors(&words.next()?)?;
    let length = sectors(&words.next()?).filter(|length| *length > 0)?;
    if start / 8 + length / 8 > 1 << 51 {
        return None;
    }
    out.push(start.to_string());
    out.push(length.to_string());
    let target = words.next()?;
    out.push(target.clone());
    match target.as_str() {
        "zero" | "error" => {}
        "linear" => devices(&mut words, 1, &mut out)?,
        "striped" => {
            let count = number(&words.next()?).filter(|count| (1..=1024).contains(count))?;
            out.push(count.to_string());
            size(&mut words, &mut out)?;
            devices(&mut words, count, &mut out)?;
        }
        "mirror" => {
            let log = words.next()?;
            let least = match log.as_str() {
                "disk" => 2,
                "core" => 1,
                _ => return None,
            };
            let count = number(&words.next()?)?;
            out.extend([log, count.to_string()]);
            if least == 2 {
                out.push(escaped(&words.next()?));
            }
            size(&mut words, &mut out)?;
            match count.checked_sub(least) {
                Some(0) => {}
                Some(1) => {
                    let word = words.next()?;
                    out.push(["sync", "nosync"].contains(&&*word).then_some(word)?);
                }
                _ => return None,
            }
            let legs = number(&words.next()?).filter(|legs| (2..=8).contains(legs))?;
            out.push(legs.to_string());
            devices(&mut words, legs, &mut out)?;
        }
        "snapshot" => {
            out.extend([escaped(&words.next()?), escaped(&words.next()?)]);
            out.push(words.next().filter(|word| word == "P")?);
            size(&mut words, &mut out)?;
        }
        _ => return None,
    }
    match words.next() {
        Some(_) => None,
        None => Some(out.join(" ") + "\n"),
    }
}

type Words = std::vec::IntoIter<String>;

fn devices(words: &mut Words, count: u64, out: &mut Vec<String>) -> Option<()> {
    for _ in 0..count {
        out.push(escaped(&words.next()?));
        out.push(sectors(&words.next()?)?.to_string());
    }
    Some(())
}

/// Sectors that are something.
fn size(words: &mut Words, out: &mut Vec<String>) -> Option<()> {
    out.push(sectors(&words.next()?).filter(|sectors| *sectors > 0)?.to_string());
    Some(())
}

fn number(word: &str) -> Option<u64> {
    word.parse().ok()
}

fn sectors(word: &str) -> Option<u64> {
    number(word).filter(|sectors| sectors % 8 == 0 && sectors / 8 <= 1 << 51)
}

/// The words of a line, without their backslashes; none if one is left alone.
fn words(line: &str) -> Option<Vec<String>> {
    let mut words = vec![String::new()];
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => words.last_mut()?.push(chars.next()?),
            blank if blank.is_whitespace() => words.push(String::new()),
            other => words.last_mut()?.push(other),
        }
    }
    words.retain(|word| !word.is_empty());
    Some(words)
}

fn escaped(word: &str) -> String {
    let escape = |char: char| match char {
        '\\' => "\\\\".to_owned(),
        blank if blank.is_whitespace() => format!("\\{blank}"),
        other => other.to_string(),
    };
    word.chars().map(escape).collect()
}
