//! Decides what has to be undone.

use std::path::{Path, PathBuf};

use super::lines;
use super::manifest::{Before, Installed, Manifest};
use super::plan::Plan;
use super::report::Action;
use super::root::{Attributes, Root};
use super::transaction::{Content, Step, other_name};
use super::{InstallError, MANIFEST, Report};

/// Where files go that were changed since they were installed.
const KEPT: &str = "/var/lib/monohull/kept";

/// Plans the removal of what `install` has installed below `root`.
pub fn uninstall(root: &Path) -> Result<Plan, InstallError> {
    let root = Root::open(root)?;
    root.lock()?;
    let Some(manifest) = Manifest::read(&root)? else {
        return Err(InstallError::NotInstalled(root.path().to_owned()));
    };
    let mut planner = Planner { root, report: Report::default(), steps: Vec::new(), directories: Vec::new() };
    // The last first: engines stop to name the programs before those go.
    for file in manifest.files.iter().rev() {
        planner.file(file)?;
    }
    planner.finish(&manifest)
}

struct Planner {
    root: Root,
    report: Report,
    steps: Vec<Step>,
    /// Directories that are made for what is kept.
    directories: Vec<PathBuf>,
}

impl Planner {
    fn file(&mut self, file: &Installed) -> Result<(), InstallError> {
        let path = &file.path;
        self.tidy(path)?;
        let Some(hash) = self.root.hash(path)? else {
            self.report.push(Action::Leave, path, "is gone already");
            return Ok(());
        };
        if hash == file.sha256 {
            return self.restore(file);
        }
        if file.before.as_ref().is_some_and(|before| before.sha256 == hash) {
            self.report.push(Action::Leave, path, "is again what it was before");
            return Ok(());
        }
        match &file.lines {
            Some(lines) => self.cut(file, lines),
            None => {
                let kept = self.keep(path)?;
                self.restore(file)?;
                if let Some(line) = self.report.files.last_mut() {
                    line.why = format!("was changed since it was installed: kept as {}", kept.display());
                }
                Ok(())
            }
        }
    }

    /// Removes what an installation or a removal that was killed has left beside a file.
    fn tidy(&mut self, path: &Path) -> Result<(), InstallError> {
        let stale = path.with_file_name(other_name(path.file_name().unwrap_or_default()));
        if self.root.exists(&stale)? {
            self.steps.push(Step::Remove(stale));
        }
        Ok(())
    }

    /// Makes a file what it was before it was installed.
    fn restore(&mut self, file: &Installed) -> Result<(), InstallError> {
        let path = &file.path;
        self.report.restart(file.engine);
        let old = if file.engine.is_some() { self.root.text(path)? } else { None };
        let Some(before) = &file.before else {
            match old {
                Some(old) => self.report.push_text(Action::Remove, path, "", &old, ""),
                None => self.report.push(Action::Remove, path, ""),
            }
            self.steps.push(Step::Remove(path.clone()));
            return Ok(());
        };
        let backup = self.backup(before)?;
        match old {
            Some(old) => {
                let new = self.root.text(&backup)?.unwrap_or_default();
                self.report.push_text(Action::Restore, path, "", &old, &new);
            }
            None => self.report.push(Action::Restore, path, ""),
        }
        let (content, attributes) = (Content::Root(backup), before.attributes());
        self.steps.push(Step::Put { path: path.clone(), content, attributes });
        Ok(())
    }

    /// Where a file is saved as it was.
    fn backup(&self, before: &Before) -> Result<PathBuf, InstallError> {
        let backup = before.backup();
        match self.root.hash(&backup)? {
            Some(hash) if hash == before.sha256 => Ok(backup),
            _ => Err(InstallError::Backup(backup)),
        }
    }

    /// Takes Monohull's lines out of a file that others have changed since.
    fn cut(&mut self, file: &Installed, ours: &str) -> Result<(), InstallError> {
        let path = &file.path;
        let (Some(old), Some(attributes)) = (self.root.text(path)?, self.root.file(path)?) else {
            return Ok(());
        };
        let parts = lines::split(&old);
        match parts.lines {
            Some(lines) if lines == ours => {}
            Some(_) => {
                let why = "Monohull's lines in it were changed since: take them out by hand";
                self.report.push(Action::Leave, path, why);
                return Ok(());
            }
            None => {
                self.report.push(
                    Action::Leave,
                    path,
                    "was changed since, and has no lines of Monohull's any more",
                );
                return Ok(());
            }
        }
        self.report.restart(file.engine);
        if file.before.is_none()
            && file.initial.as_deref().is_some_and(|initial| initial.trim() == parts.rest.trim())
        {
            self.report.push_text(Action::Remove, path, "", &old, "");
            self.steps.push(Step::Remove(path.clone()));
            return Ok(());
        }
        let why = "was changed since it was installed: only Monohull's lines are removed";
        self.report.push_text(Action::Change, path, why, &old, &parts.rest);
        self.steps.push(Step::Put {
            path: path.clone(),
            content: Content::Bytes(parts.rest.into()),
            attributes,
        });
        Ok(())
    }

    /// Keeps a copy of a file, under a name that nothing has yet.
    fn keep(&mut self, path: &Path) -> Result<PathBuf, InstallError> {
        let own = rustix::process::geteuid().as_raw();
        let attributes = Attributes { mode: 0o600, uid: own, gid: rustix::process::getegid().as_raw() };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut kept = Path::new(KEPT).join(&*name);
        let mut number = 1;
        while self.root.exists(&kept)? || self.steps.iter().any(|step| step.file() == Some(&kept)) {
            number += 1;
            kept = Path::new(KEPT).join(format!("{name}.{number}"));
        }
        for directory in self.root.missing_parents(&kept)? {
            if !self.directories.contains(&directory) {
                self.directories.push(directory.clone());
                self.steps.push(Step::Directory { path: directory, mode: 0o700 });
            }
        }
        let content = Content::Root(path.to_owned());
        self.steps.push(Step::Put { path: kept.clone(), content, attributes });
        Ok(kept)
    }

    /// The manifest, the copies and the directories go as well.
    fn finish(mut self, manifest: &Manifest) -> Result<Plan, InstallError> {
        let mut backups = Vec::new();
        for before in manifest.files.iter().filter_map(|file| file.before.as_ref()) {
            let backup = before.backup();
            if !backups.contains(&backup) && self.root.exists(&backup)? {
                backups.push(backup);
            }
        }
        self.steps.extend(backups.into_iter().map(Step::Remove));
        self.steps.push(Step::Forget(MANIFEST.into()));
        self.steps.extend(manifest.directories.iter().rev().cloned().map(Step::RemoveDirectory));
        Ok(Plan { root: self.root, steps: self.steps, report: self.report })
    }
}
