// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a thread still reaches: Landlock, as far as the kernel has it.
//!
//! Files that may be opened, no TCP, and since Linux 6.12 no signals to other processes, and no
//! abstract Unix sockets. What is open already is not concerned.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Once;

use ::landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use anyhow::Context;
use tracing::{debug, warn};

/// The newest that was tried with: a later kernel may refuse more than the daemon can bear.
const NEWEST: ABI = ABI::V6;

/// How far a thread reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// It opens nothing.
    Nothing,
    /// It makes, opens and removes files.
    Files,
}

/// Directories that files may be made, opened and removed in; open since before any of this.
#[derive(Debug, Default)]
pub(super) struct Paths(Vec<PathFd>);

impl Paths {
    pub(super) fn allow(&mut self, directory: &Path) -> anyhow::Result<()> {
        let shown = directory.display();
        self.0.push(PathFd::new(directory).with_context(|| format!("cannot open {shown}"))?);
        Ok(())
    }

    fn within(&self, reach: Reach) -> impl Iterator<Item = (&PathFd, BitFlags<AccessFs>)> {
        let files = AccessFs::ReadFile
            | AccessFs::WriteFile
            | AccessFs::ReadDir
            | AccessFs::MakeReg
            | AccessFs::RemoveFile
            | AccessFs::Truncate;
        let paths = self.0.iter().filter(move |_| reach == Reach::Files);
        paths.map(move |one| (one, files))
    }
}

/// Lets this thread reach no further than `reach`, among `paths`, and `file`, which it may open again.
pub(super) fn restrict(paths: &Paths, reach: Reach, file: Option<&OwnedFd>) -> anyhow::Result<()> {
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let beneath = |(path, access)| PathBeneath::new(path, access);
    let rules = paths.within(reach).map(beneath).try_fold(rules, RulesetCreatedAttr::add_rule)?;
    let again = file.map(|file| PathBeneath::new(file, AccessFs::ReadFile | AccessFs::WriteFile));
    let rules = again.into_iter().try_fold(rules, RulesetCreatedAttr::add_rule)?;
    // A word for the process; each of its threads fares the same.
    static SAID: Once = Once::new();
    let status = rules.restrict_self()?.ruleset;
    SAID.call_once(|| match status {
        RulesetStatus::FullyEnforced => debug!("sandbox: Landlock is in force"),
        RulesetStatus::PartiallyEnforced => {
            debug!("sandbox: Landlock is in force, as far as this kernel has it");
        }
        RulesetStatus::NotEnforced => {
            warn!("sandbox: this kernel has no Landlock; files are protected by seccomp alone");
        }
    });
    Ok(())
}
