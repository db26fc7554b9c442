//! The reference page, the example, the dashboard and the alerts.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::*;

/// A file of this tree.
macro_rules! tree {
    ($path:literal) => {
        concat!(env!("CARGO_MANIFEST_DIR"), "/../", $path)
    };
}

/// What `make promtool` has Prometheus' own tool look at.
const EXAMPLE: &str = tree!("runtime/src/bin/monohull/metrics/tests/example.prom");
const PAGE: &str = tree!("docs/metrics.md");
const DASHBOARD: &str = tree!("deploy/grafana-dashboard.json");
const ALERTS: &str = tree!("deploy/prometheus-alerts.yaml");

const HEAD: &str = include_str!("head.md");
const TAIL: &str = include_str!("tail.md");

fn page() -> String {
    let mut page = format!("{HEAD}\n| metric | kind | labels | |\n|---|---|---|---|\n");
    for family in ALL {
        let labels: Vec<_> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind, labels) = (family.name, family.kind.name(), labels.join(", "));
        let _ = writeln!(page, "| `{name}` | {kind} | {labels} | {} |", family.help);
    }
    page + "\n" + TAIL
}

/// Compares a file that is made from the code with it, or writes it.
fn compare(path: &str, expected: &str) {
    if std::env::var_os("MONOHULL_WRITE_DOCS").is_some() {
        std::fs::write(path, expected).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap();
    let how = "write it again: MONOHULL_WRITE_DOCS=1 cargo test -p monohull-runtime --bin monohull metrics";
    assert!(written == expected, "{path} is not what the code says; {how}");
}

#[test]
fn the_reference_page_is_what_the_code_says() {
    compare(PAGE, &page());
}

#[test]
fn the_example_is_what_the_code_prints() {
    compare(EXAMPLE, &example());
}

/// The metrics that a text names.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("monohull_")).collect()
}

fn assert_known(text: &str) {
    for name in named(text) {
        let known = ALL.iter().any(|family| match family.kind {
            Kind::Histogram => {
                ["_bucket", "_sum", "_count"].iter().any(|suffix| name == format!("{}{suffix}", family.name))
            }
            _ => name == family.name,
        });
        assert!(known, "there is no {name}: {text}");
    }
}

/// Every text with this key, wherever it is.
fn all_of<'a>(json: &'a serde_json::Value, key: &str, found: &mut Vec<&'a str>) {
    match json {
        serde_json::Value::Object(map) => {
            for (name, value) in map {
                match value.as_str() {
                    Some(text) if name == key => found.push(text),
                    _ => all_of(value, key, found),
                }
            }
        }
        serde_json::Value::Array(list) => list.iter().for_each(|value| all_of(value, key, found)),
        _ => {}
    }
}

#[test]
fn the_dashboard_asks_for_metrics_that_there_are() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(DASHBOARD).unwrap()).unwrap();
    let mut queries = Vec::new();
    all_of(&dashboard, "expr", &mut queries);
    assert!(queries.len() >= 10, "{queries:?}");
    for query in queries {
        assert!(!named(query).is_empty(), "{query}");
        assert_known(query);
    }
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has a number of its own");
    assert!(panels.iter().all(|panel| panel["title"].as_str().is_some_and(|title| !title.is_empty())));
}

#[test]
fn the_alerts_ask_for_metrics_that_there_are() {
    let alerts = std::fs::read_to_string(ALERTS).unwrap();
    let rules = alerts.lines().filter(|line| line.trim_start().starts_with("- alert: ")).count();
    assert!(rules >= 5, "{rules} alerts");
    assert_known(&alerts);
}

#[test]
fn the_page_names_no_other_metrics() {
    assert_known(&format!("{HEAD}{TAIL}"));
}
