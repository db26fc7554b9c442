//! `monohull check`.

use clap::Args;
use monohull_runtime::check::{self, Finding, Level};
use monohull_runtime::settings::Settings;

use crate::failure::{Failure, print, print_json};
use crate::table::Table;
use crate::terminal;

/// Check whether this machine can run pods
///
/// Looks at KVM (and measures with a tiny guest whether it runs code on the hardware), memory, kernel features,
/// Monohull's own files and the programs it works with. Prints one line per finding, with the fix.
#[derive(Args, Debug)]
#[command(after_help = "\
Levels:
  ok       as it should be
  note     pods run, but something is missing or slow
  problem  pods do not run

Exit codes:
  0  no problem      1  at least one problem      2  wrong usage

Examples:
  monohull check
  monohull check --json | jq '.[] | select(.level == \"problem\")'")]
pub(crate) struct Arguments {
    /// Print an array of {check, level, finding, fix}
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn check(arguments: &Arguments) -> Result<u8, Failure> {
    let findings = check::all(Settings::load());
    if arguments.json {
        print_json(&findings)?;
    } else {
        print(&table(&findings).render(terminal::width()))?;
    }
    Ok(u8::from(findings.iter().any(|finding| finding.level == Level::Problem)))
}

fn table(findings: &[Finding]) -> Table {
    let mut table = Table::new(&["LEVEL", "CHECK", "FINDING"]);
    for Finding { check, level, finding, fix } in findings {
        let text = match fix {
            Some(fix) => format!("{finding} -> {fix}"),
            None => finding.clone(),
        };
        table.push([level.to_string(), (*check).to_owned(), text]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finding_and_fix_are_on_one_line() {
        let finding = |level, fix: Option<&str>| Finding {
            check: "kvm",
            level,
            finding: "found".into(),
            fix: fix.map(ToOwned::to_owned),
        };
        let text = table(&[finding(Level::Ok, None), finding(Level::Problem, Some("do this"))]).render(None);
        assert_eq!(
            text,
            "LEVEL    CHECK  FINDING\nok       kvm    found\nproblem  kvm    found -> do this\n"
        );
    }
}
