//! Memory that a container frees: how much of it the host has again, and how soon.

use std::io::{self, BufRead, BufReader, Write};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use monohull_tests::engine::{Client, Engine, MONOHULL, RUNC, Run, in_container, unique};
use monohull_tests::memory::available_kib;

use crate::report::Report;
use crate::table::{Spread, Table};

/// What is used and freed.
const MIB: &str = "256";
/// The container's limit.
const LIMIT_MIB: u32 = 512;
const RUNS: usize = 3;
/// When it should be back.
const SOON: Duration = Duration::from_secs(5);
/// As long as it is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked for.
const TICK: Duration = Duration::from_millis(250);
/// As much of it as counts for all.
const MOST: f64 = 0.9;

/// One run.
struct Outcome {
    /// MiB that the host had less of while they were used.
    taken: f64,
    /// MiB of these that it had again after [`SOON`].
    back: f64,
    /// Seconds until it had [`MOST`] of them; as much as a number can be if that was never.
    after: f64,
}

/// Measures and prints.
pub(crate) fn to_the_host(report: &mut Report) -> io::Result<()> {
    let engine = Engine::start(Client::Ctr)?;
    let mut table =
        Table::new(&["runtime", "MiB taken", "MiB back after 5 s", "% of them", "90 % back after, s"]);
    for (name, runtime) in [("runc", RUNC), ("Monohull", MONOHULL)] {
        let mut run = Run::new(&format!("bench-returned-{}", unique()), &["sleep", "100000"]);
        run.detach = true;
        runtime.clone_into(&mut run.runtime);
        run.memory_mib = Some(LIMIT_MIB);
        run.extra = ["--mount", "type=bind,src=/opt/tests,dst=/opt/tests,options=rbind:ro"]
            .map(str::to_owned)
            .to_vec();
        let output = engine.run(&run);
        if !output.status.success() {
            return Err(io::Error::other(format!("{name}: {}", output.stderr)));
        }
        let outcomes = (0..RUNS).map(|_| once(&engine, &run.id)).collect::<io::Result<Vec<_>>>()?;
        engine.remove(&run.id);
        let median = |of: fn(&Outcome) -> f64| Spread::of(outcomes.iter().map(of).collect()).median;
        let (taken, back) = (median(|one| one.taken), median(|one| one.back));
        table.row(&[
            name.into(),
            format!("{taken:.0}"),
            format!("{back:.0}"),
            format!("{:.0}", median(|one| one.back / one.taken * 100.0)),
            format!("{:.1}", median(|one| one.after)),
        ]);
    }
    let title =
        format!("Memory that a container frees, {MIB} MiB of its {LIMIT_MIB}, median of {RUNS} runs each");
    report.table(&title, &table);
    Ok(())
}

/// Uses and frees the memory once. What its client needs, and the program itself, is there before and after.
fn once(engine: &Engine, id: &str) -> io::Result<Outcome> {
    let mut command = engine.exec_command(id, &[&in_container(), "use", MIB]);
    let mut program = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (Some(mut stdin), Some(stdout)) = (program.stdin.take(), program.stdout.take()) else {
        return Err(io::Error::other("no standard input or output"));
    };
    let mut lines = BufReader::new(stdout).lines();
    let mut said = |word: &str| match lines.next() {
        Some(Ok(line)) if line == word => available_kib(),
        other => Err(io::Error::other(format!("{other:?} in place of {word:?}"))),
    };
    let before = said("ready")?;
    writeln!(stdin)?;
    let with = said("used")?;
    writeln!(stdin)?;
    said("freed")?;
    let taken = before.saturating_sub(with) as f64;
    let samples = watch(with, taken * MOST)?;
    drop(stdin);
    program.wait()?;
    let last = samples.iter().take_while(|(at, _)| *at <= SOON).last();
    let enough = samples.iter().find(|(_, back)| *back >= taken * MOST);
    Ok(Outcome {
        taken: taken / 1024.0,
        back: last.map_or(0.0, |(_, back)| back / 1024.0),
        after: enough.map_or(f64::INFINITY, |(at, _)| at.as_secs_f64()),
    })
}

/// When the host had how many KiB more than `with`: until [`SOON`], and until it is `enough`.
fn watch(with: u64, enough: f64) -> io::Result<Vec<(Duration, f64)>> {
    let freed = Instant::now();
    let mut samples = Vec::new();
    let mut at = Duration::ZERO;
    let mut back = 0.0;
    while at < SOON || (back < enough && at < PATIENCE) {
        back = available_kib()?.saturating_sub(with) as f64;
        at = freed.elapsed();
        samples.push((at, back));
        thread::sleep(TICK);
    }
    Ok(samples)
}
