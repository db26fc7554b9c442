//! `monohull-soak`: pods in a row, and what grows meanwhile, in the test host (`make soak`). `--help` says the rule.

// The harness fails by panicking.
#![allow(clippy::panic)]

mod sample;
mod trend;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use monohull_tests::engine::{Client, Engine, IMAGE, MONOHULL, finish};
use monohull_tests::leaks::{Census, processes};
use monohull_tests::table::Table;
use monohull_tests::templates;
use monohull_tests::watch::Watch;

use sample::{Kind, Sample};
use trend::Thirds;

const HELP: &str = "\
usage: monohull-soak [--pods N]

Starts N pods (100) with containerd 2.3, one after the other. Each prints 2 MiB, which must arrive whole in its log, serves two execs,
and is removed; a pod that stays the whole time serves an exec for each of them. Thirty times in between, nothing may be left of pods
that are gone, and figures are taken:

  memory       private memory of containerd and of the staying pod's processes, and that of its guest
  descriptors  of the same processes
  counts       processes, files in directories of state, snapshots, mounts, cgroups, sockets
  start        the median time from the call to a started container, since the last figures

A figure has a trend if its median in the last third of the samples exceeds those of the first and of the middle third. The first
tenth is left out. The excess must be more than three times the median deviation of samples from their third's median, and more
than what a figure of its kind may grow by:

  memory       5 % and 256 KiB; containerd's, whose garbage is collected late, 15 % and 4 MiB
  descriptors  1
  counts       0
  start        20 %

(Half of that against the middle third.) The run fails if there is a trend, if something is left, or if a pod fails. It needs N of 9 or
more to tell anything, and a hundred to tell much.";

/// What the test host hands back.
const RESULTS: &str = "/results";
/// How often figures are taken.
const SAMPLES: u64 = 30;
/// What each pod prints.
const LOG_BYTES: u64 = 2 << 20;
/// How long output may take to arrive, and how long may be left what goes by itself.
const PATIENCE: Duration = Duration::from_secs(60);
const LOGS: &str = "/run/soak";
/// The pod that stays.
const RESIDENT: &str = "resident";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let pods = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Some(100),
        ["--pods", pods] => pods.parse().ok(),
        ["--help"] => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => None,
    };
    let Some(pods) = pods else {
        eprintln!("{HELP}");
        return ExitCode::from(2);
    };
    match soak(pods) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("monohull-soak: {error}");
            ExitCode::FAILURE
        }
    }
}

/// All pods; whether no figure has a trend.
fn soak(pods: u64) -> io::Result<bool> {
    fs::create_dir_all(LOGS)?;
    templates::make()?;
    let engine = Engine::start(Client::Nerdctl)?;
    start(&engine, RESIDENT, "exec sleep 1000000")?;
    let residents = residents();
    pod(&engine, "warm-up")?;
    let before = Census::take_with_engine(&engine.bundles(), engine.pid());
    let (begun, mut samples, mut starts) = (Instant::now(), Vec::new(), Vec::new());
    for number in 0..pods {
        starts.push(pod(&engine, &format!("soak-{number}"))?);
        if (number + 1) * SAMPLES / pods == number * SAMPLES / pods {
            continue;
        }
        let left = Census::settle(&before, &engine.bundles(), engine.pid(), PATIENCE)?;
        if !left.is_empty() {
            return Err(io::Error::other(format!("left behind after {} pods: {left:#?}", number + 1)));
        }
        samples.push(sample::take(&engine, &residents, &starts));
        starts.clear();
        println!("pod {} of {pods}, {:.0} s: {}", number + 1, begun.elapsed().as_secs_f64(), brief(&samples));
    }
    remove(&engine, RESIDENT)?;
    let (table, trends) = judge(&samples);
    let each = begun.elapsed().as_secs_f64() / pods.max(1) as f64;
    let last = format!("{pods} pods in {:.0} s, {each:.1} s each", begun.elapsed().as_secs_f64());
    println!("\n{table}");
    fs::write(Path::new(RESULTS).join("table.md"), format!("{table}\n\n{last}\n"))?;
    if samples.len() < 9 {
        println!("\n{last}: too few to tell a trend");
        return Ok(false);
    }
    println!(
        "\n{last}: {}",
        if trends.is_empty() { "no trend".into() } else { format!("TREND: {}", trends.join(", ")) }
    );
    Ok(trends.is_empty())
}

/// The processes of the pod that stays.
fn residents() -> BTreeMap<String, u32> {
    let ours = processes().into_iter().map(|(pid, name)| (name, pid));
    let names = ["containerd-shim-monohull-v2", "monohull-fs", "monohull-vmm"];
    ours.filter(|(name, _)| names.contains(&name.as_str())).collect()
}

/// A pod from start to end. Returns how long its start took, in milliseconds.
fn pod(engine: &Engine, id: &str) -> io::Result<f64> {
    let begun = Instant::now();
    let script = format!(
        "dd if=/dev/zero bs=64k count={} 2> /dev/null | tr '\\0' x; exec sleep 1000",
        LOG_BYTES >> 16
    );
    start(engine, id, &script)?;
    let took = begun.elapsed().as_secs_f64() * 1e3;
    for (container, exec) in [(id, "first"), (id, "second"), (RESIDENT, id)] {
        let words = ["task", "exec", "--exec-id", exec, container, "echo", "hello"];
        let output = finish(&mut engine.ctr(&words));
        expect(output.text() == "hello\n", || {
            format!(
                "{exec} in {container}: {:?}, {}: {}\n{}",
                output.text(),
                output.status,
                output.stderr,
                engine.log()
            )
        })?;
    }
    let (log, directory) = (log_of(id), PathBuf::from(LOGS));
    let arrived = || fs::metadata(&log).is_ok_and(|log| log.len() >= LOG_BYTES);
    let all = Watch::new(vec![directory])?.until(Instant::now() + PATIENCE, &[], arrived)?;
    expect(all && fs::metadata(&log)?.len() == LOG_BYTES, || format!("the log of {id} is not whole"))?;
    remove(engine, id)?;
    Ok(took)
}

fn start(engine: &Engine, id: &str, script: &str) -> io::Result<()> {
    let log = format!("file://{}", log_of(id).display());
    let words = ["run", "--detach", "--runtime", MONOHULL, "--log-uri", &log, IMAGE, id, "sh", "-c", script];
    let output = finish(&mut engine.ctr(&words));
    expect(output.status.success(), || format!("{id} does not start: {}{}", output.stderr, engine.log()))
}

fn remove(engine: &Engine, id: &str) -> io::Result<()> {
    finish(&mut engine.ctr(&["task", "delete", "--force", id]));
    let output = finish(&mut engine.ctr(&["container", "delete", id]));
    expect(output.status.success(), || format!("{id} is not removed: {}", output.stderr))?;
    fs::remove_file(log_of(id))
}

fn log_of(id: &str) -> PathBuf {
    Path::new(LOGS).join(id)
}

fn expect(is: bool, otherwise: impl FnOnce() -> String) -> io::Result<()> {
    if is { Ok(()) } else { Err(io::Error::other(otherwise())) }
}

/// The last sample in a line.
fn brief(samples: &[Sample]) -> String {
    let figures = samples.last().into_iter().flatten();
    let figures = figures.filter(|(_, kind, _)| *kind != Kind::Count);
    figures.map(|(name, _, value)| format!("{name} {value:.0}")).collect::<Vec<_>>().join(", ")
}

/// The table of figures, and those that have a trend.
fn judge(samples: &[Sample]) -> (String, Vec<String>) {
    let mut table = Table::new(&["figure", "first", "middle", "last", "noise", ""]);
    let mut trends = Vec::new();
    for (row, (name, kind, _)) in samples.first().into_iter().flatten().enumerate() {
        let values: Vec<f64> = samples.iter().filter_map(|sample| Some(sample.get(row)?.2)).collect();
        let Some(thirds) = Thirds::of(&values) else { continue };
        let grows = thirds.grows(kind.allowance());
        if grows {
            trends.push(name.clone());
        }
        let mut cells = vec![name.clone()];
        cells.extend(thirds.medians.map(|median| format!("{median:.0}")));
        cells.extend([format!("{:.0}", thirds.noise), if grows { "TREND" } else { "" }.to_owned()]);
        table.row(&cells);
    }
    (table.markdown(), trends)
}
