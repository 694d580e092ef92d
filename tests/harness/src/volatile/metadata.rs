// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is kept of a file beside its content: its size and its extended attributes. A change is on
//! the medium at once, and undone if power is cut before a sync, or isn't.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr};
use rustix::io::Errno;

use crate::random::Random;

/// The longest attribute there is.
const ATTRIBUTE_MAX: usize = 4096;
/// The longest list of names.
const NAMES_MAX: usize = 64 << 10;

#[derive(Debug, Default)]
pub(super) struct Metadata {
    /// What the size was at the last sync, if it is another now.
    size: Option<u64>,
    /// What attributes were at the last sync, if there were such, of those that were changed.
    attributes: BTreeMap<OsString, Option<Vec<u8>>>,
}

impl Metadata {
    /// Gives `medium` another size, and returns that.
    pub(super) fn set_len(&mut self, medium: &File, len: u64) -> io::Result<()> {
        let before = medium.metadata()?.len();
        medium.set_len(len)?;
        self.size.get_or_insert(before);
        Ok(())
    }

    /// Sets an attribute of `medium`, or takes it away.
    pub(super) fn set_attribute(
        &mut self,
        medium: &File,
        name: &OsStr,
        value: Option<&[u8]>,
    ) -> io::Result<()> {
        let before = attribute(medium, name)?;
        put(medium, name, value)?;
        self.attributes.entry(name.to_owned()).or_insert(before);
        Ok(())
    }

    /// What was changed is durable.
    pub(super) fn sync(&mut self) {
        *self = Self::default();
    }

    /// Undoes some of what was changed since the last sync.
    pub(super) fn lose(&mut self, medium: &File, random: &mut Random) -> io::Result<()> {
        let Self { size, attributes } = std::mem::take(self);
        if let Some(size) = size.filter(|_| random.one_in(2)) {
            medium.set_len(size)?;
        }
        for (name, before) in attributes {
            if random.one_in(2) {
                put(medium, &name, before.as_deref())?;
            }
        }
        Ok(())
    }
}

/// An attribute of a file, if it has that.
pub(super) fn attribute(medium: &File, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; ATTRIBUTE_MAX];
    match fgetxattr(medium, name, &mut value) {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(Errno::NODATA) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The names of a file's extended attributes, each with a zero behind it.
pub(super) fn names(medium: &File) -> io::Result<Vec<u8>> {
    let mut names = vec![0; NAMES_MAX];
    let len = flistxattr(medium, &mut names)?;
    names.truncate(len);
    Ok(names)
}

fn put(medium: &File, name: &OsStr, value: Option<&[u8]>) -> io::Result<()> {
    match value {
        Some(value) => fsetxattr(medium, name, value, XattrFlags::empty())?,
        None => fremovexattr(medium, name)?,
    }
    Ok(())
}
