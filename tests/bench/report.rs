//! What was measured: tables on standard output, and in files for whoever draws them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::chart;
use crate::table::{Spread, Table};

/// Starts of one kind, in turn with several runtimes; the first is what the others are compared with.
#[derive(Debug)]
pub(crate) struct Starts {
    /// What was started.
    kind: String,
    /// Names and times in ms.
    runtimes: Vec<(String, Vec<f64>)>,
}

impl Starts {
    /// None yet, of these runtimes.
    pub(crate) fn of<'a>(kind: &str, runtimes: impl IntoIterator<Item = &'a str>) -> Self {
        let runtimes = runtimes.into_iter().map(|name| (name.to_owned(), Vec::new())).collect();
        Self { kind: kind.into(), runtimes }
    }

    /// A round: measures each runtime, by its number, which `start` starts and tells how long that took.
    pub(crate) fn round(&mut self, mut start: impl FnMut(usize) -> io::Result<f64>) -> io::Result<()> {
        for (number, (_, times)) in self.runtimes.iter_mut().enumerate() {
            times.push(start(number)?);
        }
        Ok(())
    }

    /// Forgets what was measured so far.
    pub(crate) fn forget(&mut self) {
        self.runtimes.iter_mut().for_each(|(_, times)| times.clear());
    }

    /// Names and spreads.
    fn spreads(&self) -> Vec<(&str, Spread)> {
        self.runtimes.iter().map(|(name, times)| (name.as_str(), Spread::of(times.clone()))).collect()
    }
}

/// Collects what was measured.
#[derive(Debug, Default)]
pub(crate) struct Report {
    json: Option<PathBuf>,
    svg: Option<PathBuf>,
    tables: Vec<Value>,
    bars: Vec<chart::Group>,
}

impl Report {
    /// One that is also written to these files.
    pub(crate) fn new(json: Option<PathBuf>, svg: Option<PathBuf>) -> Self {
        Self { json, svg, ..Self::default() }
    }

    /// Prints a table and keeps it.
    pub(crate) fn table(&mut self, title: &str, table: &Table) {
        table.print(title);
        let rows = table.rows().iter().map(|row| row.iter().map(|cell| value(cell)).collect::<Value>());
        let mut rows: Vec<Value> = rows.collect();
        let columns = rows.remove(0);
        self.tables.push(json!({"title": title, "columns": columns, "rows": rows}));
    }

    /// Prints a table of start times, and keeps it and its bars.
    pub(crate) fn starts(&mut self, title: &str, what: &str, starts: &Starts) {
        let spreads = starts.spreads();
        let base = spreads.first().map_or(f64::NAN, |(_, runc)| runc.median);
        let mut table = Table::new(&[&format!("{what}, ms"), "min", "median", "max", "of runc's median"]);
        for (name, spread) in &spreads {
            let ratio = format!("{:.2}", spread.median / base);
            table.row(&[vec![(*name).to_owned()], spread.cells().to_vec(), vec![ratio]].concat());
        }
        let bars = spreads.iter().map(|(name, spread)| ((*name).to_owned(), spread.median)).collect();
        self.bars.push(chart::Group { title: starts.kind.clone(), bars });
        self.table(title, &table);
    }

    /// Writes the files that were asked for.
    pub(crate) fn write(&self) -> io::Result<()> {
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&json!({ "tables": self.tables }))?;
            write(path, &text)?;
        }
        match &self.svg {
            Some(_) if self.bars.is_empty() => Err(io::Error::other("no starts were measured to be drawn")),
            Some(path) => write(path, &chart::svg("Medians of start times, ms", &self.bars)),
            None => Ok(()),
        }
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// A cell as a number, if it is one.
fn value(cell: &str) -> Value {
    cell.parse::<f64>().map_or_else(|_| cell.into(), Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_has_the_numbers_of_the_tables_and_a_bar_for_each_start() {
        let directory = tempfile::tempdir().unwrap();
        let files = ["json", "svg"].map(|name| directory.path().join(name));
        let mut report = Report::new(Some(files[0].clone()), Some(files[1].clone()));
        let mut starts = Starts::of("`run` & go", ["runc", "Monohull"]);
        starts.round(|_| Ok(1.0)).unwrap();
        starts.forget();
        starts.round(|number| Ok([100.0, 50.0][number])).unwrap();
        report.starts("Title", "`run`", &starts);
        report.write().unwrap();

        let written: Value = serde_json::from_slice(&fs::read(&files[0]).unwrap()).unwrap();
        let rows = json!([["runc", 100.0, 100.0, 100.0, 1.0], ["Monohull", 50.0, 50.0, 50.0, 0.5]]);
        assert_eq!(written["tables"][0]["rows"], rows);
        assert_eq!(written["tables"][0]["columns"][2], "median");
        let chart = fs::read_to_string(&files[1]).unwrap();
        assert!(chart.contains("`run` &amp; go") && chart.contains(">50</text>"), "{chart}");
        // The background, and two bars.
        assert_eq!(chart.matches("<rect ").count(), 3);
    }
}
