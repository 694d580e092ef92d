// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the guests of a device have synced, by what they said; and what they found.

use std::collections::BTreeMap;

/// Names of files, with the sums of what is in them.
type Sums = BTreeMap<String, String>;

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    synced: Sums,
    found: Sums,
    /// What was synced and isn't there.
    pub(crate) lost: Vec<String>,
    /// How often a guest has said all that it found.
    pub(crate) checks: u64,
    /// How much of what was synced was there, in all checks.
    pub(crate) verified_kib: u64,
}

impl Ledger {
    /// Takes a line of a guest's. One that was cut short by an end says nothing.
    pub(crate) fn hear(&mut self, line: &str) {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["MARK", "synced", name, sum, "."] => {
                self.synced.insert(name.to_owned(), sum.to_owned());
            }
            ["MARK", "finds"] => self.found.clear(),
            ["MARK", "has", name, sum, "."] => {
                self.found.insert(name.to_owned(), sum.to_owned());
            }
            ["MARK", "checked"] => self.check(),
            ["MARK", "drops"] => self.synced.clear(),
            _ => {}
        }
    }

    fn check(&mut self) {
        self.checks += 1;
        for (name, sum) in &self.synced {
            match self.found.get(name) {
                Some(found) if found == sum => self.verified_kib += kib(name),
                Some(found) => self.lost.push(format!("{name}: synced {sum}, found {found}")),
                None => self.lost.push(format!("{name}: synced, and isn't there")),
            }
        }
    }
}

/// A file has its size at the end of its name.
fn kib(name: &str) -> u64 {
    name.rsplit('-').next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(lines: &str) -> Ledger {
        let mut ledger = Ledger::default();
        lines.lines().for_each(|line| ledger.hear(line));
        ledger
    }

    #[test]
    fn file_that_is_there_is_counted() {
        let ledger =
            heard("MARK synced a-1-64 12 .\nMARK finds\nMARK has a-1-64 12 .\nMARK checked");
        assert_eq!((ledger.lost.len(), ledger.checks, ledger.verified_kib), (0, 1, 64));
    }

    #[test]
    fn file_that_is_gone_changed_or_of_an_earlier_look_is_lost() {
        let synced = "MARK synced a-1-64 12 .\nMARK finds\n";
        for found in ["", "MARK has a-1-64 13 .\n", "MARK has a-1-64 12 .\nMARK finds\n"] {
            assert_eq!(heard(&format!("{synced}{found}MARK checked")).lost.len(), 1, "{found}");
        }
    }

    #[test]
    fn line_that_was_cut_short_and_what_is_dropped_is_not_looked_for() {
        let ledger = heard(
            "MARK synced a-1-64 12 .\nMARK drops\nMARK synced b-1-64 1\nMARK finds\nMARK checked",
        );
        assert_eq!((ledger.lost.len(), ledger.verified_kib), (0, 0));
    }
}
