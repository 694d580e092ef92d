// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether what the pages refer to is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::{DOCS, pages};

/// The targets of the links in `text`, without those in code.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    let mut in_block = false;
    for line in text.lines() {
        in_block ^= line.trim_start().starts_with("```");
        if in_block {
            continue;
        }
        // Every other part is code.
        for prose in line.split('`').step_by(2) {
            let targets = prose.split("](").skip(1);
            links.extend(targets.filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())));
        }
    }
    links
}

/// A heading's name within its page, as GitHub and mdBook make it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().trim().to_lowercase().replace(' ', "-")
}

fn anchors(text: &str) -> BTreeSet<String> {
    let mut in_block = false;
    let headings = text.lines().filter(|line| {
        in_block ^= line.starts_with("```");
        !in_block && line.starts_with('#')
    });
    headings.map(|line| anchor(line.trim_start_matches('#'))).collect()
}

#[test]
fn all_that_is_linked_is_there() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for link in links(&text) {
            if link.is_empty() || link.contains("://") {
                continue;
            }
            count += 1;
            let (path, name) = link.split_once('#').unwrap_or((&link, ""));
            let target =
                if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            let found = fs::read_to_string(&target);
            let is_there = target.is_dir()
                || found.is_ok_and(|text| name.is_empty() || anchors(&text).contains(name));
            if !is_there {
                wrong.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(count > 50, "only {count} links");
    assert!(wrong.is_empty(), "links that lead nowhere:\n{}", wrong.join("\n"));
}

#[test]
fn each_page_is_in_the_site() {
    let summary = fs::read_to_string(Path::new(DOCS).join("SUMMARY.md")).unwrap();
    let listed: BTreeSet<_> = links(&summary).into_iter().collect();
    let root = Path::new(DOCS).canonicalize().unwrap();
    let pages = pages().into_iter().filter_map(|page| {
        let page = page.canonicalize().unwrap();
        Some(page.strip_prefix(&root).ok()?.to_str().unwrap().to_owned())
    });
    let missing: Vec<_> =
        pages.filter(|page| page != "SUMMARY.md" && !listed.contains(page)).collect();
    assert!(missing.is_empty(), "not in docs/SUMMARY.md: {missing:?}");
}
