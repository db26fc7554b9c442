//! Prometheus' text format, version 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats).

use std::fmt::{Display, Write};
use std::time::Duration;

use monohull_runtime::tally::{BOUNDS_MS, Spread};

use super::family::{ALL, Family, Metric};

/// Figures, each a line.
#[derive(Debug, Default)]
pub(crate) struct Exposition {
    lines: Vec<(&'static str, String)>,
}

impl Exposition {
    /// Adds a figure, with a value for each label.
    pub(crate) fn add<const N: usize>(
        &mut self,
        Metric(family): &'static Metric<N>,
        labels: [&str; N],
        value: impl Display,
    ) {
        let labels = family.labels.iter().copied().zip(labels);
        self.line(family, "", labels, &value);
    }

    /// Adds a histogram.
    pub(crate) fn spread<const N: usize>(
        &mut self,
        Metric(family): &'static Metric<N>,
        labels: [&str; N],
        spread: &Spread,
    ) {
        let labels = || family.labels.iter().copied().zip(labels);
        let bounds = BOUNDS_MS.iter().map(|ms| Duration::from_millis(*ms).as_secs_f64().to_string());
        let count = spread.up_to.last().copied().unwrap_or_default();
        for (bound, up_to) in bounds.chain(["+Inf".to_owned()]).zip(&spread.up_to) {
            self.line(family, "_bucket", labels().chain([("le", bound.as_str())]), up_to);
        }
        self.line(family, "_sum", labels(), &Duration::from_micros(spread.sum_us).as_secs_f64());
        self.line(family, "_count", labels(), &count);
    }

    fn line<'a>(
        &mut self,
        family: &Family,
        suffix: &str,
        labels: impl Iterator<Item = (&'a str, &'a str)>,
        value: &dyn Display,
    ) {
        let labels: Vec<_> = labels.map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        self.lines.push((family.name, format!("{}{suffix}{labels} {value}\n", family.name)));
    }

    /// How many figures there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    /// All of it: each metric once with all its figures, as the format wants it.
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        for family in ALL {
            let mut lines = self.lines.iter().filter(|(name, _)| *name == family.name).peekable();
            if lines.peek().is_none() {
                continue;
            }
            // Writing to a string does not fail.
            let _ = writeln!(text, "# HELP {} {}", family.name, family.help);
            let _ = writeln!(text, "# TYPE {} {}", family.name, family.kind.name());
            text.extend(lines.map(|(_, line)| line.as_str()));
        }
        text
    }
}

/// The value of a label: backslash, quote and line feed are what the format wants escaped.
fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
    text
}
