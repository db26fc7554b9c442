//! What a pod that does nothing costs the host.

use std::collections::BTreeMap;
use std::io;
use std::process::{Command, Stdio};

use monohull_tests::engine::{Engine, MONOHULL, RUNC, Run, unique};
use monohull_tests::memory::available_kib;
use monohull_tests::{leaks, memory};

use crate::report::Report;
use crate::start::without_templates;
use crate::table::Table;

/// Pods that run at once for [`memory_of_each`].
const PODS: u32 = 20;

/// Starts a container that sleeps; returns its id.
pub(crate) fn start(engine: &Engine, runtime: &str) -> io::Result<String> {
    let mut run = Run::new(&format!("bench-idle-{}", unique()), &["sleep", "100000"]);
    run.detach = true;
    runtime.clone_into(&mut run.runtime);
    let output = engine.run(&run);
    if output.status.success() {
        Ok(run.id)
    } else {
        Err(io::Error::other(format!("{runtime}: {}", output.stderr)))
    }
}

/// What the host has less of for each of [`PODS`] pods that sleep: everything counted, kernel and containerd too; and what the
/// processes of one of them have, beside others of its kind.
pub(crate) fn memory_of_each(engine: &Engine, report: &mut Report) -> io::Result<()> {
    let mut table = Table::new(&["MiB a pod", "of the host's available memory"]);
    let mut processes = Vec::new();
    let cold = without_templates(engine)?;
    for (name, runtime) in [("runc", RUNC), ("Monohull", MONOHULL), ("Monohull, cold boot", &cold)] {
        // What the first one brings in is there for all.
        let mut pods = vec![start(engine, runtime)?];
        let before = available_kib()?;
        for _ in 0..PODS {
            pods.push(start(engine, runtime)?);
        }
        let each = before.saturating_sub(available_kib()?) as f64 / 1024.0 / f64::from(PODS);
        table.row(&[name.to_owned(), format!("{each:.1}")]);
        processes.push((name, resident(name)));
        pods.iter().for_each(|id| drop(engine.remove(id)));
    }
    report.table(&format!("Memory of an idle pod, one of {PODS} beside another"), &table);
    for (name, table) in processes {
        report.table(&format!("Resident memory of one of {} pods, {name}", PODS + 1), &table);
    }
    Ok(())
}

/// The memory of the newest process of each kind that pods have.
pub(crate) fn resident(runtime: &str) -> Table {
    let of_pods =
        |name: &str| name.starts_with("containerd-shim") || ["monohull-vmm", "monohull-fs"].contains(&name);
    let mut processes = leaks::processes();
    processes.sort_unstable();
    let newest: BTreeMap<String, u32> =
        processes.into_iter().filter(|(_, name)| of_pods(name)).map(|(pid, name)| (name, pid)).collect();
    let mut table = Table::new(&[&format!("{runtime}: idle pod, KiB"), "private", "shared", "guest"]);
    for (process, pid) in newest {
        let memory = memory::of(pid);
        let cells = [memory.private, memory.shared, memory.guest].map(|kib| kib.to_string());
        table.row(&[vec![process], cells.to_vec()].concat());
    }
    table
}

/// The timeline of a pod's start.
pub(crate) fn timeline(engine: &Engine) -> io::Result<()> {
    let pod = start(engine, MONOHULL)?;
    println!("\n### Timeline of one pod's start\n");
    println!("```");
    let status = Command::new("monohull").args(["trace", &pod]).stdin(Stdio::null()).status()?;
    println!("```");
    engine.remove(&pod);
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("`monohull trace {pod}` failed"))) }
}
