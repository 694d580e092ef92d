// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is written about the metrics, against those that there are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

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

/// All values of `key`, wherever they stand.
fn all<'a>(value: &'a Value, key: &str) -> Vec<&'a Value> {
    let inner: Vec<_> = match value {
        Value::Object(map) => map.values().collect(),
        Value::Array(list) => list.iter().collect(),
        _ => Vec::new(),
    };
    let below = inner.into_iter().flat_map(|value| all(value, key));
    value.get(key).into_iter().chain(below).collect()
}

/// The metrics that a query names, and what stands before and behind each.
fn named(query: &str) -> Vec<(&str, &str, &str)> {
    let is_word = |char: char| char.is_ascii_alphanumeric() || char == '_';
    let starts = ["vhost_pmem_", "process_"];
    let at = starts.iter().flat_map(|start| query.match_indices(start)).map(|(at, _)| at);
    let word = |at: usize| {
        let len = query[at..].find(|char| !is_word(char)).unwrap_or(query.len() - at);
        (&query[..at], &query[at..at + len], &query[at + len..])
    };
    at.map(word).collect()
}

#[test]
fn documentation_alerts_on_metrics_that_there_are() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let text = fs::read_to_string(path).unwrap();
    let section = text.split("\n## ").find(|part| part.starts_with("What to alert on")).unwrap();
    let kinds = kinds();
    let names: Vec<_> = named(section).into_iter().map(|(_, name, _)| name).collect();
    assert!(names.len() > 7, "{names:?}");
    for name in names {
        assert!(kinds.contains_key(name), "{name}");
    }
}

#[test]
fn dashboard_asks_for_metrics_that_there_are_as_their_kind_wants() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/grafana/vhost-pmem.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let kinds = kinds();
    let queries = all(&dashboard, "expr");
    assert!(queries.len() > 20);
    for query in queries {
        let query = query.as_str().unwrap();
        let metrics = named(query);
        assert!(!metrics.is_empty(), "{query}");
        for (before, name, behind) in metrics {
            let histogram = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|suffix| name.strip_suffix(suffix))
                .find(|name| kinds.get(*name).is_some_and(|kind| kind == "histogram"));
            let kind = kinds.get(histogram.unwrap_or(name));
            let kind = kind.unwrap_or_else(|| panic!("{name} is no metric: {query}"));
            assert_eq!(kind == "histogram", histogram.is_some(), "{query}");
            let is_rate = before.ends_with("rate(") || before.ends_with("increase(");
            assert_eq!(is_rate, kind != "gauge", "{name} is a {kind}: {query}");
            assert!(behind.starts_with("{device=~\"$device\""), "{query}");
        }
    }
    let variables = all(&dashboard["templating"], "definition");
    assert_eq!(variables, ["label_values(vhost_pmem_up, device)"]);
    assert!(kinds.contains_key("vhost_pmem_up"));
}

#[test]
fn dashboards_panels_lie_beside_each_other() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/grafana/vhost-pmem.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let mut ids = BTreeSet::new();
    let mut cells = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{}", panel["title"]);
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        assert!(x + w <= 24, "{}", panel["title"]);
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(cells.insert(cell), "{} lies on another", panel["title"]);
        }
    }
}
