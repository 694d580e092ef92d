// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Programs of crates.io that run in a guest.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::progress::Step;
use crate::store::{lock_file, target_dir};
use crate::workspace::{STATIC, TARGET};

/// Those there are, with the release of each, and cargo's profile: what takes the guest's kernel most of
/// its time needn't be optimised, and is built in a third of the time.
pub const CRATE_PROGRAMS: [(&str, &str, &str); 2] =
    [("fsx", "0.3.2", "release"), ("pjdfstest", "0.2.2", "dev")];

/// The program of the crate `name`, one of [`CRATE_PROGRAMS`], built so that it needs no library: give
/// it to a guest with [`VmBuilder::file`](crate::VmBuilder::file). It is built once, into `tools/`
/// under the cargo target directory, which takes minutes; afterwards no network is needed.
///
/// # Errors
///
/// When it isn't among them, or can't be fetched or built.
pub fn crate_program(name: &str) -> Result<PathBuf> {
    let pinned = CRATE_PROGRAMS.iter().find(|(pinned, ..)| *pinned == name);
    let (_, version, profile) =
        pinned.with_context(|| format!("no release of {name} is pinned"))?;
    let tools = target_dir().join("tools");
    fs::create_dir_all(&tools).with_context(|| format!("cannot make {}", tools.display()))?;
    // One process at a time builds, and one that waited finds what the other has built.
    let lock = File::create(tools.join("lock"))?;
    lock_file(&lock, "waiting for another process to build programs for the guests")?;
    let root = tools.join(format!("{name}-{version}"));
    let program = root.join("bin").join(name);
    if !program.exists() {
        let _step = Step::spinner(&format!("building {name} {version}, once"));
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        let mut install = Command::new(cargo);
        install.args(["install", name, "--version"]).arg(format!("={version}"));
        install.args(["--locked", "--quiet", "--target", TARGET, "--root"]).arg(&root);
        install.args(["--profile", profile]).env("CARGO_PROFILE_DEV_DEBUG", "none");
        install.env("RUSTFLAGS", STATIC).env_remove("CARGO_ENCODED_RUSTFLAGS");
        // It warns that its directory isn't on the PATH.
        let output = install.stdin(Stdio::null()).output().context("cannot run cargo")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "cargo can't build {name} {version}:\n{said}");
    }
    Ok(program)
}
