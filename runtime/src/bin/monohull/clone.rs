//! `monohull clone`.

mod several;

use clap::Args;
use monohull_runtime::pod::{CopyConfig, Pod, PodError};
use monohull_runtime::process::Process;
use monohull_runtime::snapshot::Snapshot;
use monohull_runtime::text;
use monohull_runtime::timeline::Timeline;
use rustix::process::{Pid, getppid, set_parent_process_death_signal};

use crate::failure::{Failure, note};
use crate::owner::Owner;
use crate::prepare::stdio;
use crate::run::{OWN_FAILURE, private_namespaces};
use crate::session::{self, Signals};
use crate::{terminal, trace};

/// Start copies of a pod that `monohull snapshot` has saved
///
/// A copy goes on at the instruction where the original was saved, with all its processes, its memory and its files; what it changes
/// from then on is its own. Before they go on it is given other random numbers, another host name (its own name) and the time. It has
/// no network but its own loopback interface; connections that the original had are gone. Needs no daemon, only root.
///
/// The streams of the container are this command's, as with `monohull run`. With several copies each line is preceded by the
/// copy's name, and the containers' input is at its end. Nothing is left of a copy when its container ends.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes:
  the container's own; 128 + n if signal n killed it. Of several copies that of the first in order that is not 0
  125  Monohull itself failed, and said why on standard error

Signals: INT, TERM, HUP and QUIT go to the container's first process; the third ends the pod.

Examples:
  monohull run --block --image app.tar --name web
  monohull snapshot web ready
  monohull clone ready
  monohull clone ready --count 10 --name worker      (worker-1 to worker-10)")]
pub(crate) struct Arguments {
    /// The snapshot's name, or with a slash in it its directory
    pub(crate) snapshot: String,
    /// How many copies to start
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) count: u32,
    /// Name of the copy and its host name; of several, each has its number behind it [default: random]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The container whose streams and exit code these are [default: the first of the pod]
    #[arg(long, value_name = "ID")]
    pub(crate) container: Option<String>,
    /// Give the container our standard input [default: unless it is a terminal that the container does not use]
    #[arg(long, short, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) interactive: Option<bool>,
    /// Print to standard error afterwards how the start went, step by step
    #[arg(long)]
    pub(crate) timeline: bool,
    /// End when this process, our parent, has ended
    #[arg(long, hide = true, value_name = "PID")]
    pub(crate) parent: Option<i32>,
}

/// Runs the command.
pub(crate) fn clone(arguments: &Arguments) -> Result<u8, Failure> {
    let result = if arguments.count > 1 { several::run(arguments) } else { one(arguments) };
    result.map_err(|failure| match failure.code {
        1 => failure.with_code(OWN_FAILURE),
        _ => failure,
    })
}

fn one(arguments: &Arguments) -> Result<u8, Failure> {
    let timeline = Timeline::new();
    timeline.mark("clone called");
    if let Some(parent) = arguments.parent {
        follow(parent)?;
    }
    let owner = Owner::begin(arguments.name.as_deref())?;
    let settings = owner.settings.clone();
    // Before there are other threads: they inherit the namespaces.
    private_namespaces()?;
    let failed = |error: &dyn std::error::Error| Failure::new(text::chain(error));
    let snapshot = Snapshot::open(&settings, &arguments.snapshot).map_err(|e| failed(&e))?;
    let containers = snapshot.manifest().containers();
    let container = match (&arguments.container, containers.first()) {
        (Some(id), _) => id.clone(),
        (None, Some(first)) => (*first).to_owned(),
        (None, None) => return Err(Failure::new("the snapshot's pod has no container to go on")),
    };
    let terminal = snapshot.manifest().has_terminal(&container);
    let wanted = vec![(container.clone(), stdio(terminal, arguments.interactive))];
    let config = CopyConfig { settings, id: owner.name.clone(), stdio: wanted, timeline: timeline.clone() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::of("cannot start the event loop", &e))?;
    let result = runtime.block_on(async {
        let mut signals = Signals::new().map_err(|e| Failure::of("cannot catch signals", &e))?;
        // A signal drops the pod on its way, and that kills its VM.
        let (pod, processes) = tokio::select! {
            started = Pod::start_copy(config, &snapshot) => started.map_err(|e| failed(&e))?,
            number = signals.terminating() => return Ok(session::killed_by(number)),
        };
        drop(snapshot);
        let process = of(processes, &container)?;
        session::attend_to_end(&pod, &process, terminal, &mut signals).await
    });
    runtime.shutdown_background();
    if arguments.timeline {
        trace::render(&timeline.marks(), terminal::width()).lines().for_each(note);
    }
    result
}

fn of(processes: Vec<(String, Process)>, container: &str) -> Result<Process, Failure> {
    let found = processes.into_iter().find(|(id, _)| id == container).map(|(_, process)| process);
    found.ok_or_else(|| {
        Failure::of("cannot go on", &PodError::NotFound(format!("there is no container {container}")))
    })
}

/// Ends this process with its parent.
fn follow(parent: i32) -> Result<(), Failure> {
    set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
        .map_err(|e| Failure::of("cannot watch the parent process", &e))?;
    // It may have ended before.
    if getppid().map(Pid::as_raw_nonzero).map(std::num::NonZero::get) == Some(parent) {
        return Ok(());
    }
    Err(Failure::new("the process that wanted this copy has ended"))
}
