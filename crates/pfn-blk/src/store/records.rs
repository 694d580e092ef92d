// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What this library has written down about a file besides its content, to be taken away.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use super::{attribute, origin};
use crate::page::{PAGE_BYTES, PAGE_SIZE};

/// What the label of a mirror's leg begins with.
pub(crate) const LABEL_MAGIC: [u8; 8] = *b"pfnblkLG";

/// Takes the mark of an origin away, durably, and nothing else: a leg that was one still says what it
/// has. Of a file without a mark all that there is: it is a file of its own then. Returns the names and
/// values.
pub(super) fn forget(file: &File) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut names = match attribute::names(file) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => return forget_label(file),
        names => names?,
    };
    if names.iter().any(|name| name == origin::NOTE) {
        names = vec![origin::NOTE.to_owned()];
    }
    attribute::take(file, &names)
}

/// The same for a file that has no attributes: a mirror's label is in its last page.
fn forget_label(mut file: &File) -> io::Result<Vec<(String, Vec<u8>)>> {
    let Some(at) = file.seek(SeekFrom::End(0))?.checked_sub(PAGE_SIZE) else {
        return Ok(Vec::new());
    };
    let mut page = [0; PAGE_BYTES];
    file.read_exact_at(&mut page, at)?;
    if !page.starts_with(&LABEL_MAGIC) {
        return Ok(Vec::new());
    }
    file.write_all_at(&[0; PAGE_BYTES], at)?;
    file.sync_all()?;
    Ok(vec![("the label in its last page".to_owned(), LABEL_MAGIC.to_vec())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_in_the_last_page_is_taken_away_and_nothing_else_is() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(forget_label(&file).unwrap(), []);
        for (page, is_label) in [(*b"pfnblkLG", true), (*b"somebody", false)] {
            let mut bytes = [7; 2 * PAGE_BYTES];
            bytes[PAGE_BYTES..][..8].copy_from_slice(&page);
            file.write_all_at(&bytes, 0).unwrap();
            assert_eq!(forget_label(&file).unwrap().len(), usize::from(is_label));
            if is_label {
                bytes[PAGE_BYTES..].fill(0);
            }
            let mut now = [1; 2 * PAGE_BYTES];
            file.read_exact_at(&mut now, 0).unwrap();
            assert!(now == bytes);
        }
    }
}
