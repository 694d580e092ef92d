// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask suites`: the filesystem suites in guests, and the table of what they said.

mod record;
mod table;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use guest_harness::target_dir;

use crate::process::{cargo, run};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/suites.md");
const BEGIN: &str = "<!-- Made by `cargo xtask suites`; don't edit. -->\n";
const END: &str = "<!-- End of what is made. -->\n";

/// Runs all in both windows, and with `baseline` on QEMU's own device too; then makes the table anew.
pub(crate) fn run_all(baseline: bool) -> Result<()> {
    let mut test = cargo(["test", "--quiet", "--test", "suites", "--"]);
    if baseline {
        test.arg("--include-ignored");
    }
    run(&mut test)?;
    let records = record::read_all(&target_dir().join("suites"))?;
    let document = Path::new(DOCUMENT);
    let text = fs::read_to_string(document).context("cannot read docs/suites.md")?;
    let made = replace(&text, &table::table(&records)?)?;
    fs::write(document, made).context("cannot write docs/suites.md")?;
    println!("docs/suites.md has the table");
    Ok(())
}

/// `text` with `made` between the markers.
fn replace(text: &str, made: &str) -> Result<String> {
    let (before, rest) = text.split_once(BEGIN).context("docs/suites.md has no first marker")?;
    let (_, after) = rest.split_once(END).context("docs/suites.md has no last marker")?;
    Ok(format!("{before}{BEGIN}\n{made}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_around_the_markers_is_kept() {
        let text = format!("before\n{BEGIN}old\n{END}after\n");
        assert_eq!(replace(&text, "new").unwrap(), format!("before\n{BEGIN}\nnew\n{END}after\n"));
    }

    #[test]
    fn text_without_markers_is_refused() {
        assert!(replace("before\nafter\n", "new").is_err());
    }
}
