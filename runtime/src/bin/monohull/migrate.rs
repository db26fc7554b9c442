//! `monohull migrate-config`.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;
use monohull_runtime::migrate::{Annotation, Fate, Finding, Migration, annotations};
use serde::Serialize;

use crate::failure::{Failure, print, print_json};
use crate::table::Table;
use crate::terminal;

/// Tell what becomes of a configuration of Kata Containers
///
/// Reads Kata's configuration.toml, with its drop-in files in their order, and the annotations of pods. Prints for each setting
/// whether it is kept, not needed, or asks for something that is not there, and the settings for /etc/monohull/config.toml.
/// Changes nothing.
#[derive(Args, Debug)]
#[command(after_help = "\
What becomes of a setting:
  kept        it is among the settings that are printed
  not needed  nothing has to be set for it
  missing     it asks for something that is not there; the text says what there is
  unknown     it is none of Kata's that this version knows

Exit codes:
  0  nothing is missing      1  something is missing or unknown, or a file can't be read      2  wrong usage

Examples:
  monohull migrate-config /opt/kata/share/defaults/kata-containers/configuration.toml
  monohull migrate-config configuration.toml config.d/*.toml --settings > /etc/monohull/config.toml
  kubectl get pods -A -o json | monohull migrate-config --pods -")]
pub(crate) struct Arguments {
    /// Kata's configuration, and its drop-in files
    #[arg(value_name = "FILE", required_unless_present = "pods")]
    files: Vec<PathBuf>,
    /// Pods as `kubectl get pods -A -o json` prints them, whose annotations are looked through; - is standard input
    #[arg(long, value_name = "FILE")]
    pods: Option<PathBuf>,
    /// Print the settings alone
    #[arg(long, conflicts_with_all = ["json", "pods"])]
    settings: bool,
    /// Print {settings, configuration: [{key, value, fate, note}], annotations: [{pod, key, value, fate, note}]}
    #[arg(long)]
    json: bool,
}

/// All that is printed.
#[derive(Serialize)]
struct Report {
    settings: String,
    configuration: Vec<Finding>,
    annotations: Vec<Annotation>,
}

/// Runs the command.
pub(crate) fn migrate(arguments: &Arguments) -> Result<u8, Failure> {
    let report = report(arguments)?;
    if arguments.json {
        print_json(&report)?;
    } else if arguments.settings {
        print(&report.settings)?;
    } else {
        print(&text(&report, terminal::width()))?;
    }
    let fates = report.configuration.iter().map(|finding| finding.fate);
    let mut fates = fates.chain(report.annotations.iter().map(|annotation| annotation.fate));
    Ok(u8::from(fates.any(|fate| matches!(fate, Fate::Missing | Fate::Unknown))))
}

fn report(arguments: &Arguments) -> Result<Report, Failure> {
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path)
            .map_err(|error| Failure::of(&format!("cannot read {}", path.display()), &error))
    };
    let texts = arguments.files.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let migration = if texts.is_empty() {
        Migration::default()
    } else {
        let names: Vec<_> = arguments.files.iter().map(|path| path.display().to_string()).collect();
        Migration::of(texts.iter().map(String::as_str))
            .map_err(|error| Failure::of(&names.join(" "), &error))?
    };
    let annotations = match &arguments.pods {
        Some(path) => {
            annotations(&pods(path)?).map_err(|error| Failure::of(&path.display().to_string(), &error))?
        }
        None => Vec::new(),
    };
    Ok(Report { settings: migration.settings(), configuration: migration.findings, annotations })
}

fn pods(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let result = if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(path).map(|read| text = read)
    };
    result.map_err(|error| Failure::of(&format!("cannot read {}", path.display()), &error))?;
    Ok(text)
}

/// Tables, what is missing first, and the settings.
fn text(report: &Report, width: Option<usize>) -> String {
    let mut parts = Vec::new();
    if !report.configuration.is_empty() {
        let mut table = Table::new(&["FATE", "SETTING", "VALUE", "WHAT BECOMES OF IT"]);
        let mut findings: Vec<_> = report.configuration.iter().collect();
        findings.sort_by_key(|finding| finding.fate);
        for Finding { key, value, fate, note } in findings {
            table.push([fate.to_string(), key.clone(), short(value), note.clone()]);
        }
        parts.push(table.render(width));
    }
    if !report.annotations.is_empty() {
        let mut table = Table::new(&["FATE", "POD", "ANNOTATION", "VALUE", "WHAT BECOMES OF IT"]);
        let mut annotations: Vec<_> = report.annotations.iter().collect();
        annotations.sort_by_key(|annotation| annotation.fate);
        for Annotation { pod, key, value, fate, note } in annotations {
            table.push([fate.to_string(), pod.clone(), key.clone(), short(value), note.clone()]);
        }
        parts.push(table.render(width));
    }
    if !report.settings.is_empty() {
        parts.push(format!("For /etc/monohull/config.toml:\n\n{}", report.settings));
    }
    if parts.is_empty() {
        parts.push("Nothing of Kata's is set.\n".to_owned());
    }
    parts.join("\n")
}

/// A value that leaves room for the text beside it.
fn short(value: &str) -> String {
    const MOST: usize = 32;
    if value.chars().count() <= MOST {
        return value.to_owned();
    }
    value.chars().take(MOST - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_comes_first_and_the_settings_last() {
        let finding =
            |key: &str, fate| Finding { key: key.into(), value: "1".into(), fate, note: "so".into() };
        let report = Report {
            settings: "default_cpus = 1\n".into(),
            configuration: vec![finding("a", Fate::NotNeeded), finding("b", Fate::Missing)],
            annotations: Vec::new(),
        };
        let expected = "\
FATE        SETTING  VALUE  WHAT BECOMES OF IT
missing     b        1      so
not needed  a        1      so

For /etc/monohull/config.toml:

default_cpus = 1
";
        assert_eq!(text(&report, None), expected);
    }

    #[test]
    fn long_values_are_cut() {
        assert_eq!(short(&"x".repeat(32)).chars().count(), 32);
        assert_eq!(short(&"x".repeat(33)), format!("{}…", "x".repeat(31)));
    }
}
