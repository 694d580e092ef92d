// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A built xfstests, and which of its tests to run: as its own `check` chooses them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::options::Filesystem;

/// What a built tree has, and what an unpacked or cloned one hasn't.
const BUILT: [&str; 2] = ["ltp/fsstress", GENERIC];
const GENERIC: &str = "tests/generic/group.list";

/// An xfstests tree that was built.
pub(crate) struct Suite {
    dir: PathBuf,
    /// The groups of each test, which is named as `check` does: `generic/001`.
    tests: BTreeMap<String, BTreeSet<String>>,
}

/// Which tests were asked for.
#[derive(Default)]
pub(crate) struct Wanted<'a> {
    pub(crate) groups: &'a [String],
    pub(crate) tests: &'a [String],
    /// Tests and groups.
    pub(crate) excluded: &'a [String],
}

impl Suite {
    /// Reads the lists of `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let shown = dir.display();
        ensure!(dir.is_dir(), "there is no directory {shown}");
        ensure!(dir.join("check").is_file(), "{shown} is no xfstests: it has no script `check`");
        for file in BUILT {
            ensure!(
                dir.join(file).is_file(),
                "{shown} isn't built, it has no {file}: run `make` in it (docs/fstests.md)"
            );
        }
        let mut tests = BTreeMap::new();
        for entry in fs::read_dir(dir.join("tests"))? {
            let entry = entry?;
            let list = entry.path().join("group.list");
            if !list.is_file() {
                continue;
            }
            let text = fs::read_to_string(&list)
                .with_context(|| format!("cannot read {}", list.display()))?;
            for (name, groups) in listed(&text) {
                tests.insert(format!("{}/{name}", entry.file_name().to_string_lossy()), groups);
            }
        }
        Ok(Self { dir: dir.canonicalize()?, tests })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The tests to run on `filesystem`, in order.
    pub(crate) fn select(
        &self,
        filesystem: Filesystem,
        wanted: &Wanted<'_>,
    ) -> Result<Vec<String>> {
        let mut selected = BTreeSet::new();
        for test in wanted.tests {
            let found = self.named(test);
            ensure!(
                !found.is_empty(),
                "there is no test {test:?} in {}; a test is named as generic/001 is, and a range as \
                 generic/001-010",
                self.dir.display()
            );
            selected.extend(found);
        }
        for group in wanted.groups {
            selected.extend(self.group(filesystem, group)?);
        }
        for excluded in wanted.excluded {
            let mut found = self.named(excluded);
            if found.is_empty() {
                found = self.group(filesystem, excluded).context("--exclude")?;
            }
            for test in found {
                selected.remove(test);
            }
        }
        ensure!(!selected.is_empty(), "all tests that were asked for are excluded");
        Ok(selected.into_iter().map(str::to_owned).collect())
    }

    /// The tests of a name, `generic/001`, or of a range, `generic/001-010`, that there are.
    fn named(&self, text: &str) -> Vec<&str> {
        let text = text.strip_prefix("tests/").unwrap_or(text);
        let range = text.split_once('-').and_then(|(first, last)| {
            let (dir, first) = first.split_once('/')?;
            Some((dir, first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?))
        });
        let is_meant = |test: &&str| match &range {
            Some((dir, numbers)) => test
                .strip_prefix(dir)
                .and_then(|test| test.strip_prefix('/')?.parse().ok())
                .is_some_and(|number| numbers.contains(&number)),
            None => *test == text,
        };
        self.tests.keys().map(String::as_str).filter(is_meant).collect()
    }

    /// The tests of a group: `quick`, or of one directory only, `xfs/quick`. All are in `all`.
    fn group(&self, filesystem: Filesystem, group: &str) -> Result<Vec<&str>> {
        let (dirs, name) = match group.split_once('/') {
            Some((dir, name)) => (vec![dir], name),
            None => (vec!["generic", "shared", filesystem.name()], group),
        };
        let known: Vec<_> = self
            .tests
            .iter()
            .filter(|(test, _)| test.split('/').next().is_some_and(|dir| dirs.contains(&dir)))
            .collect();
        let found: Vec<_> = known
            .iter()
            .filter(|(_, groups)| name == "all" || groups.contains(name))
            .map(|(test, _)| test.as_str())
            .collect();
        if found.is_empty() {
            let groups: BTreeSet<_> = known.iter().flat_map(|(_, groups)| *groups).collect();
            let groups: Vec<_> = groups.into_iter().map(String::as_str).collect();
            bail!(
                "no test of {} is in a group {name:?}; there are: {}",
                dirs.join(", "),
                groups.join(", ")
            );
        }
        Ok(found)
    }
}

/// The tests of a `group.list`, `001 auto quick rw`, one a line, with comments.
fn listed(text: &str) -> impl Iterator<Item = (&str, BTreeSet<String>)> {
    text.lines().filter_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let name = words.next()?;
        Some((name, words.map(str::to_owned).collect()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite() -> Suite {
        let list = |dir: &str, text| {
            listed(text).map(|(name, groups)| (format!("{dir}/{name}"), groups)).collect::<Vec<_>>()
        };
        let generic =
            list("generic", "# comment\n001 auto quick\n\n002 auto dax # why\n010 quick\n");
        let ext4 = list("ext4", "001 auto\n");
        let xfs = list("xfs", "001 auto quick\n002 fuzz\n");
        Suite {
            dir: "/xfstests".into(),
            tests: [generic, ext4, xfs].concat().into_iter().collect(),
        }
    }

    fn selected(
        filesystem: Filesystem,
        groups: &[&str],
        tests: &[&str],
        excluded: &[&str],
    ) -> Result<String> {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let [groups, tests, excluded] = [groups, tests, excluded].map(owned);
        let wanted = Wanted { groups: &groups, tests: &tests, excluded: &excluded };
        suite().select(filesystem, &wanted).map(|tests| tests.join(" "))
    }

    fn error(groups: &[&str], tests: &[&str], excluded: &[&str]) -> String {
        format!("{:#}", selected(Filesystem::Ext4, groups, tests, excluded).unwrap_err())
    }

    #[test]
    fn groups_and_tests_are_joined_and_sorted() {
        let found = selected(Filesystem::Xfs, &["dax", "quick"], &["xfs/002"], &[]).unwrap();
        assert_eq!(found, "generic/001 generic/002 generic/010 xfs/001 xfs/002");
    }

    #[test]
    fn group_holds_no_test_of_another_filesystem() {
        assert_eq!(
            selected(Filesystem::Ext4, &["auto"], &[], &[]).unwrap(),
            "ext4/001 generic/001 generic/002"
        );
    }

    #[test]
    fn group_of_one_directory_is_that_alone() {
        assert_eq!(selected(Filesystem::Xfs, &["xfs/quick"], &[], &[]).unwrap(), "xfs/001");
        assert_eq!(selected(Filesystem::Xfs, &["xfs/all"], &[], &[]).unwrap(), "xfs/001 xfs/002");
    }

    #[test]
    fn excluded_tests_and_groups_are_left_out() {
        let found = selected(Filesystem::Ext4, &["all"], &[], &["dax", "generic/010"]).unwrap();
        assert_eq!(found, "ext4/001 generic/001");
    }

    #[test]
    fn range_holds_what_there_is_in_it() {
        let found = |tests: &[&str], excluded: &[&str]| {
            selected(Filesystem::Ext4, &[], tests, excluded).unwrap()
        };
        assert_eq!(found(&["generic/002-100"], &[]), "generic/002 generic/010");
        assert_eq!(found(&["tests/generic/1-2"], &[]), "generic/001 generic/002");
        assert_eq!(found(&["generic/001-010"], &["generic/002-009"]), "generic/001 generic/010");
        assert!(error(&[], &["generic/003-009"], &[]).contains("no test \"generic/003-009\""));
        assert!(error(&[], &["gener/001-010"], &[]).contains("no test \"gener/001-010\""));
    }

    #[test]
    fn unknown_words_are_refused() {
        assert_eq!(
            error(&["fuzz"], &[], &[]),
            "no test of generic, shared, ext4 is in a group \"fuzz\"; there are: auto, dax, quick"
        );
        assert!(error(&[], &["generic/999"], &[]).contains("no test \"generic/999\" in /xfstests"));
        assert!(error(&["auto"], &[], &["slow"]).starts_with("--exclude: no test of"));
        assert!(error(&["dax"], &[], &["generic/002"]).contains("excluded"));
    }
}
