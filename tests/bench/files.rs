//! Work on many small files.

use std::io;

use monohull_tests::engine::in_container;

use crate::report::Report;
use crate::storage::{Containers, PLACES, RUNTIMES};
use crate::table::{Row, compare};

/// Counted runs in each place.
const RUNS: usize = 3;
/// Files, of 4 KiB each.
const FILES: &str = "200";
/// What `in-container files` does with them, in its order.
const STEPS: [&str; 5] = ["create", "list with sizes", "stat", "read", "remove"];

/// Measures and prints.
pub(crate) fn many_small(report: &mut Report) -> io::Result<()> {
    let containers = Containers::start(|_| Ok(Vec::new()))?;
    let mut rows: Vec<Vec<Row>> = PLACES
        .iter()
        .map(|place| STEPS.iter().map(|step| Row::new(format!("{}: {step}", place.name))).collect())
        .collect();
    for _ in 0..RUNS {
        for (place, rows) in PLACES.iter().zip(&mut rows) {
            for runtime in RUNTIMES {
                let command = [&in_container(), "files", place.path, FILES];
                let output = containers.exec(runtime, place, &command)?.text();
                let times: Vec<f64> = output.split_whitespace().flat_map(str::parse).collect();
                if times.len() != STEPS.len() {
                    return Err(io::Error::other(format!("not the times of all steps: {output:?}")));
                }
                for (row, time) in rows.iter_mut().zip(times) {
                    row.add(runtime, time);
                }
            }
        }
    }
    let title = format!("Small files: {FILES} of 4 KiB, 100 in a directory, {RUNS} runs each in turn");
    report.table(&title, &compare("ms, lower is better", rows.into_iter().flatten().collect()));
    Ok(())
}
