//! containerd's configuration, as far as it matters for a runtime to be added.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, Item, TableLike};

use crate::install::root::{self, Root};
use crate::install::{InstallError, lines};

/// The example for containerd 1.x.
const V2: &str = include_str!("../../../../deploy/containerd-v2.toml");
/// The one for containerd 2.x.
const V3: &str = include_str!("../../../../deploy/containerd-v3.toml");
/// The plugin that runs pods for Kubernetes, in versions 2 and 3 of the configuration.
const CRI_V2: &str = "io.containerd.grpc.v1.cri";
const CRI_V3: &str = "io.containerd.cri.v1.runtime";

/// A form of the configuration. Version 4 has runtimes as version 3 has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    V2,
    V3,
}

/// One file of it.
#[derive(Debug)]
pub(super) struct Config {
    path: PathBuf,
    document: DocumentMut,
    /// Whether Monohull's lines are in it. They are no part of `document`.
    pub(super) has_lines: bool,
}

impl Form {
    /// What a file of Monohull's own has.
    pub(super) fn drop_in(self) -> &'static str {
        match self {
            Self::V2 => V2,
            Self::V3 => V3,
        }
    }

    /// The section alone, for a file that others write as well.
    pub(super) fn section(self) -> &'static str {
        let text = self.drop_in();
        text.find("\n[").and_then(|newline| text.get(newline + 1..)).unwrap_or(text)
    }

    /// The plugin that the section belongs to.
    pub(super) fn plugin(self) -> &'static str {
        match self {
            Self::V2 => CRI_V2,
            Self::V3 => CRI_V3,
        }
    }
}

impl Config {
    /// Reads a file; `None` when it is not there.
    pub(super) fn read(root: &Root, path: &Path) -> Result<Option<Self>, InstallError> {
        let Some(text) = root.text(path)? else { return Ok(None) };
        let parts = lines::split(&text);
        let document = parse(path, &parts.rest)?;
        Ok(Some(Self { path: path.to_owned(), document, has_lines: parts.lines.is_some() }))
    }

    /// Its version; 1 when it does not say, as containerd has it.
    pub(super) fn version(&self) -> i64 {
        self.document.get("version").and_then(Item::as_integer).unwrap_or(1)
    }

    /// Whether it turns Kubernetes' interface off.
    pub(super) fn disables_cri(&self) -> bool {
        let names = self.strings("disabled_plugins");
        names.iter().any(|name| [CRI_V2, CRI_V3, "cri"].contains(&name.as_str()))
    }

    /// Whether it has settings of a plugin.
    pub(super) fn has(&self, plugin: &str) -> bool {
        self.plugin(plugin).is_some()
    }

    /// The names of the runtimes that it defines.
    pub(super) fn runtimes(&self, form: Form) -> Vec<String> {
        let runtimes =
            self.plugin(form.plugin()).and_then(|plugin| table(plugin.get("containerd")?)?.get("runtimes"));
        let runtimes = runtimes.and_then(table);
        runtimes
            .map(|runtimes| runtimes.iter().map(|(name, _)| name.to_owned()).collect())
            .unwrap_or_default()
    }

    fn plugin(&self, name: &str) -> Option<&dyn TableLike> {
        table(table(self.document.get("plugins")?)?.get(name)?)
    }

    fn strings(&self, key: &str) -> Vec<String> {
        let array = self.document.get(key).and_then(Item::as_array);
        array.into_iter().flatten().filter_map(|value| value.as_str()).map(ToOwned::to_owned).collect()
    }

    /// Whether `section` can be added at its end.
    pub(super) fn takes(&self, section: &str) -> bool {
        format!("{}\n{section}", self.document).parse::<DocumentMut>().is_ok()
    }

    /// What it imports: paths, and patterns of them. Relative ones are relative to the file, as containerd has it.
    fn imports(&self) -> impl Iterator<Item = PathBuf> {
        let directory = self.path.parent().unwrap_or(Path::new("/")).to_owned();
        self.strings("imports").into_iter().map(move |import| root::clean(&directory.join(import)))
    }

    /// The path of a file called `name` that it would import.
    pub(super) fn place_for(&self, name: &str) -> Option<PathBuf> {
        self.imports().map(|import| (import.clone(), import.with_file_name(name))).find_map(
            |(import, path)| {
                let pattern = import.file_name()?;
                let no_pattern = |path: &Path| !path.to_string_lossy().contains(['*', '?', '[']);
                (no_pattern(path.parent()?) && matches(pattern, OsStr::new(name))).then_some(path)
            },
        )
    }

    /// The files that it imports, as they are read: each after the one that imports it.
    pub(super) fn imported(&self, root: &Root) -> Result<Vec<Self>, InstallError> {
        let mut pending: Vec<_> = self.imports().collect();
        let (mut seen, mut configs) = (vec![self.path.clone()], Vec::new());
        while !pending.is_empty() {
            let import = pending.remove(0);
            for path in expand(root, &import)? {
                if seen.contains(&path) {
                    continue;
                }
                seen.push(path.clone());
                if let Some(config) = Self::read(root, &root.resolve(&path)?)? {
                    pending.extend(config.imports());
                    configs.push(config);
                }
            }
        }
        Ok(configs)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// The file that `import` names, or those that match it.
fn expand(root: &Root, import: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let (Some(directory), Some(pattern)) = (import.parent(), import.file_name()) else {
        return Ok(Vec::new());
    };
    if !pattern.to_string_lossy().contains('*') {
        return Ok(vec![import.to_owned()]);
    }
    let names = root.names(directory)?;
    Ok(names.into_iter().filter(|name| matches(pattern, name)).map(|name| directory.join(name)).collect())
}

/// Whether a name matches a pattern with stars: the only sign of Go's patterns that is known to be used here.
fn matches(pattern: &OsStr, name: &OsStr) -> bool {
    let (pattern, name) = (pattern.to_string_lossy(), name.to_string_lossy());
    let mut pieces = pattern.split('*');
    let Some(mut rest) = pieces.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let mut pieces: Vec<_> = pieces.collect();
    let Some(last) = pieces.pop() else { return rest.is_empty() };
    for piece in pieces {
        match rest.split_once(piece) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

fn table(item: &Item) -> Option<&dyn TableLike> {
    item.as_table_like()
}

fn parse(path: &Path, text: &str) -> Result<DocumentMut, InstallError> {
    without_variables(text).parse().map_err(|error| InstallError::Toml(path.to_owned(), Box::new(error)))
}

/// microk8s' template has variables (`${RUNTIME}`), also where TOML allows no such signs: they are read as their names.
fn without_variables(text: &str) -> String {
    let mut pieces = text.split("${");
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (name, rest) = piece.split_once('}').unwrap_or((piece, ""));
        plain.push_str(name);
        plain.push_str(rest);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_containerd() {
        let good = [
            ("*.toml", "monohull.toml"),
            ("a.toml", "a.toml"),
            ("*", "x"),
            ("a*b*c", "aXbYc"),
            ("*.d", ".d"),
        ];
        let bad = [("*.conf", "monohull.toml"), ("a.toml", "b.toml"), ("a*b*c", "ac"), ("ab*b", "ab")];
        for (pattern, name) in good {
            assert!(matches(OsStr::new(pattern), OsStr::new(name)), "{pattern} {name}");
        }
        for (pattern, name) in bad {
            assert!(!matches(OsStr::new(pattern), OsStr::new(name)), "{pattern} {name}");
        }
    }

    #[test]
    fn a_section_is_the_example_without_what_a_file_has_once() {
        for form in [Form::V2, Form::V3] {
            let section = form.section();
            assert!(section.starts_with("[plugins."), "{section}");
            assert!(section.contains(form.plugin()) && !section.contains("\nversion"), "{section}");
        }
    }
}
