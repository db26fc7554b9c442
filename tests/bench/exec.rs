//! How long a command in a running container takes.

use std::io;
use std::time::Instant;

use monohull_tests::engine::{Engine, MONOHULL, RUNC, Run, unique};

use crate::report::Report;
use crate::table::{Row, compare};

/// Counted runs with each runtime, after one that is not counted.
const RUNS: usize = 15;

/// Measures and prints.
pub(crate) fn latency(engine: &Engine, report: &mut Report) -> io::Result<()> {
    let containers = [RUNC, MONOHULL].map(|runtime| {
        let mut run = Run::new(&format!("bench-exec-{}", unique()), &["sleep", "1000"]);
        run.detach = true;
        runtime.clone_into(&mut run.runtime);
        run
    });
    for run in &containers {
        let output = engine.run(run);
        if !output.status.success() {
            return Err(io::Error::other(format!("{}: {}", run.runtime, output.stderr)));
        }
    }
    let mut row = Row::new("median".into());
    for round in 0..=RUNS {
        for Run { id, runtime, .. } in &containers {
            let start = Instant::now();
            let output = engine.exec(id, &["true"]);
            if !output.status.success() {
                return Err(io::Error::other(format!("{runtime}: {}", output.stderr)));
            }
            if round > 0 {
                row.add(runtime, start.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    for run in &containers {
        engine.remove(&run.id);
    }
    let title = format!("A command in a running container, containerd 1.6, {RUNS} runs each in turn");
    report.table(&title, &compare("`ctr task exec … true`, ms", vec![row]));
    Ok(())
}
