//! End-to-end tests: what a user of containerd sees, through Debian's containerd 1.6 with `ctr` and containerd 2.3 with
//! `nerdctl`. Each test names the promise it proves. They run one after the other, in the test host.

// A test fails by panicking.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use monohull_tests::engine::{Client, Engine};

mod bad_input;
mod budget;
mod cli;
mod containers;
mod control;
mod failures;
mod leaks;
mod lifecycle;
mod network;
mod pods;
mod processes;
mod resources;
mod roots;
mod sandbox;
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
const WITH_CTR: [&[Case]; 5] =
    [network::CASES, resources::CASES, volumes::CASES, bad_input::CASES, budget::CASES];
const WITH_NERDCTL: [&[Case]; 2] = [network::NERDCTL_CASES, roots::NERDCTL_CASES];

/// How many of the slowest tests are listed.
const SLOWEST: usize = 10;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One machine, few cores, and leaks are counted: never two at once.
    arguments.test_threads = Some(1);
    let times = Arc::new(Mutex::new(Vec::new()));
    let mut trials = cli::trials();
    for (client, own) in [(Client::Ctr, &WITH_CTR[..]), (Client::Nerdctl, &WITH_NERDCTL[..])] {
        // Started by the first test that needs it, ended with the last.
        let engine = Arc::new(Lazy::new(client));
        for &(name, case) in WITH_BOTH.iter().chain(own).copied().flatten() {
            let (engine, times) = (engine.clone(), times.clone());
            let name = format!("{}::{name}", client.name());
            trials.push(Trial::test(name.clone(), move || {
                let engine = engine.get()?;
                let start = Instant::now();
                case(engine);
                times.lock().unwrap_or_else(PoisonError::into_inner).push((start.elapsed(), name));
                Ok(())
            }));
        }
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

/// An engine that starts when it is first used.
struct Lazy {
    client: Client,
    engine: std::sync::OnceLock<Result<Engine, String>>,
}

impl Lazy {
    fn new(client: Client) -> Self {
        Self { client, engine: std::sync::OnceLock::new() }
    }

    fn get(&self) -> Result<&Engine, String> {
        let start = || Engine::start(self.client).map_err(|error| error.to_string());
        self.engine.get_or_init(start).as_ref().map_err(Clone::clone)
    }
}
