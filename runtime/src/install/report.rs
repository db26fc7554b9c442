//! What a plan says of itself.

use std::path::{Path, PathBuf};

use serde::Serialize;
use similar::TextDiff;

use super::Kind;

/// What becomes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is made.
    Create,
    /// It gets another content.
    Change,
    /// It becomes what it was before Monohull was installed.
    Restore,
    /// It is removed.
    Remove,
    /// It stays as it is.
    Leave,
}

/// What becomes of one file, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What happens.
    pub action: Action,
    /// The file, below the root directory.
    pub path: PathBuf,
    /// Why it is left, and where a changed one is kept; empty when there is nothing to say.
    pub why: String,
    /// How its text changes, as a unified diff; empty for programs.
    pub diff: String,
}

/// What a plan does, and what is left for the user to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// One for each file.
    pub files: Vec<Line>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// The engines that have to be restarted.
    pub restart: Vec<Kind>,
}

impl Action {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Change => "change",
            Self::Restore => "restore",
            Self::Remove => "remove",
            Self::Leave => "leave",
        }
    }
}

impl Report {
    /// Whether all files stay as they are.
    pub fn changes_nothing(&self) -> bool {
        self.files.iter().all(|line| line.action == Action::Leave)
    }

    pub(super) fn push(&mut self, action: Action, path: &Path, why: &str) {
        self.files.push(Line { action, path: path.to_owned(), why: why.to_owned(), diff: String::new() });
    }

    /// A file that is text, of which the whole change is told.
    pub(super) fn push_text(&mut self, action: Action, path: &Path, why: &str, old: &str, new: &str) {
        let name = path.display().to_string();
        let names = match action {
            Action::Create => ["/dev/null", &name],
            Action::Remove => [&name, "/dev/null"],
            _ => [&*name, &*name],
        };
        let diff = TextDiff::from_lines(old, new).unified_diff().header(names[0], names[1]).to_string();
        self.files.push(Line { action, path: path.to_owned(), why: why.to_owned(), diff });
    }

    pub(super) fn restart(&mut self, engine: Option<Kind>) {
        if let Some(engine) = engine
            && !self.restart.contains(&engine)
        {
            self.restart.push(engine);
        }
    }
}
