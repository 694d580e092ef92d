// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Programs of other people's, built once into `target/tools`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::process::{cargo, run};

/// A release of a cargo subcommand, without optimising: those we use are quick enough.
pub(crate) fn obtain(name: &str, version: &str) -> Result<PathBuf> {
    let root = guest_harness::target_dir().join("tools").join(format!("{name}-{version}"));
    let program = root.join("bin").join(name);
    if !program.exists() {
        println!("building {name} {version}, which takes some minutes, once");
        let install = ["install", name, "--locked", "--debug", "--quiet", "--version"];
        let mut install = cargo(install);
        // Nobody debugs them, and a quarter of the time goes into what that takes.
        install.env("CARGO_PROFILE_DEV_DEBUG", "false");
        run(install.arg(version).arg("--root").arg(&root))?;
    }
    Ok(program)
}

/// The `N` of the compiler's version `1.N`.
pub(crate) fn rustc_minor() -> Result<u32> {
    let output = Command::new("rustc").arg("--version").output()?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let minor = printed.split('.').nth(1).and_then(|minor| minor.parse().ok());
    ensure!(minor.is_some(), "rustc says {printed:?}");
    Ok(minor.unwrap_or_default())
}
