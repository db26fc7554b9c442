//! What happens in a round: it follows from the seed and the round's number alone.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

use crate::random::Random;

/// What the client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Create and start, which ctr does in one command.
    Run,
    Exec,
    Stop,
    Delete,
}

/// How a step shows that it has been reached.
#[derive(Clone, Copy)]
pub(crate) enum Sign {
    /// The client has been started.
    Asked,
    /// The bundle's directory, or a file in it.
    InBundle(&'static str),
    /// The pod's directory, or a file in it.
    InPod(&'static str),
    /// The pod's state file says so.
    State(fn(&Value) -> bool),
    /// containerd has announced it, for the container or for its exec.
    Event(&'static str, Subject),
    /// The container's output has arrived.
    Output,
    /// The pod's directory is gone.
    NoPod,
    /// The bundle is gone.
    NoBundle,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Container,
    Exec,
}

/// A moment in a pod's life.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    pub(crate) operation: Operation,
    pub(crate) name: &'static str,
    pub(crate) sign: Sign,
}

const fn step(operation: Operation, name: &'static str, sign: Sign) -> Step {
    Step { operation, name, sign }
}

/// The steps, in their order; their numbers begin with 1.
pub(crate) const STEPS: [Step; 22] = [
    step(Operation::Run, "create: bundle made", Sign::InBundle("")),
    step(Operation::Run, "create: shim started", Sign::InBundle("shim.pid")),
    step(Operation::Run, "create: shim has an address", Sign::InBundle("address")),
    step(Operation::Run, "create: pod's directory made", Sign::InPod("")),
    step(Operation::Run, "create: state written", Sign::InPod("state.json")),
    step(Operation::Run, "create: VMM started", Sign::State(|state| state["vmm"].is_object())),
    step(Operation::Run, "create: shares made", Sign::InPod("shared")),
    step(Operation::Run, "create: fs server started", Sign::State(|state| state["fs_server"].is_object())),
    step(
        Operation::Run,
        "create: container made",
        Sign::State(|state| state["containers"].as_array().is_some_and(|all| !all.is_empty())),
    ),
    step(Operation::Run, "create: announced", Sign::Event("/tasks/create", Subject::Container)),
    step(Operation::Run, "start: announced", Sign::Event("/tasks/start", Subject::Container)),
    step(Operation::Run, "run: output arrived", Sign::Output),
    step(Operation::Exec, "exec: asked", Sign::Asked),
    step(Operation::Exec, "exec: added", Sign::Event("/tasks/exec-added", Subject::Exec)),
    step(Operation::Exec, "exec: started", Sign::Event("/tasks/exec-started", Subject::Exec)),
    step(Operation::Exec, "exec: ended", Sign::Event("/tasks/exit", Subject::Exec)),
    step(Operation::Stop, "stop: asked", Sign::Asked),
    step(Operation::Stop, "stop: end announced", Sign::Event("/tasks/exit", Subject::Container)),
    step(Operation::Delete, "delete: asked", Sign::Asked),
    step(Operation::Delete, "delete: announced", Sign::Event("/tasks/delete", Subject::Container)),
    step(Operation::Delete, "delete: pod's directory gone", Sign::NoPod),
    step(Operation::Delete, "delete: bundle gone", Sign::NoBundle),
];

/// A process that a fault meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    Shim,
    Vmm,
    FsServer,
    Containerd,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL. containerd comes back after the pause.
    Kill(Victim),
    /// SIGSTOP, and SIGCONT after the pause.
    Stop(Victim),
    /// The file system of the pods' state is full.
    FullState,
    /// The file system of containerd's bundles is full.
    FullBundles,
    /// A process can open so few files more as the slack says.
    Descriptors(Victim),
    /// The pod's cgroup takes so few threads more as the slack says.
    Pids,
    /// The pod's cgroup gets so few MiB more as the slack says.
    Memory,
}

/// The faults, each with the steps at which there is something for it to meet.
const FAULTS: [(Fault, std::ops::RangeInclusive<usize>); 14] = [
    (Fault::Kill(Victim::Shim), 2..=21),
    (Fault::Kill(Victim::Vmm), 6..=20),
    (Fault::Kill(Victim::FsServer), 8..=20),
    (Fault::Kill(Victim::Containerd), 1..=22),
    (Fault::Stop(Victim::Shim), 2..=21),
    (Fault::Stop(Victim::Vmm), 6..=20),
    (Fault::Stop(Victim::FsServer), 8..=20),
    (Fault::Stop(Victim::Containerd), 1..=22),
    (Fault::FullState, 1..=20),
    (Fault::FullBundles, 1..=20),
    (Fault::Descriptors(Victim::Shim), 2..=20),
    (Fault::Descriptors(Victim::Vmm), 6..=20),
    (Fault::Pids, 1..=20),
    (Fault::Memory, 1..=20),
];

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shim => "shim",
            Self::Vmm => "VMM",
            Self::FsServer => "fs server",
            Self::Containerd => "containerd",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(victim) => write!(f, "kill {victim}"),
            Self::Stop(victim) => write!(f, "stop {victim}"),
            Self::FullState => f.write_str("state disk full"),
            Self::FullBundles => f.write_str("bundle disk full"),
            Self::Descriptors(victim) => write!(f, "few descriptors: {victim}"),
            Self::Pids => f.write_str("few pids"),
            Self::Memory => f.write_str("little memory"),
        }
    }
}

/// A container's root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    /// A directory, shared by the fs server.
    Directory,
    /// The image's layers, as extents of the image disk.
    Extents,
}

/// A round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) round: u64,
    pub(crate) fault: Fault,
    /// Number of the step, from 1.
    pub(crate) step: usize,
    /// How long after the step the fault comes.
    pub(crate) delay: Duration,
    /// How long a stopped process stays stopped, and containerd away.
    pub(crate) pause: Duration,
    /// How much is left of what gets scarce.
    pub(crate) slack: u64,
    pub(crate) root: Root,
}

impl Plan {
    /// Round `round` of `seed`. As many rounds as there are pairs of fault and step have each pair once, in an order of their
    /// own.
    pub(crate) fn new(seed: u64, round: u64) -> Self {
        let mut pairs = pairs();
        let turn = round / pairs.len() as u64;
        Random::new(seed, turn).shuffle(&mut pairs);
        let place = usize::try_from(round % pairs.len() as u64).unwrap_or(0);
        let (fault, step) = pairs.get(place).copied().unwrap_or((Fault::FullState, 1));
        // Far from the streams of turns.
        let mut random = Random::new(seed, round | 1 << 63);
        let delay = if random.below(2) == 0 { 0 } else { random.below(80) };
        let pause = if random.below(8) == 0 { 6000 } else { 20 + random.below(1500) };
        Self {
            seed,
            round,
            fault,
            step,
            delay: Duration::from_millis(delay),
            pause: Duration::from_millis(pause),
            slack: random.below(6),
            root: if random.below(3) == 0 { Root::Extents } else { Root::Directory },
        }
    }

    /// The step's properties.
    pub(crate) fn at(&self) -> Step {
        STEPS.get(self.step - 1).copied().unwrap_or(STEPS[0])
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault, step, delay, .. } = self;
        write!(f, "{fault} at {step} ({})", self.at().name)?;
        if !delay.is_zero() {
            write!(f, " + {} ms", delay.as_millis())?;
        }
        match fault {
            Fault::Stop(_) | Fault::Kill(Victim::Containerd) => {
                write!(f, ", for {} ms", self.pause.as_millis())?;
            }
            Fault::Descriptors(_) | Fault::Pids => write!(f, ", {} left", self.slack)?,
            Fault::Memory => write!(f, ", {} MiB left", self.slack)?,
            Fault::Kill(_) | Fault::FullState | Fault::FullBundles => {}
        }
        if self.root == Root::Extents { f.write_str(", root of extents") } else { Ok(()) }
    }
}

/// All pairs of a fault and a step's number.
pub(crate) fn pairs() -> Vec<(Fault, usize)> {
    FAULTS.into_iter().flat_map(|(fault, steps)| steps.map(move |step| (fault, step))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_follows_from_seed_and_number() {
        assert_eq!(Plan::new(7, 300), Plan::new(7, 300));
        let rounds = |seed| (0..50).map(|round| Plan::new(seed, round).to_string()).collect::<Vec<_>>();
        assert_ne!(rounds(7), rounds(8));
    }

    #[test]
    fn as_many_rounds_as_pairs_have_each_once() {
        let all = pairs();
        let count = all.len() as u64;
        for first in [0, count] {
            let plans: Vec<_> = (first..first + count).map(|round| Plan::new(3, round)).collect();
            for pair in &all {
                assert!(plans.iter().any(|plan| (plan.fault, plan.step) == *pair), "{pair:?}");
            }
        }
    }

    #[test]
    fn every_fault_has_its_steps_among_those_there_are() {
        assert!(pairs().iter().all(|(_, step)| (1..=STEPS.len()).contains(step)));
    }
}
