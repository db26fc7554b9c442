//! Which system calls the VMM's threads may make: one table, from which each class of threads gets its filter (seccomp(2)).
//! Anything else kills the process with SIGSYS, and the kernel's log tells the number of the call.
//!
//! Threads inherit the filter of the one that starts them: it has to allow what they may do, and theirs come on top
//! ([`crate::threads`]).

mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use table::{Argument, Rule, TABLE};

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Serves the owner's requests and most devices.
    Main,
    /// Runs one of the guest's CPUs, and serves its accesses to registers.
    Cpu,
    /// Serves the devices that wait for the host's files.
    Io,
    /// Starts threads of the classes above, but for the main one.
    Start,
}

/// All classes and their names.
const CLASSES: [(Class, &str); 4] =
    [(Class::Main, "main"), (Class::Cpu, "vcpu"), (Class::Io, "io"), (Class::Start, "starter")];

/// Restricts the calling thread, and those that it starts, for good.
pub(crate) fn install(class: Class) -> io::Result<()> {
    let program = compile(rules(class)).map_err(io::Error::other)?;
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}

/// [`install`], for a thread that has just been started. One that can't be restricted must not run: it ends the process.
pub(crate) fn install_or_exit(class: Class) {
    if let Err(error) = install(class) {
        eprintln!("can't filter the system calls of a thread: {error}");
        std::process::exit(1);
    }
}

/// The system calls that the threads of a VMM may make once it runs, and what for: a line for each class with their number, then
/// one for each rule with the classes that it is for.
pub fn describe() -> String {
    let mut text = String::new();
    for (class, name) in CLASSES {
        let calls: BTreeSet<_> = rules(class).map(|rule| rule.call).collect();
        text.push_str(&format!("{name}: {} system calls\n", calls.len()));
    }
    for rule in TABLE {
        let own = CLASSES.iter().filter(|(class, _)| rule.classes.contains(class));
        let classes: Vec<_> = own.map(|(_, name)| *name).collect();
        let name = rule.name.strip_prefix("SYS_").unwrap_or(rule.name);
        text.push_str(&format!("  {name:<17}  {:<20}  {}\n", classes.join(" "), rule.why));
    }
    text
}

fn rules(class: Class) -> impl Iterator<Item = &'static Rule> {
    let own = move |rule: &Rule| rule.classes.contains(&class);
    // Not `Main` alone: what it starts can do that.
    let inherited = move |rule: &Rule| class == Class::Start && rule.classes != [Class::Main];
    let all = TABLE.iter().enumerate();
    let rules = all.filter(move |(_, rule)| own(rule) || inherited(rule));
    rules.filter(move |(index, _)| !is_left_out(*index, class)).map(|(_, rule)| rule)
}

/// What a test has left out: a rule, by its place in the table, for one class.
#[cfg(debug_assertions)]
static LEFT_OUT: std::sync::OnceLock<(usize, Class)> = std::sync::OnceLock::new();

/// Leaves the rule of a line of [`describe`], counted from 0, out of the filters of the class with this name. Only in programs
/// that are built for tests, which show by it that no rule is there for nothing. `None` when there is none.
#[cfg(debug_assertions)]
pub fn leave_out(rule: usize, class: &str) -> Option<()> {
    let (class, _) = CLASSES.into_iter().find(|(_, name)| *name == class)?;
    TABLE.get(rule)?.classes.contains(&class).then_some(())?;
    LEFT_OUT.set((rule, class)).ok()
}

#[cfg(debug_assertions)]
fn is_left_out(rule: usize, class: Class) -> bool {
    LEFT_OUT.get() == Some(&(rule, class))
}

#[cfg(not(debug_assertions))]
fn is_left_out(_: usize, _: Class) -> bool {
    false
}

fn compile<'a>(rules: impl Iterator<Item = &'a Rule>) -> Result<BpfProgram, BackendError> {
    let mut by_call = BTreeMap::<_, Vec<SeccompRule>>::new();
    for rule in rules {
        let alternatives = by_call.entry(rule.call).or_default();
        if !rule.when.is_empty() {
            alternatives.push(SeccompRule::new(rule.when.iter().map(condition).collect::<Result<_, _>>()?)?);
        }
    }
    let arch = TargetArch::x86_64;
    SeccompFilter::new(by_call, SeccompAction::KillProcess, SeccompAction::Allow, arch)?.try_into()
}

fn condition(argument: &Argument) -> Result<SeccompCondition, BackendError> {
    let (index, operator, value) = match *argument {
        Argument::Is(index, value) => (index, SeccompCmpOp::Eq, value),
        Argument::Lacks(index, bits) => (index, SeccompCmpOp::MaskedEq(bits.into()), 0),
        Argument::Request(kind, number) => {
            (1, SeccompCmpOp::MaskedEq(0xffff), u32::from(kind) << 8 | u32::from(number))
        }
    };
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value.into())
}

#[cfg(test)]
mod tests;
