// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Host commands, run to their end, with errors that carry what they said.

use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

/// Runs `command` and returns its standard output.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| {
        format!("cannot run {program}: this harness needs a Debian machine with apt")
    })?;
    check(&program, output.status, &output.stderr)?;
    Ok(output.stdout)
}

/// Like [`output`], for commands that print text.
pub(crate) fn text(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&output(command)?).into_owned())
}

/// Pipes `producer` into `consumer`.
pub(crate) fn pipe(producer: &mut Command, consumer: &mut Command) -> Result<()> {
    let mut first = producer
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {:?}", producer.get_program()))?;
    if let Some(stdout) = first.stdout.take() {
        consumer.stdin(stdout);
    }
    let second =
        consumer.output().with_context(|| format!("cannot run {:?}", consumer.get_program()));
    let first_status = first.wait()?;
    let second = second?;
    check(&consumer.get_program().to_string_lossy(), second.status, &second.stderr)?;
    check(&producer.get_program().to_string_lossy(), first_status, b"")
}

fn check(program: &str, status: ExitStatus, stderr: &[u8]) -> Result<()> {
    if !status.success() {
        bail!("{program} failed ({status}): {}", String::from_utf8_lossy(stderr).trim());
    }
    Ok(())
}
