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

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// On QEMU's own device too, to tell what a failure is to be blamed on
    #[arg(long)]
    baseline: bool,
    /// Run nothing, and make the table of the last results
    #[arg(long, conflicts_with = "baseline")]
    last: bool,
}

/// Runs all in both windows, and the baseline if it is asked for; then makes the table anew.
pub(crate) fn run_all(options: &Options) -> Result<()> {
    let mut test = cargo(["test", "--quiet", "--test", "suites", "--"]);
    if options.baseline {
        test.arg("--include-ignored");
    }
    if !options.last {
        run(&mut test)?;
    }
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
