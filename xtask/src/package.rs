// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask package`: a Debian package, with manual pages and completions made from the command
//! line's own definition.

use std::fs;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::{Shell, generate_to};

use crate::command_line::Cli;
use crate::process::{cargo, run};
use crate::tools;

/// A release that Debian 13's compiler builds.
const CARGO_DEB: &str = "3.8.0";

/// Builds the package into `target/debian`, and says where it is.
pub(crate) fn build() -> Result<()> {
    let dir = guest_harness::target_dir().join("package");
    let (man, completions) = (dir.join("man"), dir.join("completions"));
    for dir in [&man, &completions] {
        // What an option's or a subcommand's earlier name has left.
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    clap_mangen::generate_to(Cli::command(), &man)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        generate_to(shell, &mut Cli::command(), "vhost-pmemd", &completions)?;
    }
    let cargo_deb = tools::obtain("cargo-deb", CARGO_DEB)?;
    run(&mut cargo(["build", "--release", "--quiet"]))?;
    let mut package = std::process::Command::new(cargo_deb);
    run(package.args(["deb", "--no-build", "--quiet"]))
}
