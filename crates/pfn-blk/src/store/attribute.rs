// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Notes beside a file's pages: extended attributes in the `user` namespace (xattr(7)).

use std::fs::File;
use std::io;
use std::str;

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr};
use rustix::io::Errno;

/// What the names of ours begin with.
const PREFIX: &str = "user.pfn-blk.";
/// No note is longer: ext4 keeps all of a file's in one block.
const VALUE_MAX: usize = 2048;
/// The kernel has no longer one.
const TAKEN_MAX: usize = 64 << 10;
/// The kernel lists no more.
const NAMES_MAX: usize = 65536;

/// The note `name` of `file`, if it has one.
pub(super) fn get(file: &File, name: &str) -> io::Result<Option<Vec<u8>>> {
    check_kind(file)?;
    let mut value = vec![0; VALUE_MAX];
    match fgetxattr(file, format!("{PREFIX}{name}"), &mut value) {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(Errno::NODATA) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The names of all notes of `file`.
pub(super) fn names(file: &File) -> io::Result<Vec<String>> {
    check_kind(file)?;
    let mut names = vec![0; NAMES_MAX];
    let len = flistxattr(file, &mut names)?;
    let names =
        names[..len].split(|byte| *byte == 0).filter_map(|name| std::str::from_utf8(name).ok());
    Ok(names.filter_map(|name| name.strip_prefix(PREFIX)).map(str::to_owned).collect())
}

/// Removes these notes of `file`, durably. Returns the attributes' whole names, and their values.
pub(super) fn take(file: &File, names: &[String]) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut taken = Vec::new();
    for name in names {
        let name = format!("{PREFIX}{name}");
        // Also of those that aren't read otherwise.
        let mut value = vec![0; TAKEN_MAX];
        let len = fgetxattr(file, &name, &mut value)?;
        value.truncate(len);
        fremovexattr(file, &name)?;
        taken.push((name, value));
    }
    if !taken.is_empty() {
        file.sync_all()?;
    }
    Ok(taken)
}

/// Sets or removes the note `name` of `file`, durably.
pub(super) fn set(file: &File, name: &str, value: Option<&[u8]>) -> io::Result<()> {
    check_kind(file)?;
    let name = format!("{PREFIX}{name}");
    match value {
        Some(value) => fsetxattr(file, name, value, XattrFlags::empty())?,
        None => match fremovexattr(file, name) {
            Err(Errno::NODATA) => return Ok(()),
            removed => removed?,
        },
    }
    file.sync_all()
}

/// Device nodes have no attributes of users.
fn check_kind(file: &File) -> io::Result<()> {
    match file.metadata()?.is_file() {
        true => Ok(()),
        false => Err(io::ErrorKind::Unsupported.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attribute_is_kept_replaced_and_removed() {
        let file = tempfile::tempfile().unwrap();
        if let Err(error) = set(&file, "a", Some(&[1; 512])) {
            eprintln!("skipped: {error}");
            return;
        }
        set(&file, "b", Some(b"other")).unwrap();
        assert_eq!(get(&file, "a").unwrap(), Some(vec![1; 512]));
        set(&file, "a", Some(b"")).unwrap();
        assert_eq!(get(&file, "a").unwrap(), Some(Vec::new()));
        set(&file, "a", None).unwrap();
        set(&file, "a", None).unwrap();
        assert_eq!(get(&file, "a").unwrap(), None);
        assert_eq!(get(&file, "b").unwrap(), Some(b"other".to_vec()));
        assert_eq!(names(&file).unwrap(), ["b"]);
    }

    #[test]
    fn attribute_of_a_device_is_not_supported() {
        let device = File::open("/dev/zero").unwrap();
        let unsupported = |error: io::Error| error.kind() == io::ErrorKind::Unsupported;
        assert!(unsupported(get(&device, "a").unwrap_err()));
        assert!(unsupported(set(&device, "a", Some(b"")).unwrap_err()));
        assert!(unsupported(names(&device).unwrap_err()));
    }
}
