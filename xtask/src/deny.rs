// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! cargo-deny: what the dependencies may be.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use crate::process::{cargo, run};

/// The release to use, and the one for toolchains before Rust 1.88, such as Debian 13's.
const VERSION: &str = "0.20.2";
const VERSION_BEFORE_1_88: &str = "0.18.3";

/// Licences, bans and sources; advisories where their database can be reached.
pub(crate) fn check() -> Result<()> {
    let program = obtain()?;
    let deny = |args: &[&str]| {
        let mut deny = Command::new(&program);
        deny.args(["--log-level", "error"]).args(args);
        deny
    };
    run(&mut deny(&["check", "licenses", "bans", "sources"]))?;
    if deny(&["fetch", "db"]).stderr(Stdio::null()).status()?.success() {
        return run(&mut deny(&["check", "advisories"]));
    }
    println!("advisories: not checked, as their database can't be reached");
    Ok(())
}

/// A cargo-deny of ours, built once, without optimising: it is quick enough.
fn obtain() -> Result<PathBuf> {
    let version = if rustc_minor()? >= 88 { VERSION } else { VERSION_BEFORE_1_88 };
    let root = guest_harness::target_dir().join("tools").join(format!("cargo-deny-{version}"));
    let program = root.join("bin/cargo-deny");
    if !program.exists() {
        println!("building cargo-deny {version}, which takes some minutes, once");
        let install = ["install", "cargo-deny", "--locked", "--debug", "--quiet", "--version"];
        run(cargo(install).arg(version).arg("--root").arg(&root))?;
    }
    Ok(program)
}

/// The `N` of the compiler's version `1.N`.
fn rustc_minor() -> Result<u32> {
    let output = Command::new("rustc").arg("--version").output()?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let minor = printed.split('.').nth(1).and_then(|minor| minor.parse().ok());
    ensure!(minor.is_some(), "rustc says {printed:?}");
    Ok(minor.unwrap_or_default())
}
