//! Throughput of roots and volumes: fio, sequential and random.

use std::io;

use crate::program::Program;
use crate::report::Report;
use crate::storage::{Containers, PLACES, RUNTIMES};
use crate::table::{Row, compare};

const FIO: &str = "/usr/bin/fio";
/// Counted runs in each place, after none that is not counted: fio writes its file before it reads.
const RUNS: usize = 3;
/// For all jobs. Reading begins with the file dropped from the page cache of the container's kernel, and what is written
/// is on the storage in the end. A job ends after one pass over its file, or after its time.
const OPTIONS: [&str; 7] = [
    "--output-format=json",
    "--thread",
    "--ioengine=psync",
    "--filename=fio-data",
    "--size=16m",
    "--runtime=1",
    "--end_fsync=1",
];

/// One after the other.
struct Job {
    name: &'static str,
    options: [&'static str; 3],
    /// Where in fio's report its result is, and how many of the unit printed that is.
    result: &'static str,
    scale: f64,
}

const JOBS: [Job; 4] = [
    Job {
        name: "sequential write, MiB/s",
        options: ["--rw=write", "--bs=1m", "--stonewall"],
        result: "/write/bw_bytes",
        scale: MIB,
    },
    Job {
        name: "sequential read, MiB/s",
        options: ["--rw=read", "--bs=1m", "--stonewall"],
        result: "/read/bw_bytes",
        scale: MIB,
    },
    Job {
        name: "random 4 KiB write, /s",
        options: ["--rw=randwrite", "--bs=4k", "--stonewall"],
        result: "/write/iops",
        scale: 1.0,
    },
    Job {
        name: "random 4 KiB read, /s",
        options: ["--rw=randread", "--bs=4k", "--stonewall"],
        result: "/read/iops",
        scale: 1.0,
    },
];

const MIB: f64 = 1048576.0;

/// Measures and prints.
pub(crate) fn throughput(report: &mut Report) -> io::Result<()> {
    let mut program = None;
    let containers = Containers::start(|engine| {
        let fio = program.insert(Program::copy(FIO, engine.scratch())?);
        Ok(fio.mount().to_vec())
    })?;
    let program = program.map(|fio| fio.words()).unwrap_or_default();
    let mut rows: Vec<Vec<Row>> = PLACES
        .iter()
        .map(|place| JOBS.iter().map(|job| Row::new(format!("{}: {}", place.name, job.name))).collect())
        .collect();
    for _ in 0..RUNS {
        for (place, rows) in PLACES.iter().zip(&mut rows) {
            for runtime in RUNTIMES {
                let directory = format!("--directory={}", place.path);
                let mut command: Vec<&str> = program.iter().map(String::as_str).collect();
                command.extend(OPTIONS);
                command.push(&directory);
                command.extend(JOBS.iter().flat_map(|job| [&["--name=job"], &job.options[..]].concat()));
                let printed = containers.exec(runtime, place, &command)?;
                let printed: serde_json::Value = serde_json::from_slice(&printed.stdout)?;
                for (index, (job, row)) in JOBS.iter().zip(rows.iter_mut()).enumerate() {
                    let result = printed.pointer(&format!("/jobs/{index}{}", job.result));
                    let result = result.and_then(serde_json::Value::as_f64);
                    row.add(runtime, result.ok_or_else(|| io::Error::other("not fio's report"))? / job.scale);
                }
            }
        }
    }
    let title = format!("Storage: fio, one thread, a file of 16 MiB, {RUNS} runs each in turn");
    report.table(&title, &compare("higher is better", rows.into_iter().flatten().collect()));
    Ok(())
}
