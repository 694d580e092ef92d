// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! rustfmt and clippy, which Debian and rustup both leave out of a minimal toolchain.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::process::{cargo, run};

/// Installs what is missing, the way the toolchain itself was installed.
pub(crate) fn complete() -> Result<()> {
    if works(&mut cargo(["fmt", "--version"])) && works(&mut cargo(["clippy", "--version"])) {
        return Ok(());
    }
    println!("installing rustfmt and clippy");
    if works(Command::new("rustup").arg("--version")) {
        return run(Command::new("rustup").args(["component", "add", "rustfmt", "clippy"]));
    }
    // A machine may have been set up without ever reading the package lists.
    let apt = |args: &[&str]| run(Command::new("apt-get").arg("--quiet").args(args));
    apt(&["update"])
        .and_then(|()| {
            apt(&["install", "--yes", "--no-install-recommends", "rustfmt", "rust-clippy"])
        })
        .context(
            "rustfmt and clippy are missing; as root, run \
             `apt-get update && apt-get install rustfmt rust-clippy`",
        )
}

fn works(command: &mut Command) -> bool {
    let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}
