use std::fmt::Write as _;

use super::*;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");

/// The page around the table of settings.
const HEAD: &str = include_str!("head.md");
const TAIL: &str = include_str!("tail.md");

/// Name and doc comment of each field of [`Settings`], from the source itself.
fn fields() -> Vec<(String, String)> {
    let source = include_str!("../settings.rs");
    let start = source.find("pub struct Settings {").unwrap();
    let body = source[start..].split("\n}").next().unwrap();
    let mut fields = Vec::new();
    let mut doc = Vec::new();
    for line in body.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            doc.push(text.trim());
        } else if let Some((name, _)) = line.strip_prefix("pub ").and_then(|line| line.split_once(": ")) {
            fields.push((name.to_owned(), doc.join(" ")));
            doc.clear();
        }
    }
    fields
}

fn page() -> String {
    let defaults = serde_json::to_value(Settings::default()).unwrap();
    let mut page = format!("{HEAD}\n| key | default | |\n|---|---|---|\n");
    for (name, doc) in fields() {
        let default = defaults.get(&name).unwrap_or_else(|| panic!("{name} is no field"));
        let _ = writeln!(page, "| `{name}` | `{default}` | {doc} |");
    }
    page.push('\n');
    page.push_str(TAIL);
    page
}

#[test]
fn the_reference_page_is_what_the_code_says() {
    let page = page();
    if std::env::var_os("MONOHULL_WRITE_DOCS").is_some() {
        std::fs::write(PAGE, &page).unwrap();
    }
    let written = std::fs::read_to_string(PAGE).unwrap();
    assert_eq!(
        written, page,
        "write it again: MONOHULL_WRITE_DOCS=1 cargo test -p monohull-runtime reference_page"
    );
}

#[test]
fn every_setting_is_documented_and_there_are_few() {
    let fields = fields();
    let keys = serde_json::to_value(Settings::default()).unwrap().as_object().unwrap().len();
    assert_eq!(fields.len(), keys);
    assert!(keys <= 21, "{keys} settings");
    assert!(fields.iter().all(|(_, doc)| !doc.is_empty()));
}

#[test]
fn an_empty_file_means_the_defaults_and_an_unknown_key_is_named() {
    assert_eq!(Settings::parse("").unwrap(), Settings::default());
    let error = crate::text::chain(&Settings::parse("memory = 1").unwrap_err());
    assert!(error.contains("memory"), "{error}");
}
