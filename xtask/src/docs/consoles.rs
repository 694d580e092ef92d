// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether the commands that the pages show are ones that there are.
//!
//! Those of walks, such as the tutorial, are run by `tests/walks.rs`, and the daemon's on the other
//! pages by `tests/cli/documents.rs`. Here those of ours are read by the very parser that reads them when they
//! are typed; each other program has to be known.

use std::fs;

use clap::Parser;

use super::pages;
use crate::Command;
use crate::command_line::Cli;

/// Programs of others that the pages show, and where a test runs them so; or why none does.
const OTHERS: [(&str, &str); 22] = [
    ("qemu-system-x86_64", "each guest test, with these words for the device"),
    ("mkfs.ext4", "each guest test"),
    ("mkfs.erofs", "tests/guest/root.rs"),
    ("mkdir", "the same"),
    ("ls", "tests/guest/no_dax.rs"),
    ("cat", "the same"),
    ("xfs_io", "the same"),
    ("printf", "none: it writes what the next one reads"),
    ("update-initramfs", "none: it is for a guest that is installed"),
    ("echo", "none: it writes what the next one reads"),
    ("dracut", "none: it is for a guest that is installed"),
    ("curl", "tests/frontend/metrics, by an HTTP client of the test's own"),
    ("mount", "each guest test"),
    ("grep", "the demo"),
    ("cp", "tests/guest: snapshots, by a copy of the test's own"),
    ("truncate", "the tests of mirrors, by the library's function"),
    ("apt", "none: it installs"),
    ("apt-get", "none: it installs"),
    ("git", "none: it fetches"),
    ("make", "none: it builds what is fetched"),
    ("systemctl", "the check of the package, which takes too long for each change"),
    ("systemd-run", "the same"),
];

/// What a page has whose commands are run by `tests/walks.rs`.
const WALK: &str = "<!-- A walk: ";

/// The commands that the consoles of `text` show, each whole, without what follows `#` or `&`.
fn commands(text: &str) -> Vec<String> {
    let blocks = text.split("```console\n").skip(1).map(|block| block.split("```").next().unwrap());
    let joined = blocks.map(|block| block.replace("\\\n", " "));
    joined.flat_map(|block| block.lines().filter_map(command).collect::<Vec<_>>()).collect()
}

fn command(line: &str) -> Option<String> {
    let typed = line.strip_prefix("$ ").or_else(|| line.strip_prefix("# "))?;
    let words = typed.split_whitespace().take_while(|word| !matches!(*word, "#" | "&" | "|" | ">"));
    Some(words.collect::<Vec<_>>().join(" "))
}

/// What is wrong with a command.
fn complaint(command: &str) -> Option<String> {
    let words: Vec<_> = command.split(' ').collect();
    // Assignments for one command.
    let first = words.iter().position(|word| !word.contains('='))?;
    let words = &words[first..];
    let program = words[0].rsplit('/').next()?;
    match (program, words.get(1).copied()) {
        ("vhost-pmemd", _) => Cli::try_parse_from(words).err().and_then(|error| {
            // Those two print, and end.
            use clap::error::ErrorKind::{DisplayHelp, DisplayVersion};
            let fine = matches!(error.kind(), DisplayHelp | DisplayVersion);
            (!fine).then(|| error.to_string())
        }),
        ("cargo", Some("xtask")) => {
            Command::try_parse_from(&words[1..]).err().map(|error| error.to_string())
        }
        ("cargo", Some("build" | "test" | "bench" | "clippy" | "doc" | "fmt" | "install")) => None,
        _ if OTHERS.iter().any(|(name, _)| *name == program) => None,
        _ => Some(format!("{program} is not known")),
    }
}

#[test]
fn commands_that_are_shown_can_be_typed() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for command in commands(&text).into_iter().filter(|_| !text.contains(WALK)) {
            count += 1;
            if let Some(complaint) = complaint(&command) {
                wrong.push(format!("{}: {command}\n    {complaint}", page.display()));
            }
        }
    }
    assert!(count > 30, "only {count} commands");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
