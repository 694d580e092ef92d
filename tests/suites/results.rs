// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a suite says of its cases.

/// What became of one case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Passed,
    /// The suite itself didn't run it, for this reason.
    Skipped(String),
    /// And why.
    Failed(String),
}

/// Reads the lines `ok NAME`, `skip NAME: REASON` and `FAIL NAME: WHY`; there may be others.
pub(crate) fn read_lines(printed: &str) -> Vec<Case> {
    printed.lines().filter_map(read_line).collect()
}

fn read_line(line: &str) -> Option<Case> {
    let (word, rest) = line.split_once(' ')?;
    let (name, why) = rest.split_once(": ").unwrap_or((rest, ""));
    let verdict = match word {
        "ok" => return Some(Case { name: rest.to_owned(), verdict: Verdict::Passed }),
        "skip" => Verdict::Skipped(why.to_owned()),
        "FAIL" => Verdict::Failed(why.to_owned()),
        _ => return None,
    };
    Some(Case { name: name.to_owned(), verdict })
}

#[test]
fn lines_of_three_kinds_are_read_and_others_passed_over() {
    let read = read_lines("begin\nok a/b\nskip c: no such: thing\nok\nFAIL d: 3 != 4\nfailed e\n");
    let case = |name: &str, verdict| Case { name: name.to_owned(), verdict };
    let expected = [
        case("a/b", Verdict::Passed),
        case("c", Verdict::Skipped("no such: thing".to_owned())),
        case("d", Verdict::Failed("3 != 4".to_owned())),
    ];
    assert_eq!(read, expected);
}
