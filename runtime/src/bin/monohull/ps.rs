//! `monohull ps`.

mod security;

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use monohull_runtime::settings::Settings;
use monohull_runtime::state::{self, PodState};
use serde::Serialize;

use crate::failure::{Failure, print, print_json};
use crate::table::Table;
use crate::terminal;

/// List running pods
///
/// Lists every pod of this host, whichever engine made it, from the pods' state files. A pod whose owner (the shim, or
/// `monohull run`) has died is marked "dead"; containerd cleans it up when it notices.
#[derive(Args, Debug)]
#[command(after_help = "\
Status:
  running   owner and VMM are alive
  starting  the VMM does not run yet
  ending    the VMM has ended, its owner is cleaning up
  dead      the owner has died

Exit codes:
  0  listed      1  the state can't be read      2  wrong usage

Examples:
  monohull ps
  monohull ps --json | jq -r '.[].id'
  monohull ps --security")]
pub(crate) struct Arguments {
    /// Print an array of {id, namespace, status, owner, vmm, memory_mib, cpus, containers, age_seconds}
    #[arg(long)]
    json: bool,
    /// Show how the processes of each pod are confined instead; with --json {pod, process, pid, user, namespaces, capabilities,
    /// no_new_privileges, seccomp_filters, root_is_empty, open_files}
    #[arg(long)]
    security: bool,
}

/// One line of the output.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    namespace: String,
    status: &'static str,
    owner: i32,
    vmm: Option<i32>,
    memory_mib: u32,
    cpus: u8,
    containers: Vec<String>,
    age_seconds: u64,
}

/// Runs the command.
pub(crate) fn ps(arguments: &Arguments) -> Result<u8, Failure> {
    let pods = list()?;
    if arguments.security {
        return security::print(&pods, arguments.json);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let rows: Vec<_> = pods.iter().map(|pod| row(pod, now)).collect();
    if arguments.json {
        print_json(&rows)?;
    } else {
        print(&table(&rows).render(terminal::width()))?;
    }
    Ok(0)
}

/// The pods of this host.
pub(crate) fn list() -> Result<Vec<PodState>, Failure> {
    list_of(&Settings::load().map_err(|e| Failure::of("cannot load the settings", &e))?)
}

/// [`list`], with the settings already loaded.
pub(crate) fn list_of(settings: &Settings) -> Result<Vec<PodState>, Failure> {
    state::list(&settings.state_dir)
        .map_err(|e| Failure::of("cannot list the pods (they belong to root)", &e))
}

/// What [`status`] may be.
pub(crate) const STATUSES: [&str; 4] = ["running", "starting", "ending", "dead"];

/// How far a pod has come.
pub(crate) fn status(pod: &PodState) -> &'static str {
    match (pod.owner.is_alive(), pod.vmm.map(state::ProcessId::is_alive)) {
        (false, _) => "dead",
        (true, None) => "starting",
        (true, Some(true)) => "running",
        (true, Some(false)) => "ending",
    }
}

fn row(pod: &PodState, now: u64) -> Row {
    Row {
        id: pod.id.clone(),
        namespace: pod.namespace.clone(),
        status: status(pod),
        owner: pod.owner.pid,
        vmm: pod.vmm.map(|vmm| vmm.pid),
        memory_mib: pod.memory_mib,
        cpus: pod.cpus,
        containers: pod.containers.iter().map(|container| container.id.clone()).collect(),
        age_seconds: now.saturating_sub(pod.created_at),
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table =
        Table::new(&["POD", "NAMESPACE", "STATUS", ">OWNER", ">VMM", ">MIB", ">CPUS", ">AGE", "CONTAINERS"]);
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    for row in rows {
        table.push([
            row.id.clone(),
            or_dash(row.namespace.clone()),
            row.status.to_owned(),
            row.owner.to_string(),
            or_dash(row.vmm.map(|pid| pid.to_string()).unwrap_or_default()),
            row.memory_mib.to_string(),
            row.cpus.to_string(),
            age(row.age_seconds),
            or_dash(row.containers.join(" ")),
        ]);
    }
    table
}

/// The largest two units: "3d 4h".
pub(crate) fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m {}s", seconds % 60),
        3600..86_400 => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use monohull_runtime::state::ProcessId;

    use super::*;

    fn pod(owner: ProcessId, vmm: Option<ProcessId>) -> PodState {
        PodState {
            version: state::VERSION,
            id: "web".into(),
            namespace: String::new(),
            kubernetes: None,
            owner,
            vmm,
            template: None,
            snapshot: None,
            fs_server: None,
            containers: Vec::new(),
            created_at: 1000,
            memory_mib: 512,
            cpus: 1,
            timeline: Vec::new(),
        }
    }

    #[test]
    fn status_tells_who_lives() {
        let own = ProcessId::own().unwrap();
        let dead = ProcessId { start_time: own.start_time + 1, ..own };
        assert_eq!(row(&pod(own, Some(own)), 0).status, "running");
        assert_eq!(row(&pod(own, None), 0).status, "starting");
        assert_eq!(row(&pod(own, Some(dead)), 0).status, "ending");
        assert_eq!(row(&pod(dead, Some(own)), 0).status, "dead");
        assert!(["running", "starting", "ending", "dead"].iter().all(|status| STATUSES.contains(status)));
    }

    #[test]
    fn empty_cells_are_dashes() {
        let own = ProcessId { pid: 7, start_time: 0 };
        let text = table(&[row(&pod(own, None), 1061)]).render(None);
        let line = text.lines().nth(1).unwrap();
        let cells: Vec<_> = line.split_whitespace().collect();
        assert_eq!(cells, ["web", "-", "dead", "7", "-", "512", "1", "1m", "1s", "-"]);
    }

    #[test]
    fn age_has_two_units() {
        assert_eq!(age(59), "59s");
        assert_eq!(age(3599), "59m 59s");
        assert_eq!(age(86_399), "23h 59m");
        assert_eq!(age(90_000), "1d 1h");
    }
}
