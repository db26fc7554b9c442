//! `monohull debug`.

mod bundle;
mod gather;
mod redact;

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use monohull_runtime::settings::Settings;

use crate::failure::{Failure, note, print};
use crate::table::Table;
use crate::{logs, ps, terminal, trace};

/// Write what a bug report needs about a pod into one file
///
/// The file is a tar.gz with versions, what `monohull check` finds, the settings, and of the pod: its state, timeline, log, use of
/// the host, cgroup, how its processes are confined, and the OCI configuration of each container. That is without values of
/// environment variables, arguments, contents of files, and annotations that are not known to be harmless. What containers
/// write is not in it. Look at it before you send it: names of images, paths and hosts are.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes:
  0  written      1  no such pod, or the file can't be written      2  wrong usage

Examples:
  monohull debug web
  monohull debug 3f2a -o /tmp/report.tar.gz      (the beginning of an id is enough)
  tar xzOf monohull-debug-web-*.tar.gz log.txt")]
pub(crate) struct Arguments {
    /// The pod's id, or the beginning of it; one that has ended will do
    pod: String,
    /// Look only in this containerd namespace
    #[arg(long)]
    namespace: Option<String>,
    /// The file to write, which must not exist [default: monohull-debug-POD-SECONDS.tar.gz]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn debug(arguments: &Arguments) -> Result<u8, Failure> {
    let loaded = Settings::load();
    let settings = loaded.as_ref().cloned().unwrap_or_default();
    let namespace = arguments.namespace.as_deref();
    let pods = ps::list_of(&settings)?;
    let running = trace::find(&pods, &arguments.pod, namespace);
    let log = match &running {
        Ok(pod) => logs::find(&settings, &pod.id, Some(&pod.namespace)).ok(),
        // The log is then all that there is.
        Err(_) => Some(logs::find(&settings, &arguments.pod, namespace)?),
    };
    let pod = running.ok();
    let id = pod.map(|pod| pod.id.clone()).or_else(|| log.as_ref().map(|log| log.pod.clone()));
    let id = id.unwrap_or_default();
    let entries = gather::all(loaded, pod, log.as_ref());
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let default = || PathBuf::from(format!("monohull-debug-{id}-{seconds}.tar.gz"));
    let path = arguments.output.clone().unwrap_or_else(default);
    bundle::write(&path, &id, seconds, &entries)
        .map_err(|e| Failure::of(&format!("cannot write {}", path.display()), &e))?;
    let mut table = Table::new(&["FILE", ">BYTES", "WHAT"]);
    for entry in &entries {
        table.push([entry.name.clone(), entry.content.len().to_string(), entry.what.to_owned()]);
    }
    print(&table.render(terminal::width()))?;
    note(&format!("written to {}", path.display()));
    Ok(0)
}
