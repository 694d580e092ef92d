// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask package`: a Debian package, with manual pages and completions made from the command
//! line's own definition.

mod check;
mod page;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::CommandFactory;
use clap_complete::{Shell, generate_to};

use crate::command_line::Cli;
use crate::process::{cargo, run};
use crate::tools;

/// A release that Debian 13's compiler builds.
const CARGO_DEB: &str = "3.8.0";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Then install it on a Debian 13 of its own, booted with systemd, and attach a guest to what its
    /// services serve; and on one with libvirt, where it is upgraded, and the machine reboots, under
    /// running guests
    #[arg(long)]
    check: bool,
}

/// Builds the package into `target/debian`, and says where it is; then checks it, if that is asked for.
pub(crate) fn run_chosen(options: &Options) -> Result<()> {
    let package = build()?;
    println!("{}", package.display());
    if options.check { check::run(&package) } else { Ok(()) }
}

fn build() -> Result<PathBuf> {
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
    let mut package = Command::new(cargo_deb);
    package.args(["deb", "--no-build", "--quiet"]);
    let output = package.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "cargo-deb failed ({})", output.status);
    let path = String::from_utf8(output.stdout)?;
    Ok(PathBuf::from(path.trim_end()))
}
