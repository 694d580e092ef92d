// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Runs cases one after another, each in a process of its own, and tells of each.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::case::{Case, Skip};
use crate::site::Site;
use crate::sys::{Child, End};

/// A case's verdict, as the status of its process.
const OK: u8 = 0;
const FAILED: u8 = 1;
const SKIPPED: u8 = 2;

/// Runs `cases`; returns how many failed. One that takes longer than `patience` is taken to hang.
///
/// # Errors
///
/// When there can be no filesystem to go on with.
pub(crate) fn run(site: &Site, cases: &[Case], patience: Duration) -> Result<usize> {
    let mut failures = 0;
    let mut usable = false;
    for (index, case) in cases.iter().enumerate() {
        if !usable {
            site.abandon()?;
            site.make(&[])?;
            site.mount()?;
        }
        let good = run_case(site, case, patience)?;
        failures += usize::from(!good);
        if good && !case.mounts {
            site.clear().context("cannot remove what the case left")?;
        }
        let next_shares = cases.get(index + 1).is_some_and(|next| !next.mounts);
        usable = good && !case.mounts && next_shares;
        if good && !usable {
            failures += usize::from(!check(site, &case.name)?);
        }
    }
    site.abandon()?;
    Ok(failures)
}

/// Runs a case and prints its line; returns whether it didn't fail.
fn run_case(site: &Site, case: &Case, patience: Duration) -> Result<bool> {
    let mut child = Child::run(|| verdict(case, (case.run)(site)))?;
    let Some(end) = child.wait_for(patience)? else {
        println!("FAIL {}: it hangs", case.name);
        child.kill();
        if child.wait_for(patience)?.is_none() {
            bail!("it can't be killed either, so this is the end");
        }
        return Ok(false);
    };
    match end {
        End::Exit(status) if [OK.into(), SKIPPED.into()].contains(&status) => return Ok(true),
        End::Exit(status) if status == i32::from(FAILED) => {}
        End::Exit(status) => println!("FAIL {}: it panicked ({status})", case.name),
        End::Signal(signal) => println!("FAIL {}: ended by signal {signal}", case.name),
    }
    Ok(false)
}

fn verdict(case: &Case, result: Result<()>) -> u8 {
    let name = &case.name;
    match result {
        Ok(()) => {
            println!("ok {name}");
            OK
        }
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(Skip(reason)) => {
                println!("skip {name}: {reason}");
                SKIPPED
            }
            None => {
                println!("FAIL {name}: {error:#}");
                FAILED
            }
        },
    }
}

/// Looks over the filesystem, which the case `last` was the last to use; returns whether nothing is
/// wrong with it.
fn check(site: &Site, last: &str) -> Result<bool> {
    site.abandon()?;
    let checked = site.check();
    if let Err(error) = &checked {
        println!("FAIL check: after {last}: {error:#}");
    }
    Ok(checked.is_ok())
}
