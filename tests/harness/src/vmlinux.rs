// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel inside a kernel image.
//!
//! A `bzImage` is a program that decompresses the kernel proper. Under TCG that takes a third of a
//! guest's boot, for each guest; the host does it once. QEMU starts the ELF file at the entry that
//! its PVH note names.

use std::io::Read;

use anyhow::{Context, Result};
use ruzstd::decoding::StreamingDecoder;

/// The kernel in the image `bzimage`. None where it is compressed in another way than by zstd.
///
/// The fields are those of the kernel's `Documentation/arch/x86/boot.rst`.
pub(crate) fn extract(bzimage: &[u8]) -> Result<Option<Vec<u8>>> {
    let word = |at: usize| {
        let bytes = bzimage.get(at..at + 4).context("no kernel image: it has no header")?;
        Ok::<_, anyhow::Error>(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    // Setup sectors, behind the boot sector, and where the payload is behind them.
    let setup = *bzimage.get(0x1f1).context("no kernel image: it is too short")?;
    let start = (usize::from(setup) + 1) * 512 + word(0x248)?;
    let payload = start.checked_add(word(0x24c)?).and_then(|end| bzimage.get(start..end));
    let payload = payload.context("no kernel image: its payload lies behind its end")?;
    if !payload.starts_with(&ZSTD) {
        return Ok(None);
    }
    let mut kernel = Vec::new();
    StreamingDecoder::new(payload)?.read_to_end(&mut kernel).context("its payload is damaged")?;
    Ok(Some(kernel))
}

/// How what zstd has compressed begins (RFC 8878, 3.1.1).
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

#[cfg(test)]
mod tests {
    use super::*;

    /// An image of one setup sector, whose payload is `payload`.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn kernel_is_what_zstd_compressed() {
        // One frame with its size, of one raw block, "vmlinux".
        let payload = [&ZSTD[..], &[0x20, 7, 0x39, 0, 0], b"vmlinux"].concat();
        assert_eq!(extract(&image(&payload)).unwrap().unwrap(), b"vmlinux");
    }

    #[test]
    fn other_compression_is_left_to_the_image() {
        assert_eq!(extract(&image(b"\xfd7zXZ\0")).unwrap(), None);
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let mut long = image(&ZSTD);
        long.pop();
        for wrong in [&b"short"[..], &[0; 0x200], &long, &image(&ZSTD)] {
            assert!(extract(wrong).is_err());
        }
    }
}
