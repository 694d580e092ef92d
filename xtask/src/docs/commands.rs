// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The page of all commands and options, from the command line's own definition.

use std::fmt::Write;

use clap::builder::StyledStr;
use clap::{Arg, Command, CommandFactory};

use crate::command_line::Cli;

/// All of the page.
pub(crate) fn page() -> String {
    let mut page = "# Commands and options\n\n\
        <!-- Made by `cargo xtask docs`; don't edit. -->\n"
        .to_owned();
    let cli = Cli::command();
    section(&mut page, &cli, cli.get_name());
    for command in cli.get_subcommands().filter(|command| !command.is_hide_set()) {
        section(&mut page, command, &format!("{} {}", cli.get_name(), command.get_name()));
    }
    page
}

fn section(page: &mut String, command: &Command, name: &str) {
    let about = text(command.get_long_about().or(command.get_about()));
    write!(page, "\n## {name}\n\n{about}\n").expect("strings take everything");
    let mut arguments = command.get_arguments().filter(|arg| !arg.is_hide_set()).peekable();
    if arguments.peek().is_some() {
        *page += "\n| | |\n|---|---|\n";
    }
    for arg in arguments {
        let about = text(arg.get_long_help().or(arg.get_help())).replace("\n\n", "<br>");
        let about = about.replace('\n', " ").replace('|', "\\|");
        writeln!(page, "| `{}` | {about}{} |", usage(arg), values(arg))
            .expect("strings take everything");
    }
}

/// How an argument is written.
fn usage(arg: &Arg) -> String {
    let id = arg.get_id().as_str().to_uppercase();
    let value = match arg.get_value_names() {
        _ if !arg.get_action().takes_values() => String::new(),
        Some(names) => names.join(" "),
        None => id,
    };
    match arg.get_long() {
        Some(long) if value.is_empty() => format!("--{long}"),
        Some(long) => format!("--{long} {value}"),
        None => value,
    }
}

/// What may be said, where that is a list, and what is taken where nothing is said.
fn values(arg: &Arg) -> String {
    let possible = arg.get_possible_values();
    let shown = possible.iter().filter(|value| !value.is_hide_set());
    let names: Vec<_> = shown.map(|value| format!("`{}`", value.get_name())).collect();
    let mut said = String::new();
    if !names.is_empty() && arg.get_action().takes_values() {
        write!(said, ". One of {}", names.join(", ")).expect("strings take everything");
    }
    if let [default] = arg.get_default_values() {
        if arg.get_action().takes_values() {
            write!(said, ". Default: `{}`", default.to_string_lossy())
                .expect("strings take everything");
        }
    }
    said
}

fn text(help: Option<&StyledStr>) -> String {
    help.map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_is_what_the_command_line_is() {
        let path = std::path::Path::new(super::super::DOCS).join(super::super::COMMANDS);
        let there = std::fs::read_to_string(path).unwrap();
        assert!(there == page(), "docs/commands.md is old: run `cargo xtask docs`");
    }
}
