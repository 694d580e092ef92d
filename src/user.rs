// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Users and groups, by name or number.

use std::str::FromStr;

use anyhow::{Context, bail};

/// A user, and a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct User {
    /// The user's number.
    pub(crate) user: u32,
    /// The group's number.
    pub(crate) group: u32,
}

impl FromStr for User {
    type Err = anyhow::Error;

    /// `USER[:GROUP]`, by names or numbers, of the system's own files: neither a network nor a
    /// library is asked for what begins with the rights of root.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
        parse(user, group, &users, &groups)
    }
}

fn parse(user: &str, group: Option<&str>, users: &str, groups: &str) -> anyhow::Result<User> {
    let number = |text: &str, file: &str, line: &str| {
        let known = || field(line, 2).and_then(|id| id.parse().ok());
        let id: Option<u32> = text.parse().ok().or_else(known);
        match id {
            // -1, by which Linux takes it that all stays as it is: as root's.
            Some(u32::MAX) => bail!("{text} is reserved, and names nobody; give another number"),
            id => id.with_context(|| format!("{text} is neither a number nor in {file}")),
        }
    };
    let account = entry(users, user);
    let id = number(user, "/etc/passwd", account)?;
    let group = match group {
        Some(group) => number(group, "/etc/group", entry(groups, group))?,
        None => match field(account, 3) {
            Some(group) => number(group, "/etc/passwd", "")?,
            None => bail!("{user} has no group in /etc/passwd; give USER:GROUP"),
        },
    };
    Ok(User { user: id, group })
}

/// The line of an account, by its name or number.
fn entry<'a>(text: &'a str, name: &str) -> &'a str {
    let is_it = |line: &&str| field(line, 0) == Some(name) || field(line, 2) == Some(name);
    text.lines().find(is_it).unwrap_or_default()
}

fn field(line: &str, at: usize) -> Option<&str> {
    line.split(':').nth(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str = "root:x:0:0::/root:/bin/sh\npmem:x:990:36::/:/sbin/nologin\n";
    const GROUPS: &str = "root:x:0:\nkvm:x:36:pmem\n";

    #[test]
    fn user_is_found_by_name_and_number() {
        let known = |user, group| parse(user, group, USERS, GROUPS).unwrap();
        assert_eq!(known("pmem", None), User { user: 990, group: 36 });
        assert_eq!(known("990", None), User { user: 990, group: 36 });
        assert_eq!(known("pmem", Some("root")), User { user: 990, group: 0 });
        assert_eq!(known("7", Some("8")), User { user: 7, group: 8 });
    }

    #[test]
    fn user_that_is_unknown_is_refused_with_what_to_do() {
        let refused = |user, group| parse(user, group, USERS, GROUPS).unwrap_err().to_string();
        assert_eq!(refused("nobody", None), "nobody is neither a number nor in /etc/passwd");
        assert_eq!(refused("7", None), "7 has no group in /etc/passwd; give USER:GROUP");
        assert_eq!(
            refused("4294967295", Some("8")),
            "4294967295 is reserved, and names nobody; give another number"
        );
        assert_eq!(
            refused("7", Some("4294967295")),
            "4294967295 is reserved, and names nobody; give another number"
        );
        assert_eq!(refused("7", Some("x")), "x is neither a number nor in /etc/group");
    }
}
