//! What a pod's start takes, and what each pod costs, when many run already.

use std::io;
use std::time::Instant;

use monohull_tests::engine::{Client, Engine, MONOHULL, RUNC, finish};
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

    /// How many ms one more takes.
    fn one_more(&self) -> io::Result<Spread> {
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
        Ok(Spread::of(times))
    }
}

impl Drop for Sleeping<'_> {
    /// All by two processes of the client: each takes as long as a pod.
    fn drop(&mut self) {
        for words in [&["task", "delete", "--force"][..], &["container", "delete"]] {
            let _ = finish(self.engine.ctr(words).args(&self.ids));
        }
    }
}

/// Measures and prints.
pub(crate) fn beside(report: &mut Report) -> io::Result<()> {
    let engine = Engine::start(Client::Ctr)?;
    for (name, runtime) in [("runc", RUNC), ("Monohull", MONOHULL)] {
        of_runtime(&engine, name, runtime, report)?;
    }
    Ok(())
}

fn of_runtime(engine: &Engine, name: &str, runtime: &'static str, report: &mut Report) -> io::Result<()> {
    let mut pods = Sleeping { engine, runtime, ids: Vec::new() };
    let mut times = Table::new(&[
        &format!("{name}: `ctr run --detach`, ms"),
        "min",
        "median",
        "max",
        "of that with none",
    ]);
    let mut none = None;
    let mut before = 0_u64;
    for wanted in BESIDE {
        if wanted > FOR_MEMORY {
            pods.fill(FOR_MEMORY)?;
            let used = before.saturating_sub(available_kib()?) as f64 / 1024.0;
            let count = pods.ids.len();
            let mut memory = Table::new(&["idle pods", "MiB of the host's available memory, each"]);
            memory.row(&[format!("{count} of {name}"), format!("{:.1}", used / count as f64)]);
            report.table(&format!("Memory of an idle pod with {name}, everything counted"), &memory);
            let title = format!("Resident memory with {name}, the newest of {count} pods");
            report.table(&title, &idle::resident(name));
        }
        pods.fill(wanted)?;
        let spread = pods.one_more()?;
        let of_none = spread.median / none.get_or_insert(spread).median;
        let beside = format!("{} idle pods beside it", pods.ids.len());
        times.row(&[vec![beside], spread.cells().to_vec(), vec![format!("{of_none:.2}")]].concat());
        if wanted == 0 {
            before = available_kib()?;
        }
        if pods.ids.len() < wanted {
            println!("\nThe test host has no memory for {wanted} pods of {name}.");
        }
    }
    report.table(&format!("Start of a pod beside idle ones, containerd 1.6, {RUNS} runs each"), &times);
    Ok(())
}
