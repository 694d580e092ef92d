// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whom a thread acts as, and what it may do beyond that.

use std::io;

use anyhow::Context;
use rustix::process::{DumpableBehavior, getegid, geteuid, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use crate::user::User;

/// Makes something, such as a socket, that belongs to `user` from the start: to change the owner of
/// what a path leads to would be to change that of whatever another process has put there since.
///
/// This thread acts as the user with all of root's capabilities while `make` runs.
pub(crate) fn owned_by<T>(user: Option<User>, make: impl FnOnce() -> T) -> anyhow::Result<T> {
    let Some(User { user, group }) = user else { return Ok(make()) };
    let (owner, owner_group) = (Uid::from_raw(user), Gid::from_raw(group));
    let (before, group_before) = (geteuid(), getegid());
    let act_as = |user: Uid, group: Gid| -> rustix::io::Result<()> {
        set_thread_res_gid(None, group, None)?;
        set_thread_res_uid(None, user, None)?;
        // Linux takes them from one that isn't root any more.
        let sets = capabilities(None)?;
        set_capabilities(None, CapabilitySets { effective: sets.permitted, ..sets })
    };
    act_as(owner, owner_group).context("cannot act as the user of --user, which takes root")?;
    let made = make();
    act_as(before, group_before).context("cannot act as root again")?;
    Ok(made)
}

/// Has this thread act as `user`, with no group but the user's.
pub(super) fn become_user(User { user, group }: User) -> anyhow::Result<()> {
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    let change = || -> rustix::io::Result<()> {
        set_thread_groups(&[])?;
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)
    };
    change().context("cannot become the user of --user, which takes root")
}

/// Gives up every way to have capabilities again, while there are those that it takes.
pub(super) fn drop_bounds() -> anyhow::Result<()> {
    set_no_new_privs(true).context("no_new_privs")?;
    // What can't be taken from those that a program may be started with takes a right itself, and
    // is of no use to a thread that can't start a program.
    for bit in 0..64 {
        if let Some(one) = CapabilitySet::from_bits(1 << bit) {
            let _ = remove_capability_from_bounding_set(one);
        }
    }
    Ok(())
}

/// Gives up all capabilities of this thread.
pub(super) fn drop_capabilities() -> anyhow::Result<()> {
    // Kernels from before 4.3 have none.
    let _ = clear_ambient_capability_set();
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .context("cannot give up capabilities")
}

/// Has others of the process's user neither trace the process nor read what it has in memory, and
/// no core dumped of it, which would have pages of guests'.
pub(super) fn hide() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}
