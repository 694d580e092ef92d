// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the cases ask of Linux that neither the standard library nor rustix offers safely.

mod child;
mod ioctl;
mod mapping;
mod quota;

pub(crate) use child::{Child, End};
pub(crate) use ioctl::{
    Extent, FileFlags, GoDown, clone_file, clone_range, dedupe, extents, file_flags, freeze,
    go_down, set_file_flags, thaw,
};
pub(crate) use mapping::{Mapping, PAGE, PMD, Touch};
pub(crate) use quota::limit_user;
