//! `monohull-bench`: the tables of the README, measured in one run. Started by `make bench` in the test host.
//!
//! Times are wall-clock times of whole commands; runtimes take turns, so that a drift of the machine meets all of them.

// A benchmark that can't measure ends with the reason.
#![allow(clippy::panic)]

mod exec;
mod files;
mod io;
mod network;
mod program;
mod start;
mod storage;
mod vmm;

use std::process::{Command, ExitCode, Stdio};

use monohull_tests::engine::{Client, Engine, MONOHULL, RUNC, Run, unique};
use monohull_tests::table::{self, Table};
use monohull_tests::{leaks, memory, templates};

/// Counted runs of each command, after one that is not counted.
const RUNS: usize = 7;

fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        None => templates::make().and_then(|()| all()),
        Some("instructions") => instructions(),
        Some("fork") => vmm::forks(),
        Some("exec") => Engine::start(Client::Ctr).and_then(|engine| exec::latency(&engine)),
        Some("files") => files::many_small(),
        Some("io") => io::throughput(),
        Some("start") => templates::make().and_then(|()| start()),
        Some("network") => Engine::start(Client::Ctr).and_then(|engine| network::both_ways(&engine)),
        Some(other) => Err(std::io::Error::other(format!(
            "unknown argument {other}; usage: monohull-bench [exec|files|fork|instructions|io|network|start]"
        ))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("monohull-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> std::io::Result<()> {
    let engine = Engine::start(Client::Ctr)?;
    start::run_rm_true(&engine)?;
    start::memory(&engine)?;
    idle_pod(&engine)
}

fn all() -> std::io::Result<()> {
    let engine = Engine::start(Client::Ctr)?;
    start::run_rm_true(&engine)?;
    start::memory(&engine)?;
    exec::latency(&engine)?;
    idle_pod(&engine)?;
    network::both_ways(&engine)?;
    drop(engine);
    io::throughput()?;
    files::many_small()?;
    vmm::exec_to_exit()?;
    vmm::forks()?;
    binaries()
}

/// The boot timeline and the memory of a pod that does nothing.
fn idle_pod(engine: &Engine) -> std::io::Result<()> {
    for (name, runtime) in [("runc", RUNC), ("Monohull", MONOHULL)] {
        let id = format!("bench-idle-{}", unique());
        let mut run = Run::new(&id, &["sleep", "1000"]);
        run.detach = true;
        runtime.clone_into(&mut run.runtime);
        let output = engine.run(&run);
        assert!(output.status.success(), "{name}: {}", output.stderr);
        if runtime == MONOHULL {
            timeline(&id)?;
        }
        let mut table = Table::new(&[&format!("{name}: idle pod, KiB"), "private", "shared", "guest"]);
        for (pid, process) in leaks::processes() {
            if ["monohull-vmm", "monohull-fs"].contains(&process.as_str())
                || process.starts_with("containerd-shim")
            {
                let memory = memory::of(pid);
                let cells = [memory.private, memory.shared, memory.guest].map(|kib| kib.to_string());
                table.row(&[vec![process], cells.to_vec()].concat());
            }
        }
        table.print(&format!("Resident memory with {name}"));
        engine.remove(&id);
    }
    Ok(())
}

fn timeline(pod: &str) -> std::io::Result<()> {
    println!("\n### Boot timeline of one pod\n");
    println!("```");
    let status = Command::new("monohull").args(["trace", pod]).stdin(Stdio::null()).status()?;
    println!("```");
    if status.success() {
        Ok(())
    } else {
        Err(std::io::Error::other(format!("`monohull trace {pod}` failed")))
    }
}

/// Sizes of what is installed.
fn binaries() -> std::io::Result<()> {
    let files = [
        "/usr/local/bin/containerd-shim-monohull-v2",
        "/usr/local/bin/monohull",
        "/usr/libexec/monohull/monohull-vmm",
        "/usr/share/monohull/initramfs.cpio",
        "/usr/share/monohull/vmlinux",
    ];
    let mut table = Table::new(&["file", "KiB"]);
    for file in files {
        let size = std::fs::metadata(file)?.len();
        table.row(&[file.to_owned(), (size >> 10).to_string()]);
    }
    table.print("Installed files");
    Ok(())
}

/// What a boot costs in instructions. Only where time *is* the number of instructions (`tests/run --icount`): there a
/// millisecond of the timeline is a million of them, of host and guest together.
fn instructions() -> std::io::Result<()> {
    let image = monohull_tests::engine::image();
    let mut last = None;
    // The second run finds everything in the page cache.
    for _ in 0..2 {
        last = Some(
            Command::new("monohull").args(["run", "--timeline", "--image", &image, "--", "true"]).output()?,
        );
    }
    let output = last.ok_or_else(|| std::io::Error::other("nothing ran"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || !text.contains("agent ready") {
        return Err(std::io::Error::other(format!("`monohull run` failed: {text}")));
    }
    println!("\n### Boot of a pod: read ms as million instructions\n\n```\n{text}```");
    Ok(())
}
