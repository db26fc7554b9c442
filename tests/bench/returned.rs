//! Memory that a container frees: how much of it the host has again, and how soon.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use monohull_tests::engine::{Client, Engine, Run, in_container, unique};
use monohull_tests::hog::Hog;
use monohull_tests::leaks;
use monohull_tests::memory::anonymous_kib;

use crate::report::Report;
use crate::table::{Spread, Table};

/// What is used and freed.
const MIB: u32 = 256;
/// The container's limit.
const LIMIT_MIB: u32 = 512;
/// Pods, each used once: what it gives back later would be there for the next use.
const PODS: usize = 3;
/// When it should be back.
const SOON: Duration = Duration::from_secs(5);
/// As long as it is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked for.
const TICK: Duration = Duration::from_millis(250);
/// As much of it as counts for all.
const MOST: f64 = 0.9;

/// What became of a pod's memory.
struct Outcome {
    /// MiB that were in use.
    taken: f64,
    /// MiB of these that were not any more after [`SOON`].
    back: f64,
    /// Seconds until that were [`MOST`] of them; as much as a number can be if that was never.
    after: f64,
}

/// A line of the table, and its number of a run.
type Line = (&'static str, fn(&Outcome) -> f64);

/// Measures and prints. It is the VMM that is looked at: what it gives back the host's kernel may keep for its CPUs for some
/// seconds, in which that is free and yet not in `MemAvailable`.
pub(crate) fn to_the_host(report: &mut Report) -> io::Result<()> {
    let engine = Engine::start(Client::Ctr)?;
    let outcomes = (0..PODS).map(|_| once(&engine)).collect::<io::Result<Vec<_>>>()?;
    let mut table = Table::new(&["guest memory that its VMM has", "min", "median", "max"]);
    let lines: [Line; 4] = [
        ("MiB that the container takes", |one| one.taken),
        ("MiB of them back 5 s after it has freed them", |one| one.back),
        ("the same in percent", |one| one.back / one.taken * 100.0),
        ("seconds until 90 % are back", |one| one.after),
    ];
    for (name, of) in lines {
        let Spread { min, median, max } = Spread::of(outcomes.iter().map(of).collect());
        let cells = [min, median, max]
            .map(|value| if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") });
        table.row(&[vec![name.to_owned()], cells.to_vec()].concat());
    }
    report
        .table(&format!("Memory that a container frees, {MIB} MiB of its {LIMIT_MIB}, {PODS} pods"), &table);
    Ok(())
}

/// Has a new pod use and free the memory once.
fn once(engine: &Engine) -> io::Result<Outcome> {
    let mut run = Run::new(&format!("bench-returned-{}", unique()), &["sleep", "100000"]);
    run.detach = true;
    run.memory_mib = Some(LIMIT_MIB);
    let tests = "type=bind,src=/opt/tests,dst=/opt/tests,options=rbind:ro";
    run.extra = ["--mount", tests].map(str::to_owned).to_vec();
    let output = engine.run(&run);
    if !output.status.success() {
        return Err(io::Error::other(output.stderr));
    }
    let newest = leaks::processes().into_iter().filter(|(_, name)| name == "monohull-vmm").max();
    let (vmm, _) = newest.ok_or_else(|| io::Error::other("no VMM"))?;

    let mut hog = Hog::start(engine, &run.id, &in_container(), MIB)?;
    let before = anonymous_kib(vmm)?;
    hog.take()?;
    let with = anonymous_kib(vmm)?;
    let taken = with.saturating_sub(before) as f64;
    hog.free()?;
    let samples = watch(vmm, with, taken * MOST)?;
    hog.end()?;
    engine.remove(&run.id);

    let soon = samples.iter().take_while(|(at, _)| *at <= SOON).last();
    let enough = samples.iter().find(|(_, back)| *back >= taken * MOST);
    Ok(Outcome {
        taken: taken / 1024.0,
        back: soon.map_or(0.0, |(_, back)| back / 1024.0),
        after: enough.map_or(f64::INFINITY, |(at, _)| at.as_secs_f64()),
    })
}

/// When how many KiB of `with` were back: until [`SOON`], and until it is `enough`.
fn watch(vmm: u32, with: u64, enough: f64) -> io::Result<Vec<(Duration, f64)>> {
    let freed = Instant::now();
    let mut samples = Vec::new();
    let mut at = Duration::ZERO;
    let mut back = 0.0;
    while at < SOON || (back < enough && at < PATIENCE) {
        back = with.saturating_sub(anonymous_kib(vmm)?) as f64;
        at = freed.elapsed();
        samples.push((at, back));
        thread::sleep(TICK);
    }
    Ok(samples)
}
