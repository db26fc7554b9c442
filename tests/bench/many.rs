//! What a pod's start takes, and what each pod costs, when many run already.

use std::io;
use std::time::Instant;

use monohull_tests::engine::{Client, Engine, MONOHULL, RUNC};
use monohull_tests::memory::available_kib;

use crate::RUNS;
use crate::idle;
use crate::report::Report;
use crate::table::{Spread, Table};

/// Pods that sleep beside the one that is started.
const BESIDE: [usize; 3] = [0, 50, 200];
/// So many there are when memory is looked at.
const FOR_MEMORY: usize = 100;
/// What the test host is not to use of its memory.
const RESERVE_KIB: u64 = 200 << 10;

/// Pods that sleep, removed when dropped.
struct Sleeping<'a> {
    engine: &'a Engine,
    runtime: &'static str,
    ids: Vec<String>,
}

impl Sleeping<'_> {
    /// Has `count` of them, or as many as there is memory for.
    fn fill(&mut self, count: usize) -> io::Result<()> {
        while self.ids.len() < count && available_kib()? > RESERVE_KIB {
            self.ids.push(idle::start(self.engine, self.runtime)?);
        }
        Ok(())
    }

    /// How many ms one more takes: the median.
    fn one_more(&self) -> io::Result<f64> {
        let mut times = Vec::new();
        for round in 0..=RUNS {
            let begun = Instant::now();
            let id = idle::start(self.engine, self.runtime)?;
            // The first one is not counted.
            if round > 0 {
                times.push(begun.elapsed().as_secs_f64() * 1e3);
            }
            self.engine.remove(&id);
        }
        Ok(Spread::of(times).median)
    }
}

impl Drop for Sleeping<'_> {
    fn drop(&mut self) {
        self.ids.iter().for_each(|id| drop(self.engine.remove(id)));
    }
}

/// Measures and prints.
pub(crate) fn beside(report: &mut Report) -> io::Result<()> {
    let engine = Engine::start(Client::Ctr)?;
    let mut times = Table::new(&["runtime", "pods beside it", "median, ms", "of that with none"]);
    let mut memory = Table::new(&["runtime", "idle pods", "MiB of the host's available memory, each"]);
    let mut processes = Vec::new();
    for (name, runtime) in [("runc", RUNC), ("Monohull", MONOHULL)] {
        let mut pods = Sleeping { engine: &engine, runtime, ids: Vec::new() };
        let none = pods.one_more()?;
        let before = available_kib()?;
        for wanted in BESIDE {
            if wanted > FOR_MEMORY {
                pods.fill(FOR_MEMORY)?;
                let used = before.saturating_sub(available_kib()?) as f64 / 1024.0;
                let count = pods.ids.len();
                memory.row(&[name.into(), count.to_string(), format!("{:.1}", used / count as f64)]);
                processes.push((name, idle::resident(name)));
            }
            pods.fill(wanted)?;
            let time = if wanted == 0 { none } else { pods.one_more()? };
            let count = pods.ids.len();
            times.row(&[name.into(), count.to_string(), format!("{time:.0}"), format!("{:.2}", time / none)]);
            if count < wanted {
                println!("\nThe test host has memory for {count} pods of {name}, not for {wanted}.");
            }
        }
    }
    report.table(&format!("`ctr run --detach` beside idle pods, containerd 1.6, {RUNS} runs each"), &times);
    report.table("Memory of an idle pod, everything counted", &memory);
    for (name, table) in &processes {
        report.table(&format!("Resident memory with {name}, the newest of many pods"), table);
    }
    Ok(())
}
