//! What a pod's start takes, and what a pod that does nothing costs the host.

use std::fs;
use std::io;
use std::time::Instant;

use monohull_tests::engine::{Engine, MONOHULL, RUNC, Run, unique};

use crate::RUNS;
use crate::table::{Spread, Table};

/// Pods that run at once for [`memory`].
const PODS: u32 = 20;

/// `ctr run --rm true` with runc, with Monohull's forks, and with VMs that boot, in turn.
pub(crate) fn run_rm_true(engine: &Engine) -> io::Result<()> {
    let runtimes =
        [("runc", RUNC), ("Monohull", MONOHULL), ("Monohull, cold boot", &without_templates(engine)?)];
    let mut times = vec![Vec::new(); runtimes.len()];
    for round in 0..=RUNS {
        for ((name, runtime), times) in runtimes.iter().zip(&mut times) {
            let mut run = Run::new(&format!("bench-{}", unique()), &["true"]);
            (*runtime).clone_into(&mut run.runtime);
            let start = Instant::now();
            let output = engine.run(&run);
            assert!(output.status.success(), "{name}: {}", output.stderr);
            if round > 0 {
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    let spreads: Vec<Spread> = times.into_iter().map(Spread::of).collect();
    let base = spreads.first().map_or(f64::NAN, |runc| runc.median);
    let mut table =
        Table::new(&["`ctr run --rm busybox true`, ms", "min", "median", "max", "of runc's median"]);
    for ((name, _), spread) in runtimes.iter().zip(&spreads) {
        let mut cells = vec![(*name).to_owned()];
        cells.extend(spread.cells());
        cells.push(format!("{:.2}", spread.median / base));
        table.row(&cells);
    }
    table.print(&format!("Start to end, containerd 1.6, {RUNS} runs each in turn"));
    Ok(())
}

/// A runtime whose pods are not forked.
fn without_templates(engine: &Engine) -> io::Result<String> {
    let settings = engine.scratch().join("cold.toml");
    fs::write(&settings, "templates = \"off\"\n")?;
    let script = format!("export MONOHULL_CONFIG={}; exec $SHIM \"$@\"", settings.display());
    engine.install_shim("cold", &script)
}

/// What the host has less of for each of [`PODS`] pods that sleep: everything counted, kernel and containerd too.
pub(crate) fn memory(engine: &Engine) -> io::Result<()> {
    let mut table = Table::new(&["MiB a pod", "of the host's available memory"]);
    let cold = without_templates(engine)?;
    for (name, runtime) in [("runc", RUNC), ("Monohull", MONOHULL), ("Monohull, cold boot", &cold)] {
        let names: Vec<_> = (0..=PODS).map(|_| format!("bench-many-{}", unique())).collect();
        let mut before = 0;
        for (number, id) in names.iter().enumerate() {
            let mut run = Run::new(id, &["sleep", "10000"]);
            run.detach = true;
            runtime.clone_into(&mut run.runtime);
            let output = engine.run(&run);
            assert!(output.status.success(), "{name}: {}", output.stderr);
            // What the first one brings in is there for all.
            if number == 0 {
                before = available_kib()?;
            }
        }
        let each = before.saturating_sub(available_kib()?) as f64 / 1024.0 / f64::from(PODS);
        table.row(&[name.to_owned(), format!("{each:.1}")]);
        names.iter().for_each(|id| drop(engine.remove(id)));
    }
    table.print(&format!("Memory of an idle pod, one of {PODS} beside another"));
    Ok(())
}

fn available_kib() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()).and_then(|kib| kib.parse().ok());
    kib.ok_or_else(|| io::Error::other("/proc/meminfo has no MemAvailable"))
}
