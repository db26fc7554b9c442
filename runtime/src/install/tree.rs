//! A release to install from: an unpacked tarball, or the tree that the running program is in.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::InstallError;

/// Where programs for users are: in tarballs, and in Debian's packages.
const BINS: [&str; 2] = ["usr/local/bin", "usr/bin"];
const SHIM: &str = "containerd-shim-monohull-v2";
const TOOL: &str = "monohull";
/// What a release has besides, at the least.
const NEEDED: [&str; 4] = [
    "usr/libexec/monohull/monohull-vmm",
    "usr/libexec/monohull/monohull-fs",
    "usr/share/monohull/vmlinux",
    "usr/share/monohull/initramfs.cpio",
];
/// What comes along if it is there.
const EXTRAS: [&str; 5] = [
    "usr/share/bash-completion/completions/monohull",
    "usr/share/zsh/site-functions/_monohull",
    "usr/share/fish/vendor_completions.d/monohull.fish",
    "usr/share/man/man1",
    "usr/share/doc/monohull",
];

/// A release.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
    bin: &'static str,
}

/// A file of a release.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// The file.
    pub(super) source: PathBuf,
    /// Where it goes, below the root directory.
    pub(super) path: PathBuf,
    /// Its permissions there.
    pub(super) mode: u32,
}

impl Tree {
    /// The one in `from`, or that of the running program.
    pub(super) fn find(from: Option<&Path>) -> Result<Self, InstallError> {
        match from {
            Some(root) => {
                let bin = BINS.into_iter().find(|bin| root.join(bin).join(TOOL).is_file());
                let bin = bin.ok_or_else(|| InstallError::NoTree(root.to_owned()))?;
                Ok(Self { root: root.to_owned(), bin })
            }
            None => {
                let program = std::env::current_exe().map_err(InstallError::io("find", Path::new(TOOL)))?;
                Self::of(&program).ok_or(InstallError::NoTree(program))
            }
        }
    }

    /// The one that a program is in.
    fn of(program: &Path) -> Option<Self> {
        let directory = program.parent()?;
        let bin = BINS.into_iter().find(|bin| directory.ends_with(bin))?;
        let root = directory.ancestors().nth(Path::new(bin).components().count())?;
        Some(Self { root: root.to_owned(), bin })
    }

    /// The directory that it is in.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Where the shim is, or will be, below the root directory.
    pub(super) fn shim(&self) -> PathBuf {
        Path::new("/").join(self.bin).join(SHIM)
    }

    /// All its files.
    pub(super) fn parts(&self) -> Result<Vec<Part>, InstallError> {
        let mut parts = Vec::new();
        let programs = [SHIM, TOOL].map(|program| Path::new(self.bin).join(program));
        for file in programs.into_iter().chain(NEEDED.map(PathBuf::from)) {
            if !self.root.join(&file).is_file() {
                return Err(InstallError::Incomplete {
                    tree: self.root.clone(),
                    file: Path::new("/").join(file),
                });
            }
            parts.push(self.part(&file)?);
        }
        for extra in EXTRAS {
            self.collect(Path::new(extra), &mut parts)?;
        }
        Ok(parts)
    }

    fn part(&self, file: &Path) -> Result<Part, InstallError> {
        let source = self.root.join(file);
        let metadata = fs::metadata(&source).map_err(InstallError::io("look at", &source))?;
        let mode = if metadata.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 };
        Ok(Part { source, path: Path::new("/").join(file), mode })
    }

    /// Adds a file, or all files of a directory that are Monohull's, sorted.
    fn collect(&self, path: &Path, parts: &mut Vec<Part>) -> Result<(), InstallError> {
        let source = self.root.join(path);
        let failed = || InstallError::io("look at", &source);
        let kind = match fs::symlink_metadata(&source) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(failed())?.file_type(),
        };
        if kind.is_file() {
            if path.to_string_lossy().contains(TOOL) {
                parts.push(self.part(path)?);
            }
            return Ok(());
        }
        if kind.is_dir() {
            let names: io::Result<Vec<_>> = fs::read_dir(&source)
                .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect());
            let mut names = names.map_err(failed())?;
            names.sort();
            for name in names {
                self.collect(&path.join(name), parts)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_belongs_to_the_tree_around_it() {
        let tree = Tree::of(Path::new("/tmp/x/usr/local/bin/monohull")).unwrap();
        assert_eq!((tree.root(), tree.bin), (Path::new("/tmp/x"), "usr/local/bin"));
        assert_eq!(Tree::of(Path::new("/usr/bin/monohull")).unwrap().root(), Path::new("/"));
        assert!(Tree::of(Path::new("/src/target/debug/monohull")).is_none());
    }
}
