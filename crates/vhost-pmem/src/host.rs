// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is asked of the host's kernel.

use std::fs::File;
use std::io;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use thiserror::Error;

use crate::vring::read_now;

/// Why this host can serve nobody.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum UnfitHost {
    /// A read that may not wait is how a frontend's kick is read, whatever the frontend made of it.
    #[error(
        "the host's kernel can't read an eventfd without waiting (RWF_NOWAIT): \
         Linux 5.8 or later is needed"
    )]
    TooOld,
    /// Not even this could be found out.
    #[error("cannot make an eventfd: {0}")]
    Eventfd(io::Error),
}

/// Whether this host's kernel has what every device needs. Of a served window there is more to say,
/// which making one does.
pub fn check_host() -> Result<(), UnfitHost> {
    let event =
        eventfd(0, EventfdFlags::CLOEXEC).map_err(|errno| UnfitHost::Eventfd(errno.into()))?;
    judge(read_now(&File::from(event), &mut [0; 8]))
}

/// What such a read of an eventfd that has nothing to say tells.
fn judge(read: Result<usize, Errno>) -> Result<(), UnfitHost> {
    match read {
        Err(Errno::AGAIN) => Ok(()),
        _ => Err(UnfitHost::TooOld),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_that_runs_the_tests_is_fit() {
        check_host().unwrap();
    }

    #[test]
    fn kernel_that_would_wait_or_knows_no_such_read_is_too_old() {
        for errno in [Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL] {
            assert!(matches!(judge(Err(errno)), Err(UnfitHost::TooOld)), "{errno}");
        }
    }
}
