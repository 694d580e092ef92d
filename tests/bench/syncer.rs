// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A process that does nothing but sync a file whenever it is woken: what a daemon takes at least.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};

/// A running one; it ends when this is dropped.
pub(crate) struct Syncer {
    child: Child,
    kick: Option<ChildStdin>,
    call: ChildStdout,
}

impl Syncer {
    /// Starts this program once more, to do no more than [`serve`].
    pub(crate) fn start(file: &Path) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--syncer").arg(file).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let call = child.stdout.take().context("it has no output")?;
        Ok(Self { kick: child.stdin.take(), call, child })
    }

    /// Wakes it and sleeps until it is done.
    pub(crate) fn sync(&mut self) -> Result<()> {
        self.kick.as_mut().context("it has no input")?.write_all(&[0])?;
        Ok(self.call.read_exact(&mut [0])?)
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        // Which ends it.
        self.kick = None;
        let _ = self.child.wait();
    }
}

/// Syncs `file` for each byte of standard input, and answers each with one.
pub(crate) fn serve(file: &Path) -> Result<()> {
    let file = File::options().read(true).write(true).open(file)?;
    let (mut kicked, mut caller) = (std::io::stdin().lock(), std::io::stdout().lock());
    let mut byte = [0];
    while kicked.read(&mut byte)? == 1 {
        file.sync_data()?;
        caller.write_all(&byte)?;
        caller.flush()?;
    }
    Ok(())
}
