// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disk images that are not raw, told by their first bytes.
//!
//! Served as they are, a guest would find no filesystem in one, and what it writes there, or growing
//! the file, destroys the image. A guest may write such bytes to its own disk, and then only keeps
//! itself from being served again by `--file`; a table serves any bytes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::bail;
use pfn_blk::{PAGE_SIZE, Pgoff, Store};
use rustix::fs::{Mode, OFlags};

/// A format as qemu-img names it, and what an image has at which byte.
const FORMATS: [(&str, usize, &[u8]); 8] = [
    ("qcow2", 0, b"QFI\xfb"),
    ("qed", 0, b"QED\0"),
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"COWD"),
    ("vmdk", 0, b"# Disk DescriptorFile"),
    ("vhdx", 0, b"vhdxfile"),
    ("vpc", 0, b"conectix"),
    ("vdi", 64, b"\x7f\x10\xda\xbe"),
];

/// The longest beginning that tells one.
const HEAD: usize = 68;

/// Refuses to serve an image that isn't raw. What can't be read is left to those who open it.
pub(crate) fn refuse(path: &Path) -> anyhow::Result<()> {
    let Some(format) = head(path).and_then(|head| format(&head)) else { return Ok(()) };
    let path = path.display();
    bail!(
        "cannot serve {path}: it looks like a {format} image, not a raw one; convert it with \
         \"qemu-img convert -O raw {path} NEW\" and serve NEW (a table serves it as it is)"
    )
}

/// The format that a store looks like, if that is a disk image's.
pub(crate) fn of(store: &dyn Store) -> Option<&'static str> {
    let mut page = vec![0; usize::try_from(PAGE_SIZE).ok()?];
    store.read(Pgoff::ZERO, &mut page).ok()?;
    format(&page)
}

fn head(path: &Path) -> Option<[u8; HEAD]> {
    // Without NONBLOCK a FIFO would block here.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    let mut head = [0; HEAD];
    let mut read = 0;
    while read < HEAD {
        match file.read_at(&mut head[read..], read as u64).ok()? {
            0 => break,
            more => read += more,
        }
    }
    Some(head)
}

fn format(head: &[u8]) -> Option<&'static str> {
    let is = |(_, at, magic): &&(&str, usize, &[u8])| {
        head.get(*at..).is_some_and(|rest| rest.starts_with(magic))
    };
    FORMATS.iter().find(is).map(|(name, ..)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_is_told_by_its_first_bytes_and_raw_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let told = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            refuse(&path).err().map(|error| error.to_string())
        };
        for (name, at, magic) in FORMATS {
            let mut bytes = vec![0; 4096];
            bytes[at..at + magic.len()].copy_from_slice(magic);
            let said = told(&bytes).unwrap();
            assert!(said.contains(&format!("looks like a {name} image")), "{said}");
            bytes.rotate_right(1);
            assert_eq!(told(&bytes), None, "{name}, elsewhere");
        }
        for raw in [&b""[..], b"QFI", &[0; 4096], b"QFI\xfa and more"] {
            assert_eq!(told(raw), None, "{raw:?}");
        }
        refuse(&dir.path().join("none")).unwrap();
        refuse(dir.path()).unwrap();
    }
}
