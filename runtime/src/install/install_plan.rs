//! Decides what an installation changes.

use std::path::{Path, PathBuf};

use super::engine::{self, Wanted, What};
use super::lines;
use super::manifest::{Before, Installed, Manifest, hash_of};
use super::plan::Plan;
use super::report::Action;
use super::root::{Attributes, Root};
use super::transaction::{Content, Step};
use super::tree::{Part, Tree};
use super::{InstallError, Kind, MANIFEST, Options, Report};

const AS_IT_IS: &str = "is so already";
const EDITED: &str = "was changed since it was installed, and stays so";

/// Plans an installation, or an upgrade.
pub fn install(options: &Options) -> Result<Plan, InstallError> {
    let root = Root::open(&options.root)?;
    root.lock()?;
    let tree = Tree::find(options.from.as_deref())?;
    let known = Manifest::read(&root)?;
    let mut planner = Planner {
        manifest: known.clone().unwrap_or_else(Manifest::new),
        root,
        report: Report::default(),
        directories: Vec::new(),
        saved: Vec::new(),
        steps: Vec::new(),
    };
    if planner.root.is_same_as(tree.root()) {
        planner.report.notes.push("the programs are run from where they are: nothing is copied".into());
    } else {
        for part in tree.parts()? {
            planner.part(&part)?;
        }
    }
    let found = engine::find(&planner.root, options, &tree.shim())?;
    planner.report.notes.extend(found.notes);
    for (path, why) in found.left {
        planner.report.push(Action::Leave, &path, &why);
    }
    for wanted in found.wanted {
        planner.wanted(wanted)?;
    }
    planner.finish(known.as_ref())
}

struct Planner {
    root: Root,
    manifest: Manifest,
    report: Report,
    /// Directories to be made, outermost first.
    directories: Vec<PathBuf>,
    /// Copies of what is changed.
    saved: Vec<Step>,
    steps: Vec<Step>,
}

/// How root makes a file.
fn attributes(mode: u32) -> Attributes {
    Attributes { mode, uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
}

impl Planner {
    /// A file of the release.
    fn part(&mut self, part: &Part) -> Result<(), InstallError> {
        let source = std::fs::File::open(&part.source).and_then(hash_of);
        let sha256 = source.map_err(InstallError::io("read", &part.source))?;
        let there = self.root.file(&part.path)?;
        let hash = self.root.hash(&part.path)?;
        let same = hash.as_ref() == Some(&sha256) && there.is_some_and(|there| there.mode == part.mode);
        let before = match self.manifest.file(&part.path) {
            Some(known) => known.before.clone(),
            // Somebody else has put it there, and it stays when Monohull goes.
            None if same => {
                self.report.push(Action::Leave, &part.path, AS_IT_IS);
                return Ok(());
            }
            None => self.save(&part.path)?,
        };
        let path = part.path.clone();
        self.manifest.set(Installed { path, sha256, before, lines: None, initial: None, engine: None });
        if same {
            self.report.push(Action::Leave, &part.path, AS_IT_IS);
            return Ok(());
        }
        let action = if there.is_some() { Action::Change } else { Action::Create };
        self.report.push(action, &part.path, "");
        self.put(&part.path, Content::Tree(part.source.clone()), attributes(part.mode))
    }

    fn wanted(&mut self, wanted: Wanted) -> Result<(), InstallError> {
        let Wanted { path, what, engine } = wanted;
        match what {
            What::File(text) => self.whole(&path, &text, engine),
            What::Lines { initial, lines } => self.lines(&path, initial, lines, engine),
        }
    }

    /// A file of an engine's that is Monohull's alone.
    fn whole(&mut self, path: &Path, text: &str, engine: Kind) -> Result<(), InstallError> {
        let old = self.root.text(path)?;
        let known = self.manifest.file(path);
        let why = match (&old, known) {
            (Some(old), _) if old == text => Some(AS_IT_IS),
            (Some(old), Some(known)) if hash_of(old.as_bytes()).is_ok_and(|hash| hash != known.sha256) => {
                Some(EDITED)
            }
            (Some(_), None) => Some("is there already, and not by 'monohull install'"),
            _ => None,
        };
        if let Some(why) = why {
            self.report.push(Action::Leave, path, why);
            return Ok(());
        }
        let before = known.and_then(|known| known.before.clone());
        self.text(path, old.as_deref(), text)?;
        self.note(path, text, before, None, None, engine)
    }

    /// Lines in a file that others write as well.
    fn lines(
        &mut self,
        path: &Path,
        initial: String,
        wanted: String,
        engine: Kind,
    ) -> Result<(), InstallError> {
        let Some(old) = self.root.text(path)? else {
            let new = lines::append(&initial, &wanted);
            self.text(path, None, &new)?;
            return self.note(path, &new, None, Some(wanted), Some(initial), engine);
        };
        let known = self.manifest.file(path);
        let (new, before, initial) = match lines::split(&old).lines {
            None => (lines::append(&old, &wanted), self.save(path)?, None),
            Some(there) if there == wanted => {
                self.report.push(Action::Leave, path, AS_IT_IS);
                return Ok(());
            }
            Some(there) => match known {
                Some(known) if known.lines.as_ref() == Some(&there) => {
                    (lines::replace(&old, &there, &wanted), known.before.clone(), known.initial.clone())
                }
                _ => {
                    self.report.push(Action::Leave, path, EDITED);
                    return Ok(());
                }
            },
        };
        self.text(path, Some(&old), &new)?;
        self.note(path, &new, before, Some(wanted), initial, engine)
    }

    /// Keeps a copy of what will be changed.
    fn save(&mut self, path: &Path) -> Result<Option<Before>, InstallError> {
        let (Some(there), Some(hash)) = (self.root.file(path)?, self.root.hash(path)?) else {
            return Ok(None);
        };
        let before = Before::new(hash, there);
        let backup = before.backup();
        if self.root.hash(&backup)?.as_ref() != Some(&before.sha256) {
            self.saved.push(Step::Put {
                path: backup,
                content: Content::Root(path.to_owned()),
                attributes: attributes(0o600),
            });
        }
        Ok(Some(before))
    }

    /// Makes a text, or changes it.
    fn text(&mut self, path: &Path, old: Option<&str>, new: &str) -> Result<(), InstallError> {
        let there = self.root.file(path)?;
        let action = if old.is_some() { Action::Change } else { Action::Create };
        self.report.push_text(action, path, "", old.unwrap_or_default(), new);
        self.put(path, Content::Bytes(new.into()), there.unwrap_or_else(|| attributes(0o644)))
    }

    fn put(&mut self, path: &Path, content: Content, attributes: Attributes) -> Result<(), InstallError> {
        self.make_parents(path)?;
        self.steps.push(Step::Put { path: path.to_owned(), content, attributes });
        Ok(())
    }

    fn make_parents(&mut self, path: &Path) -> Result<(), InstallError> {
        for directory in self.root.missing_parents(path)? {
            for list in [&mut self.directories, &mut self.manifest.directories] {
                if !list.contains(&directory) {
                    list.push(directory.clone());
                }
            }
        }
        Ok(())
    }

    fn note(
        &mut self,
        path: &Path,
        text: &str,
        before: Option<Before>,
        lines: Option<String>,
        initial: Option<String>,
        engine: Kind,
    ) -> Result<(), InstallError> {
        let sha256 = hash_of(text.as_bytes()).map_err(InstallError::io("read", path))?;
        let path = path.to_owned();
        self.report.restart(Some(engine));
        self.manifest.set(Installed { path, sha256, before, lines, initial, engine: Some(engine) });
        Ok(())
    }

    /// The manifest and the copies come first: whatever happens then, they tell how to undo it.
    fn finish(mut self, known: Option<&Manifest>) -> Result<Plan, InstallError> {
        let nothing = self.manifest.files.is_empty() || known == Some(&self.manifest);
        if self.steps.is_empty() && nothing {
            return Ok(Plan { root: self.root, steps: Vec::new(), report: self.report });
        }
        let manifest = Path::new(MANIFEST);
        self.make_parents(manifest)?;
        for path in self.saved.iter().filter_map(Step::file).map(Path::to_owned).collect::<Vec<_>>() {
            self.make_parents(&path)?;
        }
        let own = manifest.parent().unwrap_or(manifest);
        let step = |path: PathBuf| {
            let mode = if path.starts_with(own) { 0o700 } else { 0o755 };
            Step::Directory { path, mode }
        };
        let (first, rest): (Vec<_>, Vec<_>) =
            self.directories.into_iter().partition(|path| own.starts_with(path) || path.starts_with(own));
        let mut steps: Vec<_> = first.into_iter().map(step).collect();
        steps.append(&mut self.saved);
        if known != Some(&self.manifest) {
            let content = Content::Bytes(self.manifest.to_bytes()?);
            steps.push(Step::Put { path: manifest.to_owned(), content, attributes: attributes(0o600) });
        }
        steps.extend(rest.into_iter().map(step));
        steps.append(&mut self.steps);
        Ok(Plan { root: self.root, steps, report: self.report })
    }
}
