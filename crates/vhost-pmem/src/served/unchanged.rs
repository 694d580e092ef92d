// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pages that come back as they went out.
//!
//! That the kernel writes a page back doesn't say that a guest wrote to it. KVM fetches a page that a
//! guest reads, and that isn't in memory yet, as if it were to be written (`async_pf_execute` in the
//! kernel's `virt/kvm/async_pf.c`), so a page is dirty that was only read. Where nothing may be written
//! such a page is no failure: what it holds is there, and as durable as it was.

use pfn_blk::{BioError, NrPages, PAGE_SIZE, PgoffRange};

use super::layers::Layers;

/// Writes `data` to `pages`; leaves out those that are read-only and hold just that.
pub(super) fn write(layers: &Layers, pages: PgoffRange, data: &[u8]) -> Result<(), BioError> {
    match layers.write(pages, data) {
        Err(BioError::ReadOnly { .. }) => {}
        written => return written,
    }
    // Some of the pages may lie in a store that can be written.
    let mut start = pages.start();
    let mut held = vec![0; usize::try_from(PAGE_SIZE).expect("a page fits in memory")];
    for page in data.chunks(held.len()) {
        let at = PgoffRange::try_new(start, NrPages::ONE).expect("a page of a range is one");
        match layers.write(at, page) {
            Err(refused @ BioError::ReadOnly { .. }) => {
                layers.read(at, &mut held)?;
                if held != page {
                    return Err(refused);
                }
            }
            written => written?,
        }
        start = start.checked_add(NrPages::ONE).expect("a range's end is a page number");
    }
    Ok(())
}

/// Whether `data` is what is behind the region's end.
pub(super) fn is_tail(data: &[u8]) -> bool {
    data.iter().all(|byte| *byte == 0)
}
