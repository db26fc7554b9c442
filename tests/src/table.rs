//! Tables and statistics for people.

use crate::engine::RUNC;

/// A table whose first column is text and whose others are right-aligned.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// One with these column titles.
    pub fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|&cell| cell.to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: &[String]) {
        self.rows.push(cells.to_vec());
    }

    /// The column titles, and the rows.
    pub fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }

    /// Prints the table in Markdown, so that it can be pasted into the README as it is.
    pub fn print(&self, title: &str) {
        println!("\n### {title}\n\n{}", self.markdown());
    }

    /// The table in Markdown, without an end of line.
    pub fn markdown(&self) -> String {
        let mut lines = Vec::new();
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        for (number, row) in self.rows.iter().enumerate() {
            let cells = (0..columns).map(|column| {
                let cell = row.get(column).map_or("", String::as_str);
                let width = width(column);
                if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            lines.push(format!("| {} |", cells.collect::<Vec<_>>().join(" | ")));
            if number == 0 {
                let rule = (0..columns).map(|column| {
                    let dashes = "-".repeat(width(column).max(2) - 1);
                    if column == 0 { format!("-{dashes}") } else { format!("{dashes}:") }
                });
                lines.push(format!("| {} |", rule.collect::<Vec<_>>().join(" | ")));
            }
        }
        lines.join("\n")
    }
}

/// What was measured with both runtimes, in turn.
#[derive(Debug)]
pub struct Row {
    name: String,
    runc: Vec<f64>,
    monohull: Vec<f64>,
}

impl Row {
    /// A row without measurements.
    pub fn new(name: String) -> Self {
        Self { name, runc: Vec::new(), monohull: Vec::new() }
    }

    /// Adds a measurement with `runtime`.
    pub fn add(&mut self, runtime: &str, value: f64) {
        let of = if runtime == RUNC { &mut self.runc } else { &mut self.monohull };
        of.push(value);
    }
}

/// The medians of both runtimes and what Monohull's is of runc's.
pub fn compare(what: &str, rows: Vec<Row>) -> Table {
    let mut table = Table::new(&[what, "runc", "Monohull", "of runc's"]);
    for Row { name, runc, monohull } in rows {
        let [runc, monohull] = [runc, monohull].map(|values| Spread::of(values).median);
        // Small numbers are told apart by their first three digits.
        let cell = |value: f64| if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") };
        let of_runc = monohull / runc;
        let of_runc = if of_runc < 0.01 { format!("{of_runc:.4}") } else { format!("{of_runc:.2}") };
        table.row(&[name, cell(runc), cell(monohull), of_runc]);
    }
    table
}

/// Smallest, middle and largest of some measurements.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of these measurements; not a number without any.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let last = values.len().saturating_sub(1);
        Self { min: at(0), median: f64::midpoint(at(last / 2), at(values.len() / 2)), max: at(last) }
    }

    /// Three cells: minimum, median, maximum, without decimals.
    pub fn cells(&self) -> [String; 3] {
        [self.min, self.median, self.max].map(|value| format!("{value:.0}"))
    }
}
