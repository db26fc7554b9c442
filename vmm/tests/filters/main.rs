//! The filters of system calls have nothing to spare: without any one of their rules, some VM dies of it.
//!
//! A VMM that is built for tests does without a rule when it is called by a name that says so; so it is called by each of
//! them, and gets to do what VMMs do ([`scenarios`]) until the filter kills it.

// A failure of the test itself should stop it, also outside of the test functions.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

// A part of it is used.
#[allow(dead_code)]
#[path = "../hostile/driver.rs"]
mod driver;
#[path = "../guests/mod.rs"]
mod guests;
#[allow(dead_code)]
#[path = "../hostile/program.rs"]
mod program;
#[path = "../hostile/requests/mod.rs"]
mod requests;
#[path = "../vm/mod.rs"]
mod vm;

mod scenarios;
mod subject;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;

use scenarios::SCENARIOS;

/// Rules that no test can bring about the need for: call, class, and why not.
const UNPROVOKED: [(&str, &str, &str); 7] = [
    ("sched_yield", "main", INTERRUPTED),
    ("sched_yield", "starter", INTERRUPTED),
    ("brk", "io", "which thread finds the end of the heap that all share is chance"),
    ("clock_gettime", "main", VDSO),
    ("clock_gettime", "io", VDSO),
    ("exit_group", "vcpu", PANIC),
    ("exit_group", "io", PANIC),
];
const INTERRUPTED: &str =
    "the receiver of a channel finds that the host has interrupted its sender between two instructions";
const VDSO: &str = "kernels whose clock is a CPU's counter have it read without a call (vdso(7))";
const PANIC: &str = "it ends the process after a panic's report, and nothing known makes such a thread panic";

/// A rule for one class of threads.
#[derive(Clone, Debug)]
struct Rule {
    /// Its place in the table.
    index: usize,
    call: String,
    class: String,
    why: String,
}

/// All of them, as the VMM describes them.
fn rules() -> Vec<Rule> {
    let output = Command::new(vm::binary()).arg("--filters").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix("  "));
    let rule = |(index, line): (usize, &str)| {
        let fields: Vec<&str> = line.split("  ").map(str::trim).filter(|field| !field.is_empty()).collect();
        let [call, classes, why] = fields[..] else { panic!("{line:?}") };
        let rule = |class: &str| Rule { index, call: call.into(), class: class.into(), why: why.into() };
        classes.split(' ').map(rule).collect::<Vec<_>>()
    };
    lines.enumerate().flat_map(rule).collect()
}

/// Whether a VMM without a rule dies of it, and in which scenario.
fn dies_in(directory: &Path, rule: &Rule) -> Option<&'static str> {
    let binary = directory.join(format!("without-{}-{}", rule.index, rule.class));
    std::os::unix::fs::symlink(vm::binary(), &binary).unwrap();
    let mut scenarios = SCENARIOS.iter();
    let killed = scenarios.find(|(_, run)| run(&binary).is_err());
    killed.map(|(name, _)| *name)
}

#[test]
fn a_vmm_gets_through_every_scenario() {
    for (name, run) in SCENARIOS {
        let began = Instant::now();
        assert_eq!(run(vm::binary()), Ok(()), "{name}");
        println!("{name}: {:?}", began.elapsed());
    }
}

#[test]
fn no_rule_is_redundant() {
    let (unprovoked, rules): (Vec<_>, Vec<_>) = rules().into_iter().partition(|rule| {
        UNPROVOKED.iter().any(|(call, class, _)| rule.call == *call && rule.class == *class)
    });
    assert!(rules.len() > 90, "the rules are found");
    assert_eq!(unprovoked.len(), UNPROVOKED.len(), "{unprovoked:#?}");
    let directory = tempfile::tempdir().unwrap();
    let (rules, redundant) = (Mutex::new(rules), Mutex::new(Vec::new()));
    let work = || {
        while let Some(rule) = { rules.lock().unwrap().pop() } {
            let began = Instant::now();
            let killed = dies_in(directory.path(), &rule);
            println!("{} {}: {killed:?}, {:?}", rule.class, rule.call, began.elapsed());
            if killed.is_none() {
                let Rule { call, class, why, .. } = rule;
                redundant.lock().unwrap().push(format!("{call} for {class}: {why}"));
            }
        }
    };
    // Each of these threads lives as long as the VMMs that it starts.
    std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(work))));
    let redundant = redundant.into_inner().unwrap();
    assert!(redundant.is_empty(), "no VMM needs these: {redundant:#?}");
}

#[test]
fn a_rule_that_does_not_exist_can_not_be_left_out() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["without-1000-main", "without-0-nobody", "without-0-starter", "without-x"] {
        let binary: PathBuf = directory.path().join(name);
        std::os::unix::fs::symlink(vm::binary(), &binary).unwrap();
        let (_owner, theirs) = monohull_vmm::ipc::Channel::pair().unwrap();
        let mut child = guests::spawn_with_control(&binary, theirs.into());
        assert_eq!(child.wait().unwrap().code(), Some(2), "{name}");
    }
}
