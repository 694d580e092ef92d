// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the pages have a reader write into files, for the check to run as it stands there.

use anyhow::{Context, Result};

/// The files that are made of it.
pub(super) const NAMES: [&str; 2] = ["vm1.service", "domain.xml"];

const SERVICE: &str = include_str!("../../../docs/service.md");
const LIBVIRT: &str = include_str!("../../../docs/attach-libvirt.md");

/// The files' names and contents.
pub(super) fn blocks() -> Result<[(&'static str, String); 2]> {
    let [unit, domain] = NAMES;
    Ok([(unit, block(SERVICE, "ini", "[Unit]")?), (domain, block(LIBVIRT, "xml", "<domain")?)])
}

/// The first block of `page` that is marked `kind` and contains `text`.
fn block(page: &str, kind: &str, text: &str) -> Result<String> {
    let blocks = page.split("\n```").skip(1).step_by(2);
    let mut contents = blocks.filter_map(|block| block.strip_prefix(kind)?.strip_prefix('\n'));
    let found = contents.find(|content| content.contains(text));
    Ok(format!("{}\n", found.with_context(|| format!("no page has a block with {text}"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_what_the_check_runs() {
        let [(_, unit), (_, domain)] = blocks().unwrap();
        assert!(unit.contains("ExecStart=") && unit.ends_with("multi-user.target\n"), "{unit}");
        assert!(domain.starts_with("<domain") && domain.ends_with("</domain>\n"), "{domain}");
    }

    #[test]
    fn block_among_others_is_found_by_kind_and_text() {
        let page = "x\n```\na\n```\n```xml\nb\n```\n```\nc\nd\n```\n";
        assert_eq!(block(page, "xml", "b").unwrap(), "b\n");
        assert_eq!(block(page, "", "c").unwrap(), "c\nd\n");
        assert!(block(page, "", "b").is_err());
    }
}
