//! `monohull-chaos`: pods that something goes wrong with, one after the other, in the test host (`make chaos`).
//!
//!     monohull-chaos [--rounds N] [--seed S] [--first N] [--round N] [--stop]
//!
//! Each round is a pod's life with containerd 2.3: created, started, asked for an exec, stopped, deleted. At one of the
//! numbered steps of that life (`plan::STEPS`) one fault comes: a process is killed or stopped for a while, or a disk, the
//! table of descriptors, pids or memory is full. Then all is removed, and nothing may be left; and another pod must start.
//!
//! What happens in a round follows from the seed and its number: `--seed S --round N` does one again, and `--first N` goes on
//! where an earlier run has ended. `--stop` ends the run at the first failure.

// The harness fails by panicking.
#![allow(clippy::panic)]

mod client;
mod events;
mod fault;
mod host;
mod outcome;
mod plan;
mod random;
mod round;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use monohull_tests::engine::finish;
use monohull_tests::leaks::processes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use host::Host;
use outcome::{Outcome, Report};
use plan::Plan;
use round::{Round, Trouble};

/// What the test host hands back.
const RESULTS: &str = "/results";
/// What containerd says when a shim has died between its start's answer and containerd's first connection. It does not have the
/// shim clean up then, and the socket's file and the pod's empty cgroup stay until a pod of the same name comes: what is known to
/// be left.
const NO_DELETE: &str = "failed to create TTRPC connection";
const USAGE: &str = "usage: monohull-chaos [--rounds N] [--seed S] [--first N] [--round N] [--stop]";

/// What is asked for.
struct Arguments {
    rounds: u64,
    seed: u64,
    first: u64,
    stop: bool,
}

impl Arguments {
    fn parse() -> Result<Self, String> {
        let mut arguments = Self { rounds: 20, seed: 1, first: 0, stop: false };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut number = || words.next().and_then(|word| word.parse().ok()).ok_or(USAGE);
            match word.as_str() {
                "--rounds" => arguments.rounds = number()?,
                "--seed" => arguments.seed = number()?,
                "--first" => arguments.first = number()?,
                "--round" => (arguments.first, arguments.rounds) = (number()?, 1),
                "--stop" => arguments.stop = true,
                _ => return Err(USAGE.into()),
            }
        }
        Ok(arguments)
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::parse() {
        Ok(arguments) => arguments,
        Err(usage) => {
            eprintln!("{usage}");
            return ExitCode::from(2);
        }
    };
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("monohull-chaos: {error}");
            ExitCode::FAILURE
        }
    }
}

/// All rounds; whether all were as promised.
fn run(arguments: &Arguments) -> io::Result<bool> {
    let begun = Instant::now();
    host::prepare()?;
    let mut host = Host::start()?;
    println!("ready after {:.1} s", begun.elapsed().as_secs_f64());
    let mut lines = File::create(Path::new(RESULTS).join("rounds.tsv"))?;
    let mut reports = Vec::new();
    let begun = Instant::now();
    for round in arguments.first..arguments.first + arguments.rounds {
        let report = one(&mut host, Plan::new(arguments.seed, round));
        lines.write_all(report.line().as_bytes())?;
        let good = report.outcome.is_good();
        reports.push(report);
        if !good {
            if arguments.stop {
                break;
            }
            drop(host);
            clear();
            host = Host::start()?;
        }
    }
    drop(host);
    let tables = outcome::tables(&reports);
    let took = begun.elapsed().as_secs_f64();
    let each = took / reports.len().max(1) as f64;
    let last =
        format!("{} rounds of seed {} in {took:.0} s, {each:.1} s each", reports.len(), arguments.seed);
    print!("{tables}");
    fs::write(Path::new(RESULTS).join("table.md"), format!("{tables}\n{last}\n"))?;
    fs::write(Path::new(RESULTS).join("errors.txt"), outcome::errors(&reports))?;
    let failed: Vec<_> = reports.iter().filter(|report| !report.outcome.is_good()).collect();
    for Report { plan, outcome, .. } in &failed {
        println!("FAILED: ROUND={} SEED={}: {plan}: {outcome}", plan.round, plan.seed);
    }
    println!("\n{last}: {}", if failed.is_empty() { "all as promised" } else { "NOT all as promised" });
    Ok(failed.is_empty())
}

/// One round, told in a line, and at length if it fails. Of one with an error the account is in the results.
fn one(host: &mut Host, plan: Plan) -> Report {
    let begun = Instant::now();
    let (outcome, met, words) = outcome_of(host, &plan);
    let seconds = begun.elapsed().as_secs_f64();
    let brief = words.lines().next().unwrap_or_default();
    println!("round {} of seed {}: {plan}: {outcome} after {seconds:.1} s  {brief}", plan.round, plan.seed);
    let report = Report { plan, outcome, seconds, met, words };
    if outcome != Outcome::Ok {
        let account = account(host, &report);
        let name = format!("round-{}-{}.txt", report.plan.seed, report.plan.round);
        let _ = fs::write(Path::new(RESULTS).join(name), &account);
        if !outcome.is_good() {
            println!("{account}");
        }
    }
    report
}

/// Lives a round. Returns its outcome, whether the fault met something, and what there is to say.
fn outcome_of(host: &mut Host, plan: &Plan) -> (Outcome, bool, String) {
    let mut round = match Round::new(host, plan) {
        Ok(round) => round,
        Err(error) => return (Outcome::Harness, false, error.to_string()),
    };
    let lived = round.live();
    let met = round.met();
    let removed = round.remove(lived.is_err());
    let lifted = round.lift();
    if matches!(&lived, Err(Trouble::Told(words)) if words.contains(NO_DELETE)) {
        remove_dead_sockets();
        // Only an empty one can be.
        let _ = fs::remove_dir(Path::new(host::CGROUP).join(format!("monohull-{}", round.id())));
    }
    let verdict = |host: &Host| {
        if let Some(bad) = trouble_of(removed).or(lifted.err().map(broken)) {
            return bad;
        }
        let told = match lived {
            Ok(()) if met.is_none() => {
                return (Outcome::Harness, "the step did not come".to_owned());
            }
            Ok(()) => None,
            Err(Trouble::Told(words)) => Some(words),
            Err(trouble) => return trouble_of(Err(trouble)).unwrap_or((Outcome::Harness, String::new())),
        };
        match host.left() {
            Ok(left) if left.is_empty() => {}
            Ok(left) => return (Outcome::Leak, format!("{}\n(told: {told:?})", left.join("; "))),
            Err(error) => return broken(error),
        }
        let next = host.pod_that_ends(plan.root);
        if next.code() != 0 || next.text() != "hello\n" {
            return (Outcome::NextPod, format!("{}{}", next.text(), next.stderr));
        }
        match told {
            _ if host.log().contains("panicked at") => (Outcome::Unclear, "something has panicked".into()),
            Some(words) if words.contains("without a word") => (Outcome::Unclear, words),
            Some(words) => (Outcome::ClearError, words),
            None => (Outcome::Ok, String::new()),
        }
    };
    let (outcome, words) = verdict(host);
    (outcome, met.unwrap_or(false), words)
}

/// Removes the sockets of shims that nobody listens on.
fn remove_dead_sockets() {
    for entry in fs::read_dir("/run/containerd/s").into_iter().flatten().flatten() {
        if UnixStream::connect(entry.path()).is_err() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn broken(error: io::Error) -> (Outcome, String) {
    (Outcome::Harness, error.to_string())
}

fn trouble_of(result: Result<(), Trouble>) -> Option<(Outcome, String)> {
    match result.err()? {
        Trouble::Told(words) | Trouble::Stuck(words) => Some((Outcome::Stuck, words)),
        Trouble::Broken(error) => Some(broken(error)),
    }
}

/// All that is known of a round.
fn account(host: &Host, report: &Report) -> String {
    let Report { plan, outcome, words, .. } = report;
    let output = |program: &str, arguments: &[&str]| finish(Command::new(program).args(arguments)).text();
    let kernel = output("dmesg", &["--ctime"]);
    let kernel: Vec<_> = kernel.lines().rev().take(25).collect();
    format!(
        "=== ROUND={} SEED={}: {plan}: {outcome}\n{words}\n--- log\n{}\n--- processes\n{}\n--- kernel\n{}\n===",
        plan.round,
        plan.seed,
        host.log(),
        output("ps", &["-eo", "pid,ppid,stat,wchan:20,args"]),
        kernel.into_iter().rev().collect::<Vec<_>>().join("\n"),
    )
}

/// Removes what a failed round has left, for the rounds that follow.
fn clear() {
    for (pid, name) in processes() {
        let ours = name.contains("monohull") && !name.ends_with("chaos");
        if let Some(pid) = i32::try_from(pid).ok().filter(|_| ours) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    for directory in ["/run/monohull/default", "/run/containerd/s", "/run/containerd/fifo"] {
        let _ = fs::remove_dir_all(directory);
    }
}
