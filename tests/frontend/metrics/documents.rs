// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is written about the metrics, against those that there are.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::Place;

/// The metrics' names, and what kind each is.
fn kinds() -> BTreeMap<String, String> {
    let place = Place::new();
    let file = place.file("pmem", 1 << 20);
    let _daemon = place.serve(&["--file".as_ref(), file.as_os_str()]).unwrap();
    place.scrape().kinds
}

#[test]
fn documentation_has_all_metrics_with_their_kinds() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let text = fs::read_to_string(path).unwrap();
    let mut documented = BTreeMap::new();
    for row in text.lines().filter_map(|line| line.strip_prefix("| `")) {
        let mut cells = row.split(" | ");
        let name = cells.next().unwrap().trim_end_matches('`').to_owned();
        documented.insert(name, cells.next().unwrap().to_owned());
    }
    assert_eq!(documented, kinds());
}
