//! `monohull ps --security`.

use monohull_runtime::security::Confinement;
use monohull_runtime::state::{PodState, ProcessId};
use serde::Serialize;

use crate::failure::{Failure, print as print_text, print_json};
use crate::table::Table;
use crate::terminal;

/// One line of the output.
#[derive(Debug, Serialize)]
struct Row {
    pod: String,
    process: &'static str,
    pid: i32,
    #[serde(flatten)]
    confinement: Confinement,
}

/// Prints how the processes of `pods` are confined, those that live.
pub(super) fn print(pods: &[PodState], json: bool) -> Result<u8, Failure> {
    let rows = pods.iter().flat_map(processes).collect::<Result<Vec<_>, _>>()?;
    if json {
        print_json(&rows)?;
    } else {
        print_text(&table(&rows).render(terminal::width()))?;
    }
    Ok(0)
}

fn processes(pod: &PodState) -> impl Iterator<Item = Result<Row, Failure>> {
    let processes = [("owner", Some(pod.owner)), ("vmm", pod.vmm), ("fs", pod.fs_server)];
    processes.into_iter().filter_map(|(process, id)| {
        let id = id.filter(|id| id.is_alive())?;
        let looked = Confinement::of(id.pid);
        // What has ended while it was looked at is not confined any more.
        let ended = looked.is_err() && !ProcessId::is_alive(id);
        let row = looked.map(|confinement| Row { pod: pod.id.clone(), process, pid: id.pid, confinement });
        let failed =
            |error| Failure::of(&format!("cannot look at process {} of pod {}", id.pid, pod.id), &error);
        (!ended).then(|| row.map_err(failed))
    })
}

fn table(rows: &[Row]) -> Table {
    let titles = [
        "POD",
        "PROCESS",
        ">PID",
        ">USER",
        ">CAPS",
        ">FILTERS",
        "NEW RIGHTS",
        "ROOT",
        ">FILES",
        "NAMESPACES",
    ];
    let mut table = Table::new(&titles);
    for Row { pod, process, pid, confinement } in rows {
        let namespaces = confinement.namespaces.join(" ");
        table.push([
            pod.clone(),
            (*process).to_owned(),
            pid.to_string(),
            confinement.user.to_string(),
            confinement.capabilities.to_string(),
            confinement.seccomp_filters.to_string(),
            if confinement.no_new_privileges { "never" } else { "possible" }.to_owned(),
            if confinement.root_is_empty { "empty" } else { "files" }.to_owned(),
            confinement.open_files.to_string(),
            if namespaces.is_empty() { "the host's".to_owned() } else { namespaces },
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_what_is_in_force() {
        let confinement = Confinement {
            user: 1_879_048_199,
            namespaces: vec!["mnt", "net"],
            capabilities: 0,
            no_new_privileges: true,
            seccomp_filters: 1,
            root_is_empty: true,
            open_files: 30,
        };
        let row = Row { pod: "web".into(), process: "vmm", pid: 7, confinement };
        let text = table(&[row]).render(None);
        let cells: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(cells, ["web", "vmm", "7", "1879048199", "0", "1", "never", "empty", "30", "mnt", "net"]);
    }
}
