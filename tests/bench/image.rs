// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The file that is served: on a disk, written in full, and with contents that are known.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Advice, fadvise};
use vhost_pmem::cached_pages;

pub(crate) const PAGE: usize = 4096;

/// A file, removed when this is dropped.
pub(crate) struct Image {
    path: PathBuf,
    file: File,
    pages: usize,
}

impl Image {
    /// Writes one of `mib` to the disk.
    pub(crate) fn create(dir: &Path, name: &str, mib: usize) -> Result<Self> {
        Self::write(dir, name, mib, 1 << 20)
    }

    /// The same, and leaves it in the page cache in folios of one page each: as large as the writes.
    pub(crate) fn create_singly(dir: &Path, name: &str, mib: usize) -> Result<Self> {
        Self::write(dir, name, mib, PAGE)
    }

    fn write(dir: &Path, name: &str, mib: usize, at_once: usize) -> Result<Self> {
        let path = dir.join(name);
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(true);
        let file = options.open(&path).with_context(|| path.display().to_string())?;
        let pages = (mib << 20) / PAGE;
        let mut writer = BufWriter::with_capacity(at_once, &file);
        for at in 0..pages {
            writer.write_all(&page(at))?;
        }
        writer.flush()?;
        drop(writer);
        file.sync_all()?;
        Ok(Self { path, file, pages })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// How many pages it has.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Sees to it that none of it is in the page cache. Nobody may have it mapped.
    pub(crate) fn cool(&self) -> Result<()> {
        forget(&self.file)?;
        let pages = cached(&self.file)?;
        ensure!(pages == 0, "{pages} pages stay in the page cache");
        Ok(())
    }

    /// Sees to it that all of it is in the page cache, in folios as large as the kernel likes.
    pub(crate) fn warm(&self) -> Result<()> {
        self.cool()?;
        // Where the kernel takes idle pages back early some may be gone again.
        for _ in 0..10 {
            std::io::copy(&mut File::open(&self.path)?, &mut Sink(vec![0; 1 << 20]))?;
            if cached(&self.file)? == self.pages {
                return Ok(());
            }
        }
        bail!("the file doesn't stay in the page cache")
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// How many pages of a file are in the page cache.
pub(crate) fn cached(file: &File) -> Result<usize> {
    let until = Instant::now() + Duration::from_secs(60);
    let pages = cached_pages(file.as_fd(), file.metadata()?.len(), until)?;
    Ok(pages.cached.try_into()?)
}

/// Has the kernel drop a file's pages from its cache, but for those that are mapped.
pub(crate) fn forget(file: &File) -> Result<()> {
    file.sync_all()?;
    Ok(fadvise(file, 0, None::<NonZeroU64>, Advice::DontNeed)?)
}

/// Takes everything, and reads it: `io::copy` would have the kernel move it to `io::sink`.
struct Sink(Vec<u8>);

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let len = data.len().min(self.0.len());
        self.0[..len].copy_from_slice(&data[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What a page holds.
pub(crate) fn page(at: usize) -> [u8; PAGE] {
    let mut bytes = [0; PAGE];
    for (word, chunk) in (0u64..).zip(bytes.chunks_exact_mut(8)) {
        let number = ((at as u64) << 9) | word;
        // Any odd number will do.
        chunk.copy_from_slice(&(number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
    bytes
}
