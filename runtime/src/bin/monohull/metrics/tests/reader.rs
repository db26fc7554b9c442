//! A strict reader of Prometheus' text format: what it does not understand fails the test.

use std::collections::BTreeSet;

/// A figure.
#[derive(Debug)]
pub(super) struct Line {
    /// Of the metric, without the suffix of a histogram's figure.
    pub(super) family: String,
    pub(super) name: String,
    pub(super) labels: Vec<(String, String)>,
    pub(super) value: f64,
}

/// Reads a text: each metric once, HELP and TYPE before its figures, no figure twice.
pub(super) fn read(text: &str) -> Vec<Line> {
    assert!(text.ends_with('\n'), "the last line has no end");
    let (mut lines, mut seen) = (Vec::new(), BTreeSet::new());
    let mut rest = text.strip_suffix('\n').unwrap().split('\n').peekable();
    while let Some(help) = rest.next() {
        let (family, _) = help.strip_prefix("# HELP ").and_then(|help| help.split_once(' ')).expect(help);
        let kind =
            rest.next().and_then(|line| line.strip_prefix("# TYPE ")?.strip_prefix(family)).expect(help);
        assert!(seen.insert(family.to_owned()), "{family} comes twice");
        while let Some(line) = rest.next_if(|line| !line.starts_with("# ")) {
            let line = figure(family, kind.trim(), line);
            assert!(seen.insert(format!("{}{:?}", line.name, line.labels)), "{line:?} comes twice");
            lines.push(line);
        }
    }
    lines
}

fn figure(family: &str, kind: &str, line: &str) -> Line {
    let end = line.find(['{', ' ']).expect(line);
    let (name, rest) = line.split_at(end);
    let suffix = name.strip_prefix(family).expect(line);
    assert_eq!(["_bucket", "_sum", "_count"].contains(&suffix), kind == "histogram", "{line}");
    let (labels, rest) = rest.strip_prefix('{').map_or((Vec::new(), rest), labels);
    let value = rest.strip_prefix(' ').and_then(|value| value.parse().ok()).expect(line);
    Line { family: family.into(), name: name.into(), labels, value }
}

/// Labels up to their closing brace, and what follows.
fn labels(text: &str) -> (Vec<(String, String)>, &str) {
    let (mut labels, mut rest) = (Vec::new(), text);
    loop {
        let (name, quoted) = rest.split_once("=\"").expect(text);
        assert!(!name.is_empty() && name.bytes().all(|c| c.is_ascii_lowercase() || c == b'_'), "{text}");
        let (value, after) = value(quoted);
        labels.push((name.to_owned(), value));
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None => return (labels, after.strip_prefix('}').expect(text)),
        }
    }
}

/// A value up to its closing quote, and what follows.
fn value(text: &str) -> (String, &str) {
    let (mut value, mut characters) = (String::new(), text.char_indices());
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.push(match characters.next().expect(text).1 {
                'n' => '\n',
                same @ ('\\' | '"') => same,
                other => panic!("\\{other} is no escape: {text}"),
            }),
            other => value.push(other),
        }
    }
    panic!("a value without end: {text}")
}
