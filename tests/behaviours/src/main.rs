// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Checks in a guest that a filesystem on DAX behaves as one does.
//!
//! # Purpose
//!
//! What a filesystem and the kernel do with persistent memory rests on what the device does: that
//! each page is there, once, for every path that leads to it. This program goes through the
//! behaviours that show it, of mappings above all.
//!
//! # Model
//!
//! - A [case](case::Case) is one behaviour, by its name: `theme/behaviour`. It runs in a process of
//!   its own, so that a signal which ends it, or a hang, is only its failure.
//! - Most cases share a filesystem; those that mount get a new one each. The filesystem's own tool
//!   looks at each in the end.
//! - What a case expects holds for any correct device. A behaviour that a kernel or a filesystem
//!   doesn't have is skipped, with the reason.
//!
//! # Output
//!
//! A line a case: `ok NAME`, `skip NAME: REASON` or `FAIL NAME: WHY`; where a case left a damaged
//! filesystem, `FAIL check: after NAME: WHY`; at the end `done`. The exit status is 1 if anything
//! failed, 2 if the program couldn't go on.

mod case;
mod cases;
mod data;
mod runner;
mod site;
mod sys;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::case::Case;
use crate::site::Site;

const USAGE: &str = "\
usage: dax-behaviours DIR --device DEVICE --fs ext4|xfs [--only TEXT] [--seed N]
                           [--patience S] [--without-dax]
       dax-behaviours --list

Makes filesystems on DEVICE, so that ALL THAT IS ON IT IS LOST, and mounts them on DIR.
  --only TEXT    only the cases whose name contains TEXT
  --seed N       repeats what is random
  --patience S   takes a case that runs for longer than S seconds to hang; 240 by default
  --without-dax  mounts without DAX, to check the cases themselves";

struct Options {
    site: Site,
    only: String,
    patience: Duration,
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if arguments == ["--list"] {
        cases::all().iter().for_each(|case| println!("{}", case.name));
        return ExitCode::SUCCESS;
    }
    match parse(arguments.into_iter()).and_then(|options| run(&options)) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("dax-behaviours: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<usize> {
    let mut cases = cases::all();
    cases.retain(|case| case.name.contains(&options.only));
    if cases.is_empty() {
        bail!("no case has {:?} in its name; --list shows all", options.only);
    }
    // So that one filesystem lasts as long as possible.
    cases.sort_by_key(|case: &Case| case.mounts);
    println!("seed {}", options.site.seed);
    let failures = runner::run(&options.site, &cases, options.patience)?;
    println!("done");
    Ok(failures)
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options> {
    let (mut root, mut device, mut fs) = (None, None, None);
    let (mut only, mut seed, mut dax, mut patience) = (String::new(), 1, true, 240);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} what?\n{USAGE}"));
        match argument.as_str() {
            "--device" => device = Some(PathBuf::from(value()?)),
            "--fs" => fs = Some(value()?.parse()?),
            "--only" => only = value()?,
            "--seed" => seed = value()?.parse().context("--seed takes a number")?,
            "--patience" => patience = value()?.parse().context("--patience takes seconds")?,
            "--without-dax" => dax = false,
            _ if root.is_none() && !argument.starts_with('-') => root = Some(argument.into()),
            _ => bail!("what is {argument}?\n{USAGE}"),
        }
    }
    let (Some(root), Some(device), Some(fs)) = (root, device, fs) else { bail!("{USAGE}") };
    Ok(Options {
        site: Site { fs, dax, device, root, seed },
        only,
        patience: Duration::from_secs(patience),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn parse_line(line: &str) -> Result<Options> {
        parse(line.split(' ').map(str::to_owned))
    }

    #[test]
    fn arguments_in_any_order_are_read() {
        let options = parse_line("--fs xfs /mnt --only map --device /dev/pmem0 --seed 7").unwrap();
        assert_eq!(options.patience, Duration::from_secs(240));
        let site = options.site;
        assert_eq!((site.root, site.device), ("/mnt".into(), "/dev/pmem0".into()));
        assert_eq!((site.seed, site.dax, options.only.as_str()), (7, true, "map"));
    }

    #[test]
    fn arguments_that_leave_a_doubt_are_refused() {
        for line in ["/mnt --fs xfs", "/mnt --device d --fs btrfs", "/mnt /x --device d --fs xfs"] {
            assert!(parse_line(line).is_err(), "{line}");
        }
    }

    #[test]
    fn names_of_cases_are_unique() {
        let cases = cases::all();
        let names: HashSet<_> = cases.iter().map(|case| &case.name).collect();
        assert_eq!(names.len(), cases.len());
        assert!(names.len() >= 40);
    }
}
