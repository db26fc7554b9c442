//! What the start of a container takes, by the command line of an engine.

use std::io;
use std::time::Instant;

use monohull_tests::engine::{Client, Engine, MONOHULL, RUNC, Run, unique};

use crate::RUNS;
use crate::report::{Report, Starts};

/// `ctr run --rm true` with runc, with Monohull's forks, and with VMs that boot, in turn.
pub(crate) fn ctr_run(engine: &Engine, report: &mut Report) -> io::Result<()> {
    let cold = without_templates(engine)?;
    let runtimes = [("runc", RUNC), ("Monohull", MONOHULL), ("Monohull, cold boot", &cold)];
    let starts = run_true(engine, "ctr run --rm", &[], &runtimes)?;
    let title = format!("Start to end, containerd 1.6, {RUNS} runs each in turn");
    report.starts(&title, "`ctr run --rm busybox true`", &starts);
    Ok(())
}

/// `nerdctl run --rm true`, with a network.
pub(crate) fn nerdctl_run(report: &mut Report) -> io::Result<()> {
    let engine = Engine::start(Client::Nerdctl)?;
    let runtimes = [("runc", RUNC), ("Monohull", MONOHULL)];
    let starts = run_true(&engine, "nerdctl run --rm", &["--net", "bridge"], &runtimes)?;
    let title = format!("Start to end with CNI's bridge, containerd 2.3, {RUNS} runs each in turn");
    report.starts(&title, "`nerdctl run --rm busybox true`", &starts);
    Ok(())
}

fn run_true(engine: &Engine, kind: &str, options: &[&str], runtimes: &[(&str, &str)]) -> io::Result<Starts> {
    let mut starts = Starts::of(kind, runtimes.iter().map(|(name, _)| *name));
    for round in 0..=RUNS {
        // The first one is not counted.
        if round == 1 {
            starts.forget();
        }
        starts.round(|number| {
            let runtime = runtimes.get(number).map_or("", |(_, runtime)| runtime);
            let mut run = Run::new(&format!("bench-{}", unique()), &["true"]);
            runtime.clone_into(&mut run.runtime);
            run.extra = options.iter().map(|&word| word.into()).collect();
            let begun = Instant::now();
            let output = engine.run(&run);
            if !output.status.success() {
                return Err(io::Error::other(format!("{runtime}: {}", output.stderr)));
            }
            Ok(begun.elapsed().as_secs_f64() * 1e3)
        })?;
    }
    Ok(starts)
}

/// A runtime whose pods are not forked.
pub(crate) fn without_templates(engine: &Engine) -> io::Result<String> {
    engine.install_settings("cold", "templates = \"off\"\n")
}
