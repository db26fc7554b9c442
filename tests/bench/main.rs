//! `monohull-bench`: the tables of the README, measured in one run. Started by `make bench` in the test host.
//!
//! Times are wall-clock times of whole commands; runtimes take turns, so that a drift of the machine meets all of them.

// A benchmark that can't measure ends with the reason.
#![allow(clippy::panic)]

mod chart;
mod clone;
mod exec;
mod files;
mod idle;
mod io;
mod many;
mod network;
mod pods;
mod program;
mod report;
mod returned;
mod start;
mod storage;
mod vmm;

use std::io::{Error, Result};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use monohull_tests::engine::{Client, Engine};
use monohull_tests::table::{self, Table};
use monohull_tests::templates;

use crate::report::Report;

/// Counted runs of each command, after one that is not counted.
const RUNS: usize = 7;

/// What measures one subject.
type Part = fn(&mut Report) -> Result<()>;

/// By name. Without one all are run but `many` and `instructions`.
const PARTS: [(&str, Part); 11] = [
    ("clone", clone::first_answer),
    ("exec", |report| exec::latency(&Engine::start(Client::Ctr)?, report)),
    ("files", files::many_small),
    ("fork", vmm::forks),
    ("instructions", |_| instructions()),
    ("io", io::throughput),
    ("many", |report| templates::make().and_then(|()| many::beside(report))),
    ("network", |report| network::both_ways(&Engine::start(Client::Ctr)?, report)),
    ("pods", |report| templates::make().and_then(|()| pods(report))),
    ("return", |report| templates::make().and_then(|()| returned::to_the_host(report))),
    ("start", |report| templates::make().and_then(|()| start(&Engine::start(Client::Ctr)?, report))),
];

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("monohull-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<()> {
    let (mut json, mut svg, mut chosen) = (None, None, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut file = || arguments.next().map(PathBuf::from).ok_or_else(|| usage(&argument));
        match argument.as_str() {
            "--json" => json = Some(file()?),
            "--svg" => svg = Some(file()?),
            name => {
                let found = PARTS.iter().find(|(part, _)| *part == name);
                chosen.push(found.ok_or_else(|| usage(name))?.1);
            }
        }
    }
    let mut report = Report::new(json, svg);
    if chosen.is_empty() {
        chosen.push(all);
    }
    chosen.iter().try_for_each(|part| part(&mut report))?;
    report.write()
}

fn usage(argument: &str) -> Error {
    let parts: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
    Error::other(format!(
        "bad argument {argument}; usage: monohull-bench [--json FILE] [--svg FILE] [{}]…",
        parts.join("|")
    ))
}

fn all(report: &mut Report) -> Result<()> {
    templates::make()?;
    let engine = Engine::start(Client::Ctr)?;
    start(&engine, report)?;
    exec::latency(&engine, report)?;
    network::both_ways(&engine, report)?;
    drop(engine);
    pods(report)?;
    returned::to_the_host(report)?;
    io::throughput(report)?;
    files::many_small(report)?;
    vmm::exec_to_exit(report)?;
    vmm::forks(report)?;
    binaries(report)
}

fn start(engine: &Engine, report: &mut Report) -> Result<()> {
    start::ctr_run(engine, report)?;
    idle::memory_of_each(engine, report)?;
    idle::timeline(engine)
}

fn pods(report: &mut Report) -> Result<()> {
    pods::kubelet(report)?;
    start::nerdctl_run(report)
}

/// Sizes of what is installed.
fn binaries(report: &mut Report) -> Result<()> {
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
    report.table("Installed files", &table);
    Ok(())
}

/// What a boot costs in instructions. Only where time *is* the number of instructions (`tests/run --icount`): there a
/// millisecond of the timeline is a million of them, of host and guest together.
fn instructions() -> Result<()> {
    let image = monohull_tests::engine::image();
    let mut last = None;
    // The second run finds everything in the page cache.
    for _ in 0..2 {
        last = Some(
            Command::new("monohull").args(["run", "--timeline", "--image", &image, "--", "true"]).output()?,
        );
    }
    let output = last.ok_or_else(|| Error::other("nothing ran"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || !text.contains("agent ready") {
        return Err(Error::other(format!("`monohull run` failed: {text}")));
    }
    println!("\n### Boot of a pod: read ms as million instructions\n\n```\n{text}```");
    Ok(())
}
