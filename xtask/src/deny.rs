// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! cargo-deny: what the dependencies may be.

use std::process::{Command, Stdio};

use anyhow::Result;

use crate::process::run;
use crate::tools;

/// The release to use, and the one for toolchains before Rust 1.88, such as Debian 13's.
const VERSION: &str = "0.20.2";
const VERSION_BEFORE_1_88: &str = "0.18.3";

/// Licences, bans and sources; advisories where their database can be reached.
pub(crate) fn check() -> Result<()> {
    let version = if tools::rustc_minor()? >= 88 { VERSION } else { VERSION_BEFORE_1_88 };
    let program = tools::obtain("cargo-deny", version)?;
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
