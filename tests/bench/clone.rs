//! From the exec of a command to the first answer of what runs in its pod: booted, forked from a template, copied.

use std::io;
use std::time::Instant;

use monohull_tests::output::finish;
use monohull_tests::talk::{Pod, SHELL, tree};
use monohull_tests::templates;

use crate::RUNS;
use crate::report::Report;
use crate::table::{Spread, Table};

/// Measures the three in turn, and prints.
pub(crate) fn first_answer(report: &mut Report) -> io::Result<()> {
    let tree = tree();
    let settings = tempfile::NamedTempFile::new()?;
    std::fs::write(settings.path(), "templates = \"off\"\n")?;
    let settings = settings.path().display().to_string();
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    let mut timed = |which: usize, start: &dyn Fn() -> Pod, counts: bool| {
        let begun = Instant::now();
        let mut pod = start();
        pod.ask("true");
        let took = begun.elapsed().as_secs_f64() * 1e3;
        if let Some(times) = times.get_mut(which).filter(|_| counts) {
            times.push(took);
        }
        pod
    };
    templates::make()?;
    let original = Pod::run("bench-original", &["--block"], tree.path(), SHELL);
    let mut original = original;
    original.ask("true");
    let begun = Instant::now();
    monohull(&["snapshot", "bench-original", "bench"])?;
    let saved = begun.elapsed().as_secs_f64() * 1e3;
    original.end();
    for round in 0..=RUNS {
        let name = |kind| format!("bench-{kind}-{round}");
        let (cold, fork, copy) = (name("cold"), name("fork"), name("copy"));
        let counts = round > 0;
        let run = |name: &str, settings: Option<&str>| {
            Pod::run_with_settings(name, &["--block"], tree.path(), SHELL, settings)
        };
        timed(0, &|| run(&cold, Some(&settings)), counts).end();
        timed(1, &|| run(&fork, None), counts).end();
        timed(2, &|| Pod::copy("bench", &copy), counts).end();
    }
    monohull(&["snapshot", "rm", "bench"])?;
    let mut table = Table::new(&["exec to first answer, ms", "min", "median", "max"]);
    for (name, times) in
        ["monohull run, cold boot", "monohull run, fork", "monohull clone"].into_iter().zip(times)
    {
        table.row(&[vec![name.to_owned()], Spread::of(times).cells().to_vec()].concat());
    }
    report.table(&format!("A shell in a pod, {RUNS} runs each in turn"), &table);
    println!("\nmonohull snapshot took {saved:.0} ms.");
    Ok(())
}

fn monohull(arguments: &[&str]) -> io::Result<()> {
    let output = finish(std::process::Command::new("monohull").args(arguments));
    if output.code() == 0 { Ok(()) } else { Err(io::Error::other(output.stderr)) }
}
