// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask docs`: the site of `docs/`.

mod commands;
#[cfg(test)]
mod consoles;
#[cfg(test)]
mod links;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use guest_harness::target_dir;

use crate::process::run;
use crate::tools;

/// Where the sources are.
const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");

/// A release that Debian 13's compiler builds.
const MDBOOK: &str = "0.4.52";

/// The page that is made of the command line's own definition.
const COMMANDS: &str = "commands.md";

/// Makes the page of commands anew, and the site, in `target/docs`.
pub(crate) fn build() -> Result<()> {
    let page = Path::new(DOCS).join(COMMANDS);
    fs::write(&page, commands::page()).with_context(|| page.display().to_string())?;
    let site = site()?;
    let mdbook = tools::obtain("mdbook", MDBOOK)?;
    run(Command::new(mdbook).arg("build").arg(DOCS).arg("--dest-dir").arg(&site))?;
    println!("the site is {}", site.join("index.html").display());
    Ok(())
}

fn site() -> Result<PathBuf> {
    let site = target_dir().join("docs");
    fs::create_dir_all(&site)?;
    Ok(site.canonicalize()?)
}

/// The files with Markdown that a reader may see, from the project's root.
#[cfg(test)]
fn pages() -> Vec<PathBuf> {
    let root = Path::new(DOCS).parent().unwrap();
    let in_dir = |dir: &Path| {
        let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|kind| kind == "md")).collect::<Vec<_>>()
    };
    let dirs = [root.to_owned(), root.join("docs"), root.join("docs/design")];
    let mut pages: Vec<_> = dirs.iter().flat_map(|dir| in_dir(dir)).collect();
    pages.sort();
    assert!(pages.len() > 20, "{pages:?}");
    pages
}
