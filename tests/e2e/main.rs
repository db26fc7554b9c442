//! End-to-end tests: what a user of containerd sees, through Debian's containerd 1.6 with `ctr` and containerd 2.3 with
//! `nerdctl`. Each test names the promise it proves. They run one after the other, in the test host.

// A test fails by panicking.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::io;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use monohull_tests::engine::{Client, Engine, release};
use monohull_tests::templates;

mod bad_input;
mod block;
mod budget;
mod cli;
mod containers;
mod control;
mod copies;
mod cri;
mod debug;
mod failures;
mod fork;
mod leaks;
mod lifecycle;
mod limits;
mod matrix;
mod metrics;
mod mirrors;
mod network;
mod pods;
mod processes;
mod resources;
mod roots;
mod sandbox;
mod security;
mod sockets;
mod stdio;
mod volumes;

/// A test of one engine.
type Case = (&'static str, fn(&Engine));

/// What depends on the engine: the versions of its API, and its client's ways.
const WITH_BOTH: [&[Case]; 10] = [
    containers::CASES,
    processes::CASES,
    control::CASES,
    stdio::CASES,
    pods::CASES,
    sandbox::CASES,
    lifecycle::CASES,
    failures::CASES,
    roots::CASES,
    leaks::CASES,
];
/// What the engine has no part in runs with one of them.
const WITH_CTR: [&[Case]; 10] = [
    pods::CTR_CASES,
    network::CASES,
    resources::CASES,
    volumes::CASES,
    mirrors::CASES,
    bad_input::CASES,
    budget::CASES,
    security::CASES,
    metrics::CASES,
    debug::CASES,
];
const WITH_NERDCTL: [&[Case]; 5] =
    [network::NERDCTL_CASES, sockets::CASES, roots::NERDCTL_CASES, cri::CASES, metrics::CRI_CASES];

/// Minutes long, and run with the other engine or in another way by the rest: `make e2e` runs them, `make test` lists them as
/// ignored.
const LONG: [&str; 5] = [
    fork::ALL_UNIQUE,
    "containerd-1.6+ctr::a_pod_of_20_containers_with_60_image_layers_starts",
    "block::a_pod_of_20_containers_with_60_erofs_layers_starts",
    "containerd-2.3+nerdctl::50_runs_in_a_row_leave_nothing",
    "containerd-2.3+nerdctl::a_large_image_starts_without_being_read",
];

/// How many of the slowest tests are listed.
const SLOWEST: usize = 10;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One machine, few cores, and leaks are counted: never two at once.
    arguments.test_threads = Some(1);
    let matrix = release().is_some();
    let times = Arc::new(Mutex::new(Vec::new()));
    let mut trials = if matrix {
        Vec::new()
    } else {
        cli::trials().into_iter().chain(fork::trials()).chain(copies::trials()).collect()
    };
    let engines =
        [(Client::Ctr, &WITH_CTR[..]), (Client::Nerdctl, &WITH_NERDCTL[..])].map(|(client, own)| Group {
            name: client.name(),
            start: Box::new(move || Engine::start(client)),
            cases: WITH_BOTH.iter().chain(own).copied().flatten().copied().collect(),
        });
    let wanted = |group: &str, (name, _): &Case| {
        !matrix || group == Client::Ctr.name() && matrix::NAMES.contains(name)
    };
    for Group { name, start, cases } in engines.into_iter().chain(block::groups()) {
        // Started by the first test that needs it, ended with the last.
        let engine = Arc::new(Lazy { start, engine: OnceLock::new() });
        for (case_name, case) in cases.into_iter().filter(|case| wanted(&name, case)) {
            let (engine, times) = (engine.clone(), times.clone());
            let name = format!("{name}::{case_name}");
            let long = LONG.contains(&name.as_str());
            let trial = Trial::test(name.clone(), move || {
                let engine = engine.get()?;
                let start = Instant::now();
                case(engine);
                times.lock().unwrap_or_else(PoisonError::into_inner).push((start.elapsed(), name));
                Ok(())
            });
            trials.push(trial.with_ignored_flag(long));
        }
    }
    if !matrix {
        trials.push(block::devmapper_trial());
    }
    assert!(!matrix || trials.len() == matrix::NAMES.len(), "the matrix names a test that there is not");
    let long = trials.iter().filter(|trial| LONG.contains(&trial.name())).count();
    assert!(matrix || long == LONG.len(), "the list of long tests names one that there is not");
    if !arguments.list
        && let Err(error) = templates::make()
    {
        eprintln!("no templates: {error}");
        return ExitCode::FAILURE;
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    print_slowest(&mut times.lock().unwrap_or_else(PoisonError::into_inner));
    conclusion.exit_code()
}

/// Says where a suite's time went.
fn print_slowest(times: &mut [(Duration, String)]) {
    times.sort_by(|a, b| b.cmp(a));
    for (time, name) in times.iter().take(SLOWEST) {
        println!("{:6.1} s  {name}", time.as_secs_f64());
    }
}

/// The start of an engine.
type Start = Box<dyn Fn() -> io::Result<Engine> + Send + Sync>;

/// Tests that share an engine.
struct Group {
    name: String,
    start: Start,
    cases: Vec<Case>,
}

/// An engine that starts when it is first used.
struct Lazy {
    start: Start,
    engine: OnceLock<Result<Engine, String>>,
}

impl Lazy {
    fn get(&self) -> Result<&Engine, String> {
        let start = || (self.start)().map_err(|error| error.to_string());
        self.engine.get_or_init(start).as_ref().map_err(Clone::clone)
    }
}
