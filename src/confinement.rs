// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From the command line to a sandbox.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::bail;
use clap::ValueEnum;
use pfn_blk::Pagemap;
use pfn_blk::table::OpenMirror;
use vhost_pmem::{Layered, Window};

use crate::cli::{Cli, SandboxArg, SandboxArgs, SeccompArg};
use crate::sandbox::{Options, Sandbox, Violation};
use crate::user::User;

/// Checks that it can be had, before anything is made.
pub(crate) fn check(args: &SandboxArgs) -> anyhow::Result<()> {
    if args.user.is_some() && !rustix::process::geteuid().is_root() {
        bail!("--user takes root");
    }
    Ok(())
}

/// What was asked for.
pub(crate) fn options(args: &SandboxArgs) -> Options {
    Options {
        user: args.user,
        open: matches!(args.sandbox, SandboxArg::None),
        violation: match args.seccomp {
            SeccompArg::Kill => Some(Violation::Kill),
            SeccompArg::Log => Some(Violation::Log),
            SeccompArg::None => None,
        },
    }
}

/// The same, as another daemon's command line has it.
pub(crate) fn arguments(args: &SandboxArgs) -> Vec<String> {
    let user = args.user.map(|User { user, group }| format!("--user={user}:{group}"));
    let mut all: Vec<_> = user.into_iter().collect();
    let values = [
        ("sandbox", args.sandbox.to_possible_value()),
        ("seccomp", args.seccomp.to_possible_value()),
    ];
    for (key, value) in values {
        all.extend(value.map(|value| format!("--{key}={}", value.get_name())));
    }
    all.extend(args.allow_dir.iter().map(|dir| format!("--allow-dir={}", dir.display())));
    all
}

/// The sandbox of the daemon that serves `content`, made of `stores`, with the directories it is to have.
pub(crate) fn lay_out(
    cli: &Cli,
    content: &Layered,
    stores: &[Arc<Pagemap>],
    mirrors: &[OpenMirror],
) -> anyhow::Result<Sandbox> {
    let mut sandbox = Sandbox::new(options(&cli.sandbox));
    if sandbox.is_open() {
        return Ok(sandbox);
    }
    let parent =
        |path: &Path| std::path::absolute(path).map(|path| path.parent().map(Path::to_owned));
    for directory in &cli.sandbox.allow_dir {
        sandbox.allow(directory)?;
    }
    // Snapshots are taken by operators, and of what is served.
    let window = vhost_pmem::choose_layered(content, cli.backing.window.into());
    let is_served = cli.backing.publish.is_some() || matches!(window, Ok(Window::Served { .. }));
    if (cli.control.is_some() || cli.end_with_parent) && is_served {
        let names = stores.iter().map(|pagemap| PathBuf::from(pagemap.store().name()));
        let files = names.chain(content.cows.iter().cloned()).filter(|path| path.is_file());
        let legs = mirrors.iter().flat_map(|mirror| &mirror.legs).filter(|leg| leg.is_file);
        // Those that aren't there may come back.
        let missing = legs.map(|leg| PathBuf::from(&leg.device)).filter(|path| !path.exists());
        let missing = missing.filter_map(|path| parent(&path).ok()?).filter(|path| path.is_dir());
        let directories = files.filter_map(|path| parent(&path).ok()?).chain(missing);
        let directories: BTreeSet<_> = directories.collect();
        directories.iter().try_for_each(|directory| sandbox.allow(directory))?;
    }
    Ok(sandbox)
}
