// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The failures that are known: `known-failures.txt`, and what it means for a run.

use crate::place::{Place, Window};
use crate::results::{Case, Verdict};

/// A line for each: `SUITE | FILESYSTEM or * | CASE | on QEMU's own device: fails or passes | WHY`.
const LIST: &str = include_str!("known-failures.txt");

/// A case that is known to fail.
#[derive(Debug, PartialEq, Eq)]
struct Known<'a> {
    suite: &'a str,
    filesystem: &'a str,
    case: &'a str,
    /// Whether it fails on QEMU's own device too.
    fails_on_baseline: bool,
    why: &'a str,
}

fn parse(list: &str) -> Vec<Known<'_>> {
    let lines = list.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| parse_line(line).unwrap_or_else(|| panic!("what is {line:?}?"))).collect()
}

fn parse_line(line: &str) -> Option<Known<'_>> {
    let mut fields = line.split('|').map(str::trim);
    let known = Known {
        suite: fields.next()?,
        filesystem: fields.next().filter(|name| ["*", "ext4", "xfs"].contains(name))?,
        case: fields.next()?,
        fails_on_baseline: match fields.next()? {
            "fails" => true,
            "passes" => false,
            _ => return None,
        },
        why: fields.next().filter(|why| !why.is_empty())?,
    };
    fields.next().is_none().then_some(known)
}

/// What is wrong with a run of `suite`: failures that nobody knows of, and failures that are known and
/// didn't happen. The latter keep the list honest, and what it says of QEMU's own device too.
pub(crate) fn complaints(suite: &str, place: Place, cases: &[Case]) -> Vec<String> {
    complaints_by(&parse(LIST), suite, place, cases)
}

/// Why `case` is known to fail, if it is.
pub(crate) fn reason(suite: &str, place: Place, case: &str) -> Option<&'static str> {
    let list = parse(LIST);
    expected(&list, suite, place).find(|known| known.case == case).map(|known| known.why)
}

fn expected<'list, 'a>(
    list: &'list [Known<'a>],
    suite: &'list str,
    place: Place,
) -> impl Iterator<Item = &'list Known<'a>> {
    list.iter().filter(move |known| {
        known.suite == suite
            && ["*", place.filesystem.name()].contains(&known.filesystem)
            && (known.fails_on_baseline || place.window != Window::Baseline)
    })
}

fn complaints_by(list: &[Known<'_>], suite: &str, place: Place, cases: &[Case]) -> Vec<String> {
    let mut found = Vec::new();
    for case in cases {
        let known = expected(list, suite, place).any(|known| known.case == case.name);
        match &case.verdict {
            Verdict::Failed(why) if !known => found.push(format!("{} failed: {why}", case.name)),
            _ => {}
        }
    }
    for known in expected(list, suite, place) {
        let failed = |case: &Case| matches!(case.verdict, Verdict::Failed(_));
        if !cases.iter().any(|case| case.name == known.case && failed(case)) {
            found.push(format!(
                "{} is listed in known-failures.txt and didn't fail: take it out, or say which \
                 filesystem it is about",
                known.case
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::Filesystem;

    const PLACE: Place = Place { filesystem: Filesystem::Xfs, window: Window::Served };
    const BASELINE: Place = Place { window: Window::Baseline, ..PLACE };

    fn case(name: &str, verdict: Verdict) -> Case {
        Case { name: name.to_owned(), verdict }
    }

    fn failed(name: &str) -> Case {
        case(name, Verdict::Failed("3 != 4".to_owned()))
    }

    #[test]
    fn list_as_it_is_can_be_read() {
        parse(LIST);
    }

    #[test]
    fn line_that_says_less_than_it_must_is_refused() {
        assert!(parse_line("fsx | * | small | fails | reason").is_some());
        for line in ["fsx | * | small | fails |", "fsx | * | small | maybe | x", "fsx | * | small"]
        {
            assert!(parse_line(line).is_none(), "{line}");
        }
        assert!(parse_line("fsx | btrfs | small | fails | reason").is_none());
        assert!(parse_line("fsx | * | small | fails | reason | more").is_none());
    }

    #[test]
    fn failure_that_is_not_listed_is_complained_of() {
        let list = parse("s | ext4 | a | fails | reason\ns | xfs | b | fails | reason");
        let complaints = complaints_by(&list, "s", PLACE, &[failed("a"), failed("b")]);
        assert_eq!(complaints, ["a failed: 3 != 4"]);
    }

    #[test]
    fn listed_failure_that_passes_is_skipped_or_is_gone_is_complained_of() {
        let list = parse("s | * | a | fails | reason\ns | * | b | fails | reason");
        let list = list.into_iter().chain(parse("s | * | c | fails | reason")).collect::<Vec<_>>();
        let cases = [case("a", Verdict::Passed), case("b", Verdict::Skipped(String::new()))];
        assert_eq!(complaints_by(&list, "s", PLACE, &cases).len(), 3);
    }

    #[test]
    fn failure_of_ours_alone_has_to_pass_on_the_baseline() {
        let list = parse("s | * | a | passes | reason");
        assert!(complaints_by(&list, "s", PLACE, &[failed("a")]).is_empty());
        assert!(complaints_by(&list, "s", BASELINE, &[case("a", Verdict::Passed)]).is_empty());
        assert_eq!(complaints_by(&list, "s", BASELINE, &[failed("a")]), ["a failed: 3 != 4"]);
    }
}
