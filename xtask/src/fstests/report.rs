// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The table at the end.

use super::verdict::{Ended, Verdict};

/// A test, on our device and, where there is one, on the baseline.
pub(crate) struct Row {
    pub(crate) ours: Ended,
    pub(crate) baseline: Option<Verdict>,
}

impl Row {
    /// Returns whether our device is to blame: the test is bad there, and not in the same way on the
    /// baseline. A hang is not excused by a failure: the two need not have the same cause.
    pub(crate) fn is_worse(&self) -> bool {
        let ours = &self.ours.verdict;
        let same = |theirs: &Verdict| theirs.word() == ours.word();
        ours.is_bad() && !self.baseline.as_ref().is_some_and(same)
    }

    /// Test, verdicts and reason, for the table.
    fn cells(&self, with_baseline: bool) -> Vec<String> {
        let seconds = self.ours.elapsed.as_secs_f64();
        let ours = format!("{}, {seconds:.1} s", self.ours.verdict.word());
        let mut cells = vec![self.ours.test.clone(), ours];
        if with_baseline {
            cells.push(self.baseline.as_ref().map_or("", Verdict::word).to_owned());
        }
        // Of the baseline where ours has none.
        let reason = match (self.ours.verdict.reason(), &self.baseline) {
            ("", Some(baseline)) => baseline.reason(),
            (reason, _) => reason,
        };
        cells.push(reason.to_owned());
        cells
    }
}

/// All tests, with reasons, and how many of each kind there are.
pub(crate) fn table(rows: &[Row]) -> String {
    let with_baseline = rows.iter().any(|row| row.baseline.is_some());
    let mut head = vec!["test", "vhost-pmemd"];
    if with_baseline {
        head.push("QEMU's own");
    }
    head.push("");
    let mut lines = vec![head.into_iter().map(str::to_owned).collect()];
    lines.extend(rows.iter().map(|row| row.cells(with_baseline)));

    let mut table = aligned(&lines);
    let ours: Vec<_> = rows.iter().map(|row| &row.ours.verdict).collect();
    table += &format!("vhost-pmemd: {}\n", counts(&ours));
    if with_baseline {
        let baseline: Vec<_> = rows.iter().filter_map(|row| row.baseline.as_ref()).collect();
        table += &format!("QEMU's own: {}\n", counts(&baseline));
    }
    table
}

/// Lines of as many cells each, as columns.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// `2 passed, 1 failed, 0 not run, 0 hung, 0 crashed`.
fn counts(verdicts: &[&Verdict]) -> String {
    let words = ["passed", "failed", "not run", "hung", "crashed"];
    let counted = words.map(|word| {
        format!("{} {word}", verdicts.iter().filter(|verdict| verdict.word() == word).count())
    });
    counted.join(", ")
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;

    pub(crate) fn row(test: &str, verdict: Verdict, baseline: Option<Verdict>) -> Row {
        let ours = Ended {
            test: test.into(),
            verdict,
            elapsed: Duration::from_secs(1),
            output: "output & more".into(),
            console: String::new(),
        };
        Row { ours, baseline }
    }

    #[test]
    fn table_with_baseline_shows_both() {
        let rows = [
            row("generic/001", Verdict::Passed, Some(Verdict::Failed("here".into()))),
            row("generic/0020", Verdict::Hung("5 s".into()), Some(Verdict::Passed)),
        ];
        let expected = "\
test          vhost-pmemd    QEMU's own
generic/001   passed, 1.0 s  failed      here
generic/0020  hung, 1.0 s    passed      5 s
vhost-pmemd: 1 passed, 0 failed, 0 not run, 1 hung, 0 crashed
QEMU's own: 1 passed, 1 failed, 0 not run, 0 hung, 0 crashed
";
        assert_eq!(table(&rows), expected);
    }

    #[test]
    fn table_without_baseline_has_no_column_for_it() {
        let rows = [row("generic/001", Verdict::NotRun("why".into()), None)];
        assert!(
            table(&rows)
                .starts_with("test         vhost-pmemd\ngeneric/001  not run, 1.0 s  why\nvhost")
        );
    }

    #[test]
    fn only_what_is_bad_here_and_not_alike_there_is_worse() {
        let bad = || Verdict::Crashed("x".into());
        let worse = |verdict, baseline| row("generic/001", verdict, baseline).is_worse();
        assert!(worse(bad(), None) && worse(bad(), Some(Verdict::Passed)));
        assert!(worse(bad(), Some(Verdict::NotRun("x".into()))));
        assert!(!worse(bad(), Some(Verdict::Crashed("y".into()))));
        for other in [Verdict::Failed("x".into()), Verdict::Hung("x".into())] {
            assert!(worse(bad(), Some(other.clone())) && worse(other, Some(bad())));
        }
        assert!(!worse(Verdict::NotRun("x".into()), None) && !worse(Verdict::Passed, Some(bad())));
    }
}
