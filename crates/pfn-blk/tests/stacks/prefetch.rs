// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is in the page cache after a prefetch.

use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZeroU64;

use pfn_blk::{Access, FileStore, prefetch};
use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// Whether the byte at `offset` can be read without waiting for the disk.
fn is_cached(file: &File, offset: u64) -> bool {
    let mut byte = [0];
    let vecs = &mut [IoSliceMut::new(&mut byte)];
    match preadv2(file, vecs, offset, ReadWriteFlags::NOWAIT) {
        Ok(1) => true,
        Err(Errno::AGAIN) => false,
        other => panic!("{other:?}"),
    }
}

#[test]
fn prefetch_brings_all_into_page_cache() {
    // Where the build is, as /tmp may be in memory.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("file");
    let len = (3 << 20) + 4096;
    std::fs::write(&path, vec![7; len]).unwrap();
    let file = File::open(&path).unwrap();
    file.sync_all().unwrap();
    fadvise(&file, 0, None::<NonZeroU64>, Advice::DontNeed).unwrap();
    // One is enough: a look may have others read ahead.
    assert!(!is_cached(&file, 2 << 20));
    prefetch(&FileStore::open(&path, Access::ReadWrite).unwrap()).unwrap();
    assert!((0..len as u64).step_by(4096).all(|offset| is_cached(&file, offset)));
}
