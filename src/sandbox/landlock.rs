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
    /// It takes sockets away.
    Removal,
    /// It makes, opens and removes files, too.
    Files,
}

/// Directories, open since before any of this.
#[derive(Debug, Default)]
pub(super) struct Paths {
    files: Vec<PathFd>,
    removal: Vec<PathFd>,
}

impl Paths {
    /// Files may be made, opened and removed there.
    pub(super) fn allow(&mut self, directory: &Path) -> anyhow::Result<()> {
        self.files.push(open(directory)?);
        Ok(())
    }

    /// Files may be removed there.
    pub(super) fn allow_removal(&mut self, directory: &Path) -> anyhow::Result<()> {
        self.removal.push(open(directory)?);
        Ok(())
    }

    fn within(&self, reach: Reach) -> impl Iterator<Item = (&PathFd, BitFlags<AccessFs>)> {
        let files = AccessFs::ReadFile
            | AccessFs::WriteFile
            | AccessFs::ReadDir
            | AccessFs::MakeReg
            | AccessFs::RemoveFile
            | AccessFs::Truncate;
        let (files_are, removal_is) = (reach == Reach::Files, reach != Reach::Nothing);
        let files = self.files.iter().map(move |one| (one, files)).filter(move |_| files_are);
        let removal = self.removal.iter().map(|one| (one, AccessFs::RemoveFile.into()));
        files.chain(removal.filter(move |_| removal_is))
    }
}

fn open(directory: &Path) -> anyhow::Result<PathFd> {
    PathFd::new(directory).with_context(|| format!("cannot open {}", directory.display()))
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
