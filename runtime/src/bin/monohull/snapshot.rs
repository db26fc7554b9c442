//! `monohull snapshot`.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use monohull_runtime::settings::Settings;
use monohull_runtime::snapshot::{self, Info, Manifest};
use monohull_runtime::{state, text};

use crate::failure::{Failure, print, print_json};
use crate::prepare::random_name;
use crate::table::Table;
use crate::{ps, terminal, trace};

const MIB: u64 = 1 << 20;

/// Save a running pod, to start copies of it with `monohull clone`
///
/// The pod stands still while its memory and the writable files of its disk are saved, and then goes on. Its containers must
/// have roots of blocks: `monohull run --block`, or one of containerd's block snapshotters. What else can't be saved is refused by
/// its name. A snapshot holds all that the pod has in memory, secrets too: it belongs to root. Prints the snapshot's name.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "\
Exit codes:
  0  saved      1  not saved: standard error tells why, and the pod goes on      2  wrong usage

Examples:
  monohull snapshot web                     (prints a name that it makes up)
  monohull snapshot web ready
  monohull snapshot web /data/snapshots/web (a directory, which must not exist yet)
  monohull clone ready
  monohull snapshot ls")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The pod's id, or the beginning of it
    #[arg(required = true)]
    pod: Option<String>,
    /// Name of the snapshot, or with a slash in it a directory to make [default: random]
    name: Option<String>,
    /// Look only in this containerd namespace
    #[arg(long)]
    namespace: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Ls(Ls),
    Rm(Rm),
}

/// List snapshots
#[derive(Args, Debug)]
#[command(after_help = "Exit codes:\n  0  listed      1  they can't be read      2  wrong usage")]
struct Ls {
    /// Print an array of {name, pod, namespace, created_at, paused_ms, memory_mib, cpus, bytes, extents, containers, …}
    #[arg(long)]
    json: bool,
}

/// Remove snapshots
///
/// Pods that were copied from them are not affected.
#[derive(Args, Debug)]
#[command(after_help = "Exit codes:\n  0  removed      1  no such snapshot      2  wrong usage")]
struct Rm {
    /// Its name, or its directory
    #[arg(required_unless_present = "all")]
    name: Option<String>,
    /// All that have names
    #[arg(long, conflicts_with = "name")]
    all: bool,
}

/// Runs the command.
pub(crate) fn snapshot(arguments: &Arguments) -> Result<u8, Failure> {
    let settings = Settings::load().map_err(|e| Failure::of("cannot load the settings", &e))?;
    match (&arguments.command, &arguments.pod) {
        (Some(Command::Ls(ls)), _) => list(&settings, ls),
        (Some(Command::Rm(rm)), _) => remove(&settings, rm),
        (None, Some(pod)) => take(&settings, pod, arguments),
        (None, None) => Err(Failure::new("no pod is named").with_code(2)),
    }
}

fn take(settings: &Settings, pod: &str, arguments: &Arguments) -> Result<u8, Failure> {
    let pods = ps::list_of(settings)?;
    let pod = trace::find(&pods, pod, arguments.namespace.as_deref())?;
    let dir = state::pod_dir(&settings.state_dir, &pod.namespace, &pod.id);
    let dir = dir.map_err(|e| Failure::new(text::chain(&e)))?;
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None => random_name().map_err(|e| Failure::of("cannot make a name", &e))?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::of("cannot start the event loop", &e))?;
    let taken = runtime.block_on(async {
        // An end by a signal leaves nothing behind.
        let mut signals =
            crate::session::Signals::new().map_err(|e| Failure::of("cannot catch signals", &e))?;
        tokio::select! {
            taken = snapshot::take(settings, &dir, &name) => taken.map_err(|e| Failure::new(text::chain(&e))),
            number = signals.terminating() => {
                Err(Failure::new("stopped by a signal; the pod goes on").with_code(crate::session::killed_by(number)))
            }
        }
    });
    taken?;
    print(&format!("{name}\n"))?;
    Ok(0)
}

fn list(settings: &Settings, arguments: &Ls) -> Result<u8, Failure> {
    let snapshots = all(settings)?;
    if arguments.json {
        print_json(&snapshots)?;
    } else {
        print(&table(&snapshots).render(terminal::width()))?;
    }
    Ok(0)
}

fn all(settings: &Settings) -> Result<Vec<Info>, Failure> {
    snapshot::list(settings).map_err(|e| Failure::of("cannot list the snapshots (they belong to root)", &e))
}

fn table(snapshots: &[Info]) -> Table {
    let mut table = Table::new(&["SNAPSHOT", "POD", ">MEMORY", ">KEPT", ">PAUSED", "AGE", "CONTAINERS"]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    for Info { name, manifest } in snapshots {
        let Manifest { pod, memory_mib, bytes, paused_ms, created_at, .. } = manifest;
        table.push([
            name.clone(),
            pod.clone(),
            format!("{memory_mib} MiB"),
            format!("{} MiB", bytes.div_ceil(MIB)),
            format!("{paused_ms} ms"),
            ps::age(now.saturating_sub(*created_at)),
            manifest.containers().join(" "),
        ]);
    }
    table
}

fn remove(settings: &Settings, arguments: &Rm) -> Result<u8, Failure> {
    let names = match &arguments.name {
        Some(name) => vec![name.clone()],
        None => all(settings)?.into_iter().map(|info| info.name).collect(),
    };
    for name in names {
        snapshot::remove(settings, &name).map_err(|e| Failure::new(text::chain(&e)))?;
    }
    Ok(0)
}
