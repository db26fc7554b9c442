//! `monohull logs`.

use std::collections::HashMap;

use clap::Args;
use monohull_runtime::log::{self, KeptLog, Part};
use monohull_runtime::settings::Settings;
use monohull_runtime::state::PodState;

use crate::failure::{Failure, print};
use crate::ps;

/// Show what a pod's parts have said
///
/// Prints the last lines of the pod's shim (or of `monohull run`), of its VMM and fs server, which say something only when they
/// fail, and the end of its guest kernel's log if that has panicked. Also for pods that have ended, the last 32 of them.
#[derive(Args, Debug)]
#[command(after_help = "\
What containers write is their engine's to show (`kubectl logs`, `nerdctl logs`).

Exit codes:
  0  printed      1  no such pod, or several      2  wrong usage

Examples:
  monohull logs web
  monohull logs 3f2a -f                 (the beginning of an id is enough)
  monohull logs web --part vmm -n 20")]
pub(crate) struct Arguments {
    /// The pod's id, or the beginning of it
    pod: String,
    /// Look only in this containerd namespace
    #[arg(long)]
    namespace: Option<String>,
    /// Print at most so many lines of each part
    #[arg(long, short = 'n', value_name = "N", default_value_t = 100)]
    lines: usize,
    /// Print the lines of this part alone: shim, run, vmm, fs or guest
    #[arg(long, value_parser = part)]
    part: Option<Part>,
    /// Go on with what is said from now on, until the pod has ended
    #[arg(long, short)]
    follow: bool,
}

fn part(name: &str) -> Result<Part, String> {
    let known = Part::ALL.into_iter().find(|part| part.name() == name);
    known.ok_or_else(|| "it is shim, run, vmm, fs or guest".to_owned())
}

/// Runs the command.
pub(crate) fn logs(arguments: &Arguments) -> Result<u8, Failure> {
    let settings = Settings::load().map_err(|e| Failure::of("cannot load the settings", &e))?;
    let log = find(&settings, &arguments.pod, arguments.namespace.as_deref())?;
    let failed = |error| Failure::of(&format!("cannot read the log of pod {}", log.pod), &error);
    // From before the first read, so that nothing is missed between the two.
    let pods = ps::list_of(&settings)?;
    let owner =
        pods.iter().find(|pod| is_of(&log, pod)).map(|pod| pod.owner).filter(|owner| owner.is_alive());
    let follower = match owner {
        Some(owner) if arguments.follow => Some(log.follow(owner).map_err(failed)?),
        _ => None,
    };
    print(&last_lines(&log.read().map_err(failed)?, arguments.lines, arguments.part))?;
    let Some(mut follower) = follower else { return Ok(0) };
    while let Some(text) = follower.more().map_err(failed)? {
        print(&last_lines(&text, usize::MAX, arguments.part))?;
    }
    Ok(0)
}

fn is_of(log: &KeptLog, pod: &PodState) -> bool {
    (&log.namespace, &log.pod) == (&pod.namespace, &pod.id)
}

/// The log of the pod with that id, or else of the only one whose id begins so.
pub(crate) fn find(settings: &Settings, id: &str, namespace: Option<&str>) -> Result<KeptLog, Failure> {
    let logs = log::list(&settings.state_dir)
        .map_err(|e| Failure::of("cannot list the logs of pods (they belong to root)", &e))?;
    pick(logs, id, namespace)
}

fn pick(mut logs: Vec<KeptLog>, id: &str, namespace: Option<&str>) -> Result<KeptLog, Failure> {
    logs.retain(|log| {
        log.pod.starts_with(id) && namespace.is_none_or(|namespace| namespace == log.namespace)
    });
    if logs.iter().any(|log| log.pod == id) {
        logs.retain(|log| log.pod == id);
    }
    let names: Vec<_> = logs.iter().map(|log| format!("{}/{}", log.namespace, log.pod)).collect();
    match (logs.pop(), logs.is_empty()) {
        (Some(log), true) => Ok(log),
        (None, _) => Err(Failure::new(format!(
            "nothing is kept of a pod {id:?}: `monohull ps` lists those that run, and of 32 that have ended something is kept"
        ))),
        _ => Err(Failure::new(format!(
            "{id:?} is the beginning of {}: give more of the id, or --namespace",
            names.join(", ")
        ))),
    }
}

/// The last lines of each part, or of one, in the order in which they were written.
pub(crate) fn last_lines(text: &str, most: usize, only: Option<Part>) -> String {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    let mut taken: Vec<&str> = Vec::new();
    for line in text.lines().rev() {
        let part = Part::of_line(line);
        if only.is_some() && part != only {
            continue;
        }
        let count = counts.entry(part.map_or("", Part::name)).or_default();
        *count += 1;
        if *count <= most {
            taken.push(line);
        }
    }
    taken.into_iter().rev().flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use monohull_runtime::log::Log;

    use super::*;

    #[test]
    fn the_last_lines_of_each_part_are_taken_in_their_order() {
        let line = |number: u32, part: &str| format!("level=info msg={number} part={part} pod=p\n");
        let text: String = [(1, "shim"), (2, "vmm"), (3, "shim"), (4, "shim"), (5, "guest")]
            .map(|(n, p)| line(n, p))
            .concat();
        assert_eq!(last_lines(&text, 1, None), [line(2, "vmm"), line(4, "shim"), line(5, "guest")].concat());
        assert_eq!(last_lines(&text, 2, Some(Part::Shim)), [line(3, "shim"), line(4, "shim")].concat());
        assert_eq!(last_lines(&text, 9, None), text);
    }

    #[test]
    fn a_pods_log_is_found_by_its_id_before_the_beginning_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { state_dir: dir.path().to_owned(), ..Settings::default() };
        for (namespace, pod) in [("", "web"), ("n", "web2"), ("n", "db"), ("m", "db")] {
            Log::unread(pod).keep(&settings, namespace);
        }
        let found = |id, namespace| find(&settings, id, namespace).map(|log| log.pod);
        assert_eq!(found("web", None).unwrap(), "web");
        assert_eq!(found("web", Some("n")).unwrap(), "web2");
        assert_eq!(found("d", Some("m")).unwrap(), "db");
        assert!(found("d", None).unwrap_err().message.contains("n/db"));
        assert!(found("none", None).unwrap_err().message.contains("nothing is kept"));
    }
}
