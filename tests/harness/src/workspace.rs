// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Programs of this workspace that run in a guest.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::store::target_dir;

/// What Debian's and rustup's compilers both have.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Flags of rustc's for a program that needs no library.
pub(crate) const STATIC: &str = "-C target-feature=+crt-static";

/// The program of the workspace's package `package`, built so that it needs no library: give it to a
/// guest with [`VmBuilder::file`](crate::VmBuilder::file). Cargo builds it unless it is there.
///
/// # Errors
///
/// When it can't be built.
pub fn own_program(package: &str) -> Result<PathBuf> {
    // A directory of its own, as the flag changes every crate, and as whoever calls may hold cargo's
    // lock on the other.
    let target = target_dir().join("static");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--quiet", "--package", package, "--target", TARGET]);
    build.arg("--target-dir").arg(&target).current_dir(env!("CARGO_MANIFEST_DIR"));
    build.env("RUSTFLAGS", STATIC).env_remove("CARGO_ENCODED_RUSTFLAGS");
    let status = build.status().context("cannot run cargo")?;
    ensure!(status.success(), "cargo can't build {package} ({status})");
    Ok(target.join(TARGET).join("release").join(package))
}
