//! `monohull template`.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use monohull_runtime::settings::Settings;
use monohull_runtime::template::{self, Info};
use monohull_runtime::text;
use serde::Serialize;

use crate::failure::{Failure, note, print, print_json};
use crate::table::Table;
use crate::{ps, terminal};

const MIB: u64 = 1 << 20;

/// Look at what pods are forked from, make it anew, remove it
///
/// A pod's VM is forked from a template: a guest that has booted once, whose pages all pods share until they write to them.
/// There is nothing to be done for that: the first pod boots, and the template is made meanwhile. It is made anew once a day
/// and when the kernel, the initramfs, the VMM or the settings have changed. A pod without one boots.
#[derive(Args, Debug)]
#[command(after_help = "\
Each of the commands has its own --help, with exit codes.

Examples:
  monohull template ls
  monohull template build        (for an image of a node, a benchmark, a test)
  monohull template rm --all")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Ls(Ls),
    Build(Build),
    Rm(Rm),
}

/// List templates
#[derive(Args, Debug)]
#[command(after_help = "\
Use:
  current   the next pod is forked from it
  old       nobody is forked from it any more

Exit codes:
  0  listed      1  they can't be read      2  wrong usage")]
struct Ls {
    /// Print an array of {key, use, pods, kernel, files, memory_mib, cpus, nics, created_at, took_ms, bytes}
    #[arg(long)]
    json: bool,
}

/// Make the templates anew, now
///
/// There are two: one for pods with small memory limits, and one for all others. Prints the list.
#[derive(Args, Debug)]
#[command(
    after_help = "Exit codes:\n  0  made      1  not made: standard error tells why      2  wrong usage"
)]
struct Build {}

/// Remove templates
///
/// Pods that run are not affected. The next pod boots, and the template is made anew.
#[derive(Args, Debug)]
#[command(after_help = "Exit codes:\n  0  removed      1  no such template      2  wrong usage")]
struct Rm {
    /// Its key, or the beginning of it
    #[arg(required_unless_present = "all")]
    key: Option<String>,
    /// All of them
    #[arg(long, conflicts_with = "key")]
    all: bool,
}

/// One line of the list.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    info: Info,
    r#use: &'static str,
    /// Running pods that were forked from it.
    pods: usize,
}

/// Runs the command.
pub(crate) fn template(arguments: &Arguments) -> Result<u8, Failure> {
    let settings = Settings::load().map_err(|e| Failure::of("cannot load the settings", &e))?;
    match &arguments.command {
        Command::Ls(ls) => list(&settings, ls),
        Command::Build(Build {}) => build(&settings),
        Command::Rm(rm) => remove(&settings, rm),
    }
}

fn list(settings: &Settings, arguments: &Ls) -> Result<u8, Failure> {
    let templates = all(settings)?;
    let pods = ps::list_of(settings)?;
    let current = template::current_keys(settings).unwrap_or_default();
    let row = |info: Info| Row {
        r#use: if current.contains(&info.key) { "current" } else { "old" },
        pods: pods.iter().filter(|pod| pod.template.as_ref() == Some(&info.key)).count(),
        info,
    };
    let rows: Vec<_> = templates.into_iter().map(row).collect();
    if arguments.json {
        print_json(&rows)?;
    } else {
        print(&table(&rows).render(terminal::width()))?;
        if let Some(failure) = template::last_failure(settings) {
            note(&format!("The last attempt to make one failed: {failure}"));
        }
    }
    Ok(0)
}

fn all(settings: &Settings) -> Result<Vec<Info>, Failure> {
    template::list(settings).map_err(|e| Failure::of("cannot list the templates (they belong to root)", &e))
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(&["KEY", "USE", ">PODS", ">MEMORY", ">CPUS", ">KEPT", "AGE", "KERNEL"]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    for Row { info, r#use, pods } in rows {
        table.push([
            info.key.clone(),
            (*r#use).to_owned(),
            pods.to_string(),
            format!("{} MiB", info.memory_mib),
            info.cpus.to_string(),
            format!("{} MiB", info.bytes.div_ceil(MIB)),
            ps::age(now.saturating_sub(info.created_at)),
            info.kernel.display().to_string(),
        ]);
    }
    table
}

fn build(settings: &Settings) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::of("cannot start the event loop", &e))?;
    runtime
        .block_on(template::build(settings))
        .map_err(|error| Failure::new(format!("no template is made: {}", text::chain(&error))))?;
    list(settings, &Ls { json: false })
}

fn remove(settings: &Settings, arguments: &Rm) -> Result<u8, Failure> {
    let keys = match &arguments.key {
        Some(key) => vec![key.clone()],
        None => all(settings)?.into_iter().map(|info| info.key).collect(),
    };
    for key in keys {
        template::remove(settings, &key).map_err(|e| Failure::new(text::chain(&e)))?;
    }
    Ok(0)
}
