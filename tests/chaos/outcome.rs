//! What became of rounds: each alone, and all of them by fault and step.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use monohull_tests::table::Table;

use crate::plan::{Plan, STEPS, pairs};

/// What became of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// The pod lived as if nothing had been.
    Ok,
    /// Something was refused or ended with words that say why, and nothing is left.
    ClearError,
    /// Something is left behind.
    Leak,
    /// A call did not end, or the pod can't be removed.
    Stuck,
    /// An error without words, or a panic.
    Unclear,
    /// The next pod does not start.
    NextPod,
    /// The fault's step did not come although nothing went wrong, or the harness failed.
    Harness,
}

impl Outcome {
    /// Whether it is as promised.
    pub(crate) fn is_good(self) -> bool {
        matches!(self, Self::Ok | Self::ClearError)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::ClearError => "clear error",
            Self::Leak => "LEAK",
            Self::Stuck => "STUCK",
            Self::Unclear => "UNCLEAR ERROR",
            Self::NextPod => "NEXT POD FAILS",
            Self::Harness => "HARNESS FAILS",
        })
    }
}

/// A round that is over.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) plan: Plan,
    pub(crate) outcome: Outcome,
    pub(crate) seconds: f64,
    /// Whether the fault had something to meet.
    pub(crate) met: bool,
    /// What the client was told, or what is left.
    pub(crate) words: String,
}

impl Report {
    /// A line of `rounds.tsv`.
    pub(crate) fn line(&self) -> String {
        let Self { plan, outcome, seconds, words, .. } = self;
        let words = words.replace(['\t', '\n'], " ");
        format!(
            "{}\t{}\t{}\t{}\t{outcome}\t{seconds:.1}\t{words}\n",
            plan.seed, plan.round, plan.fault, plan.step
        )
    }
}

/// How many rounds of a kind were ok, clear errors, failures.
#[derive(Clone, Copy, Debug, Default)]
struct Count([u32; 3]);

impl Count {
    fn add(&mut self, outcome: Outcome) {
        let [ok, error, failed] = &mut self.0;
        *match outcome {
            Outcome::Ok => ok,
            Outcome::ClearError => error,
            _ => failed,
        } += 1;
    }

    fn cell(self) -> String {
        let [ok, error, failed] = self.0;
        if self.0 == [0; 3] { String::new() } else { format!("{ok}/{error}/{failed}") }
    }
}

/// The tables of all rounds, in Markdown.
pub(crate) fn tables(reports: &[Report]) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "\n### Outcomes by fault\n\n{}", by_fault(reports));
    let _ =
        writeln!(text, "\n### Outcomes by step and fault: ok/clear error/failure\n\n{}", by_step(reports));
    text
}

/// The faults, in the order of the plan.
fn faults() -> Vec<String> {
    let mut names: Vec<_> = pairs().into_iter().map(|(fault, _)| fault.to_string()).collect();
    names.dedup();
    names
}

fn by_fault(reports: &[Report]) -> String {
    let mut table =
        Table::new(&["fault", "rounds", "ok", "clear error", "failure", "met nothing", "longest, s"]);
    let mut row = |name: &str, of: &[&Report]| {
        let mut count = Count::default();
        of.iter().for_each(|report| count.add(report.outcome));
        let seconds = of.iter().map(|report| report.seconds).fold(0.0, f64::max);
        let mut cells = vec![name.to_owned(), of.len().to_string()];
        cells.extend(count.0.map(|number| number.to_string()));
        cells.push(of.iter().filter(|report| !report.met).count().to_string());
        cells.push(format!("{seconds:.1}"));
        table.row(&cells);
    };
    for fault in faults() {
        row(
            &fault,
            &reports.iter().filter(|report| report.plan.fault.to_string() == fault).collect::<Vec<_>>(),
        );
    }
    row("all", &reports.iter().collect::<Vec<_>>());
    table.markdown()
}

fn by_step(reports: &[Report]) -> String {
    let mut counts: BTreeMap<(usize, String), Count> = BTreeMap::new();
    for report in reports {
        counts.entry((report.plan.step, report.plan.fault.to_string())).or_default().add(report.outcome);
    }
    let faults = faults();
    let header: Vec<_> = ["step"].into_iter().chain(faults.iter().map(String::as_str)).collect();
    let mut table = Table::new(&header);
    for (number, step) in (1..).zip(STEPS) {
        let cell = |fault: &String| counts.get(&(number, fault.clone())).copied().unwrap_or_default().cell();
        let mut cells = vec![format!("{number} {}", step.name)];
        cells.extend(faults.iter().map(cell));
        table.row(&cells);
    }
    table.markdown()
}

/// What clients were told, and how often: whether an error is clear is for people to judge. Ids are left out.
pub(crate) fn errors(reports: &[Report]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for report in reports.iter().filter(|report| report.outcome == Outcome::ClearError) {
        let id = format!("chaos-{}-{}", report.plan.seed, report.plan.round);
        let words = report.words.replace(&id, "ID").replace('\n', " ");
        *counts.entry(format!("{}: {words}", report.plan.fault)).or_default() += 1;
    }
    counts.iter().fold(String::new(), |mut text, (words, count)| {
        let _ = writeln!(text, "{count:4}  {words}");
        text
    })
}
