// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The results as JUnit XML, for those who collect such files.

use std::fmt::Write;

use super::about::About;
use super::report::Row;
use super::verdict::Verdict;

/// One suite, of the tests on our device. A test that ends in the same way on the baseline counts as
/// skipped, so that the file and the exit status say the same.
pub(crate) fn xml(name: &str, about: &About, rows: &[Row]) -> String {
    let count = |word| rows.iter().filter(|row| outcome(row).0 == word).count();
    let seconds: f64 = rows.iter().map(|row| row.ours.elapsed.as_secs_f64()).sum();
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" time=\"{seconds:.3}\" timestamp=\"{}\">\n  <properties>\n",
        escaped(name),
        rows.len(),
        count("failure"),
        count("error"),
        count("skipped"),
        // Which says nothing of time zones.
        about.date.trim_end_matches('Z'),
    );
    for (name, value) in &about.facts {
        // Writing to a string can't fail.
        let _ = writeln!(xml, "    <property name=\"{name}\" value=\"{}\"/>", escaped(value));
    }
    xml += "  </properties>\n";
    for row in rows {
        let ended = &row.ours;
        let (dir, _) = ended.test.split_once('/').unwrap_or_default();
        let _ = write!(
            xml,
            "  <testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\"",
            escaped(dir),
            escaped(&ended.test),
            ended.elapsed.as_secs_f64()
        );
        let (element, message) = outcome(row);
        xml += &match element {
            "" => "/>\n".to_owned(),
            "skipped" => {
                format!(">\n    <skipped message=\"{}\"/>\n  </testcase>\n", escaped(&message))
            }
            _ => format!(
                ">\n    <{element} message=\"{}\">{}</{element}>\n  </testcase>\n",
                escaped(&message),
                escaped(&ended.output)
            ),
        };
    }
    xml + "</testsuite>\n"
}

/// The element that says how a test ended, none where it passed, and its message.
fn outcome(row: &Row) -> (&'static str, String) {
    let verdict = &row.ours.verdict;
    let message = match &row.baseline {
        Some(baseline) if row.is_worse() => format!("{verdict}; on the baseline: {baseline}"),
        _ => verdict.to_string(),
    };
    match verdict {
        Verdict::Passed => ("", message),
        Verdict::NotRun(why) => ("skipped", why.clone()),
        _ if !row.is_worse() => ("skipped", format!("{message}; the same on the baseline")),
        Verdict::Failed(_) => ("failure", message),
        Verdict::Hung(_) | Verdict::Crashed(_) => ("error", message),
    }
}

/// `text` as content or attribute. XML has no way to write most control characters.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\n' | '\t' => escaped.push(character),
            _ if character.is_control() => escaped.push('\u{fffd}'),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fstests::report::tests::row;

    #[test]
    fn results_are_written_with_what_is_special_escaped() {
        let failed = || Verdict::Failed("a < \"b\"\u{1b}".into());
        let rows = [
            row("generic/001", Verdict::Passed, None),
            row("generic/002", failed(), Some(Verdict::Passed)),
            row("generic/003", failed(), Some(failed())),
            row("generic/004", Verdict::NotRun("no".into()), None),
            row("generic/005", Verdict::Hung("5 s".into()), None),
            row("generic/006", Verdict::Hung("5 s".into()), Some(failed())),
        ];
        let about = About {
            date: "2026-01-02T03:04:05Z".into(),
            facts: vec![("options", "--group \"a\"".into())],
        };
        let xml = xml("ext4", &about, &rows);
        for expected in [
            "<testsuite name=\"ext4\" tests=\"6\" failures=\"1\" errors=\"2\" skipped=\"2\" time=\"6.000\" timestamp=\"2026-01-02T03:04:05\">",
            "    <property name=\"options\" value=\"--group &quot;a&quot;\"/>",
            "<testcase classname=\"generic\" name=\"generic/001\" time=\"1.000\"/>",
            "<failure message=\"failed: a &lt; &quot;b&quot;\u{fffd}; on the baseline: passed\">output &amp; more</failure>",
            "<skipped message=\"failed: a &lt; &quot;b&quot;\u{fffd}; the same on the baseline\"/>",
            "<skipped message=\"no\"/>",
            "<error message=\"hung: 5 s\">",
            "<error message=\"hung: 5 s; on the baseline: failed: a &lt;",
        ] {
            assert!(xml.contains(expected), "{expected}\n{xml}");
        }
    }
}
