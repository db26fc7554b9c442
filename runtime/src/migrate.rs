//! What becomes of a configuration of Kata Containers, and of its pods' annotations.
//!
//! The names are those of its own templates (`src/runtime/config`, `src/runtime-rs/config`) and of its page on annotations
//! (`docs/how-to/how-to-set-sandbox-config-kata.md`), of versions 3 and 4.

mod annotations;
mod rules;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;
use toml::{Table, Value};

pub use annotations::{Annotation, PodsError, annotations};
use rules::{RULES, Rule};

/// A configuration that is none of Kata's.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// It is not TOML.
    #[error("is not valid TOML")]
    Toml(#[source] toml::de::Error),
    /// It has none of Kata's tables.
    #[error(
        "has none of Kata's tables (hypervisor, runtime, agent, factory): is it Kata's configuration.toml?"
    )]
    Foreign,
}

/// What becomes of a setting, in the order of how much an administrator should look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// What it asks for is not there.
    Missing,
    /// It is not known.
    Unknown,
    /// It is among our settings.
    Kept,
    /// Nothing has to be set for it.
    NotNeeded,
}

impl std::fmt::Display for Fate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Kept => "kept",
            Self::NotNeeded => "not needed",
            Self::Missing => "missing",
            Self::Unknown => "unknown",
        })
    }
}

/// A setting of Kata's, and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name with its tables, as in `hypervisor.qemu.default_memory`.
    pub key: String,
    /// Its value as TOML.
    pub value: String,
    /// What becomes of it.
    pub fate: Fate,
    /// Into what, why not, or what there is in its place.
    pub note: String,
}

/// One of our settings that others map to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Memory,
    Cpus,
    MaxCpus,
    DiskBits,
    DiskRequests,
    NetworkBits,
    NetworkFrames,
}

impl Key {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "default_memory_mib",
            Self::Cpus => "default_cpus",
            Self::MaxCpus => "max_cpus",
            Self::DiskBits => "disk_bytes_per_second",
            Self::DiskRequests => "disk_requests_per_second",
            Self::NetworkBits => "network_bytes_per_second",
            Self::NetworkFrames => "network_frames_per_second",
        }
    }

    /// The annotation of a pod for it, if there is one.
    fn annotation(self) -> Option<&'static str> {
        match self {
            Self::Memory => Some("io.monohull.memory_mib"),
            Self::Cpus => Some("io.monohull.cpus"),
            _ => None,
        }
    }

    /// Kata's value in our unit. `None` for what means its own default, or every CPU of the host.
    fn convert(self, value: f64) -> Option<u64> {
        // CPUs may be given in parts; a rate of less than a byte is not none.
        let value = match self {
            Self::DiskBits | Self::NetworkBits => value / 8.0,
            _ => value,
        };
        // Saturates, and these numbers are small.
        (value > 0.0).then(|| value.ceil() as u64)
    }
}

/// What becomes of a configuration.
#[derive(Debug, Default)]
pub struct Migration {
    /// Its settings, table by table.
    pub findings: Vec<Finding>,
    settings: BTreeMap<Key, u64>,
}

impl Migration {
    /// Reads Kata's configuration files, a later one's values in place of an earlier one's, as its drop-in files have it.
    pub fn of<'a>(files: impl IntoIterator<Item = &'a str>) -> Result<Self, MigrateError> {
        let mut all = Table::new();
        for text in files {
            merge(&mut all, text.parse().map_err(MigrateError::Toml)?);
        }
        let mut migration = Self::default();
        let mut known = false;
        for (name, _) in RULES {
            if let Some(Value::Table(table)) = all.get(*name) {
                known = true;
                migration.table(name, &mut vec![(*name).to_owned()], table);
            }
        }
        if known { Ok(migration) } else { Err(MigrateError::Foreign) }
    }

    /// The settings of one table. A table in it is that of one hypervisor or agent, and follows the same rules.
    fn table(&mut self, kind: &str, path: &mut Vec<String>, table: &Table) {
        for (name, value) in table {
            path.push(name.clone());
            match value {
                Value::Table(inner) => self.table(kind, path, inner),
                _ => self.setting(kind, path.join("."), name, value),
            }
            path.pop();
        }
    }

    fn setting(&mut self, kind: &str, key: String, name: &str, value: &Value) {
        let (fate, note) = match rule(kind, name) {
            Some(Rule::Becomes(to)) => self.keep(to, value),
            other => judge(other, value),
        };
        self.findings.push(Finding { key, value: value.to_string(), fate, note });
    }

    fn keep(&mut self, to: Key, value: &Value) -> (Fate, String) {
        let Some(number) = number(value) else {
            return (Fate::Unknown, "is not a number".into());
        };
        let Some(converted) = to.convert(number) else {
            return (
                Fate::NotNeeded,
                format!("means the default; that of `{}` is in docs/configuration.md", to.name()),
            );
        };
        // The larger of two that Kata tells apart: directions of a network.
        let setting = self.settings.entry(to).or_default();
        *setting = converted.max(*setting);
        (Fate::Kept, format!("{} = {converted}", to.name()))
    }

    /// The settings to put into `/etc/monohull/config.toml`.
    pub fn settings(&self) -> String {
        let mut text = String::new();
        for (key, value) in &self.settings {
            let _ = writeln!(text, "{} = {value}", key.name());
        }
        text
    }
}

/// Puts the values of `over` into `base`.
fn merge(base: &mut Table, over: Table) {
    for (name, value) in over {
        match (base.get_mut(&name), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            (_, value) => drop(base.insert(name, value)),
        }
    }
}

fn rule(kind: &str, name: &str) -> Option<Rule> {
    let (_, rules) = RULES.iter().find(|(table, _)| *table == kind)?;
    rules.iter().find(|(key, _)| *key == name).map(|(_, rule)| *rule)
}

/// What becomes of a setting that is none of ours.
fn judge(rule: Option<Rule>, value: &Value) -> (Fate, String) {
    match rule {
        Some(Rule::NotNeeded(why)) => (Fate::NotNeeded, why.to_owned()),
        Some(Rule::Missing(_)) if is_off(value) => (Fate::NotNeeded, "is turned off".to_owned()),
        Some(Rule::MissingUnless(usual, _)) if is_off(value) || usual.contains(&plain(value).as_str()) => {
            (Fate::NotNeeded, "is as usual".to_owned())
        }
        Some(Rule::Missing(there_is) | Rule::MissingUnless(_, there_is)) => {
            (Fate::Missing, there_is.to_owned())
        }
        Some(Rule::Becomes(_)) | None => {
            (Fate::Unknown, "see Kata's documentation for what it does".to_owned())
        }
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        // Exact: Kata's numbers are far smaller than 2^53.
        Value::Integer(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

/// Whether a value turns something off.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Boolean(on) => !on,
        Value::Integer(number) => *number == 0,
        Value::String(text) => text.is_empty() || text == "false" || text == "0",
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// A value as it is written in an annotation.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
