//! End-to-end tests: what a user of containerd sees, through Debian's containerd 1.6 with `ctr` and containerd 2.3 with
//! `nerdctl`. Each test names the promise it proves. They run one after the other, in the test host.

// A test fails by panicking.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use monohull_tests::engine::{Client, Engine};

mod bad_input;
mod budget;
mod cli;
mod containers;
mod control;
mod failures;
mod fork;
mod leaks;
mod lifecycle;
mod network;
mod pods;
mod processes;
mod resources;
mod sandbox;
mod stdio;
mod volumes;

/// A test of one engine.
type Case = (&'static str, fn(&Engine));

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One machine, few cores, and leaks are counted: never two at once.
    arguments.test_threads = Some(1);
    let mut trials = cli::trials();
    trials.extend(fork::trials());
    for client in [Client::Ctr, Client::Nerdctl] {
        let cases = [
            containers::CASES,
            processes::CASES,
            control::CASES,
            stdio::CASES,
            pods::CASES,
            resources::CASES,
            sandbox::CASES,
            lifecycle::CASES,
            failures::CASES,
            bad_input::CASES,
            volumes::CASES,
            budget::CASES,
            leaks::CASES,
            match client {
                Client::Ctr => network::CASES,
                Client::Nerdctl => network::NERDCTL_CASES,
            },
        ];
        // Started by the first test that needs it, ended with the last.
        let engine = Arc::new(Lazy::new(client));
        for &(name, case) in cases.into_iter().flatten() {
            let engine = engine.clone();
            trials.push(Trial::test(format!("{}::{name}", client.name()), move || {
                case(engine.get()?);
                Ok(())
            }));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    conclusion.exit_code()
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
