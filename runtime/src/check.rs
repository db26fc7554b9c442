//! Can this machine run pods? One [`Finding`] per thing that was looked at, each with what to do about it.

mod host;
mod jail;
mod kvm;
mod programs;

use std::fmt;

use serde::Serialize;

use crate::settings::{Settings, SettingsError};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Pods run, but something is missing or slower than it could be.
    Note,
    /// Pods do not run.
    Problem,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Problem => "problem",
        })
    }
}

/// The result of looking at one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: "kvm speed", "memory".
    pub check: &'static str,
    /// How much it matters.
    pub level: Level,
    /// What was found, on one line.
    pub finding: String,
    /// What to do, on one line. Always there for a problem, never when all is well.
    pub fix: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, finding: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, finding: finding.into(), fix: None }
    }

    fn note(check: &'static str, finding: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, level: Level::Note, finding: finding.into(), fix: Some(fix.into()) }
    }

    fn problem(check: &'static str, finding: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, level: Level::Problem, finding: finding.into(), fix: Some(fix.into()) }
    }
}

/// Looks at everything. `settings` is what [`Settings::load`] gave; if it failed, that is one of the findings and the
/// defaults are looked at. Takes up to half a second, for the tiny guest that measures the speed of KVM.
pub fn all(settings: Result<Settings, SettingsError>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let settings = settings.unwrap_or_else(|error| {
        findings.push(Finding::problem(
            "settings",
            crate::text::chain(&error),
            "correct the file; the defaults are checked below",
        ));
        Settings::default()
    });
    findings.extend(kvm::look());
    findings.extend(host::look(&settings));
    findings.extend(jail::look());
    findings.extend(programs::look(&settings));
    findings
}
