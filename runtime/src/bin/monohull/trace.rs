//! `monohull trace`, and the timeline that `monohull run --timeline` prints.

use clap::Args;
use monohull_runtime::state::PodState;
use monohull_runtime::timeline::Mark;
use serde::Serialize;

use crate::failure::{Failure, print, print_json};
use crate::table::Table;
use crate::{ps, terminal};

/// The width of output that goes to no terminal.
const DEFAULT_WIDTH: usize = 100;
/// The shortest bar column.
const MIN_BAR: usize = 10;

/// Show how a pod started, step by step
///
/// Prints the boot timeline of a running pod: when each step was done, in milliseconds since the first, how long it took
/// since the one before, and that time as a bar.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes:
  0  printed      1  no such pod, or several      2  wrong usage

Examples:
  monohull trace web
  monohull trace 3f2a            (the beginning of an id is enough)
  monohull trace web --namespace k8s.io --json")]
pub(crate) struct Arguments {
    /// The pod's id, or the beginning of it
    pod: String,
    /// Look only in this containerd namespace
    #[arg(long)]
    namespace: Option<String>,
    /// Print {pod, namespace, steps: [{step, at_us, delta_us}]}
    #[arg(long)]
    json: bool,
}

/// A mark, in microseconds since the first.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Step {
    step: String,
    at_us: u64,
    delta_us: u64,
}

#[derive(Debug, Serialize)]
struct Trace<'a> {
    pod: &'a str,
    namespace: &'a str,
    steps: Vec<Step>,
}

/// Runs the command.
pub(crate) fn trace(arguments: &Arguments) -> Result<u8, Failure> {
    let pods = ps::list()?;
    let pod = find(&pods, &arguments.pod, arguments.namespace.as_deref())?;
    if arguments.json {
        let steps = steps(&pod.timeline);
        print_json(&Trace { pod: &pod.id, namespace: &pod.namespace, steps })?;
    } else {
        print(&render(&pod.timeline, terminal::width()))?;
    }
    Ok(0)
}

/// The pod with that id, or else the only one whose id begins so.
pub(crate) fn find<'a>(
    pods: &'a [PodState],
    id: &str,
    namespace: Option<&str>,
) -> Result<&'a PodState, Failure> {
    let here = || pods.iter().filter(|pod| namespace.is_none_or(|namespace| namespace == pod.namespace));
    let mut found: Vec<_> = here().filter(|pod| pod.id == id).collect();
    if found.is_empty() {
        found = here().filter(|pod| pod.id.starts_with(id)).collect();
    }
    match found.as_slice() {
        [pod] => Ok(pod),
        [] => Err(Failure::new(format!("no pod {id:?} runs here: `monohull ps` lists them"))),
        several => {
            let names: Vec<_> = several.iter().map(|pod| format!("{}/{}", pod.namespace, pod.id)).collect();
            Err(Failure::new(format!(
                "{id:?} is the beginning of {}: give more of the id, or --namespace",
                names.join(", ")
            )))
        }
    }
}

/// The timeline as a table that fits a terminal of that width.
pub(crate) fn render(marks: &[Mark], width: Option<usize>) -> String {
    let steps = steps(marks);
    let total = steps.last().map_or(0, |step| step.at_us);
    let table = |room: usize| {
        let mut table = Table::new(&["STEP", ">AT ms", ">DELTA ms", ""]);
        for step in &steps {
            table.push([step.step.clone(), ms(step.at_us), ms(step.delta_us), bar(step, total, room)]);
        }
        table
    };
    let room = width.unwrap_or(DEFAULT_WIDTH).saturating_sub(table(0).width_before_last());
    table(room.max(MIN_BAR)).render(None)
}

fn steps(marks: &[Mark]) -> Vec<Step> {
    let mut marks: Vec<_> = marks.iter().collect();
    marks.sort_by_key(|mark| mark.at_us);
    let first = marks.first().map_or(0, |mark| mark.at_us);
    let mut before = first;
    let step = |mark: &Mark| {
        let step = Step { step: mark.step.clone(), at_us: mark.at_us - first, delta_us: mark.at_us - before };
        before = mark.at_us;
        step
    };
    marks.into_iter().map(step).collect()
}

fn ms(us: u64) -> String {
    format!("{}.{:02}", us / 1000, us % 1000 / 10)
}

/// From where the step before ended to where this one did, on a scale of `room` characters for the whole.
fn bar(step: &Step, total: u64, room: usize) -> String {
    let scale = |us: u64| {
        let at = u128::from(us) * room as u128 / u128::from(total.max(1));
        usize::try_from(at).unwrap_or(room)
    };
    let (begin, end) = (scale(step.at_us - step.delta_us), scale(step.at_us));
    if step.delta_us > 0 && begin == end {
        // Too short for a block of its own.
        return " ".repeat(begin.min(room.saturating_sub(1))) + "▏";
    }
    " ".repeat(begin) + &"█".repeat(end - begin)
}

#[cfg(test)]
mod tests {
    use monohull_runtime::state::{ProcessId, VERSION};

    use super::*;

    fn mark(step: &str, at_us: u64) -> Mark {
        Mark { step: step.into(), at_us }
    }

    fn pod(namespace: &str, id: &str) -> PodState {
        PodState {
            version: VERSION,
            id: id.into(),
            namespace: namespace.into(),
            kubernetes: None,
            owner: ProcessId { pid: 1, start_time: 1 },
            vmm: None,
            template: None,
            fs_server: None,
            containers: Vec::new(),
            created_at: 0,
            memory_mib: 1,
            cpus: 1,
            timeline: Vec::new(),
        }
    }

    #[test]
    fn table_counts_from_the_first_mark_whatever_the_order() {
        let text = render(
            &[mark("agent ready", 5_030_000), mark("begin", 5_000_000), mark("vmm", 5_010_000)],
            Some(40),
        );
        let expected = "\
STEP         AT ms  DELTA ms
begin         0.00      0.00
vmm          10.00     10.00  ███
agent ready  30.00     20.00     ███████
";
        assert_eq!(text, expected);
    }

    #[test]
    fn bars_fit_the_terminal_and_short_steps_are_seen() {
        let marks = [mark("a", 0), mark("b", 1), mark("c", 1_000_000), mark("d", 1_000_001)];
        for width in [20, 60, 200] {
            let text = render(&marks, Some(width));
            let before = "STEP    AT ms  DELTA ms  ".len() + 2;
            assert!(text.lines().all(|line| line.chars().count() <= width.max(before + MIN_BAR)), "{text}");
            let seen = |line: &str| line.contains(['▏', '█']);
            assert!(text.lines().skip(2).all(seen), "{text}");
        }
    }

    #[test]
    fn empty_timeline_is_a_heading() {
        assert_eq!(render(&[], None), "STEP  AT ms  DELTA ms\n");
    }

    #[test]
    fn pod_is_found_by_its_id_before_the_beginning_of_another() {
        let pods = [pod("", "web"), pod("", "web2"), pod("k8s.io", "db")];
        assert_eq!(find(&pods, "web", None).unwrap().id, "web");
        assert_eq!(find(&pods, "d", None).unwrap().id, "db");
        assert!(find(&pods, "w", None).unwrap_err().message.contains("/web2"));
        assert!(find(&pods, "db", Some("moby")).is_err());
        assert!(find(&pods, "none", None).is_err());
    }
}
