// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Quota, of `include/uapi/linux/quota.h`.
#![allow(unsafe_code, reason = "quotactl takes a pointer")]

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `struct if_dqblk`.
#[derive(Default)]
#[repr(C)]
struct Limits {
    block_hard_limit: u64,
    block_soft_limit: u64,
    current_space: u64,
    inode_hard_limit: u64,
    inode_soft_limit: u64,
    current_inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
}

/// Lets `user` have `kib` KiB on the filesystem of the block device `device`, and no more.
pub(crate) fn limit_user(device: &Path, user: i32, kib: u64) -> io::Result<()> {
    const Q_SETQUOTA: i32 = 0x80_0008;
    const QIF_BLIMITS: u32 = 1;
    // Of the type USRQUOTA, which is 0.
    let command = Q_SETQUOTA << 8;
    let device = CString::new(device.as_os_str().as_bytes())?;
    let mut limits = Limits { block_hard_limit: kib, valid: QIF_BLIMITS, ..Limits::default() };
    // SAFETY: `device` is a string that ends in a NUL, and `limits` what the command reads.
    match unsafe { libc::quotactl(command, device.as_ptr(), user, (&raw mut limits).cast()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
