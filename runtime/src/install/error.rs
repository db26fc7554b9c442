//! Why something is not installed or removed.

use std::io;
use std::path::{Path, PathBuf};

/// Why nothing was installed or removed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file operation failed.
    #[error("cannot {what} {path}")]
    Io {
        /// The verb.
        what: &'static str,
        /// The path, below the root directory.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Something that is no regular file is where one belongs.
    #[error("{0} is not a regular file: move it out of the way")]
    NotAFile(PathBuf),
    /// There is nothing to install.
    #[error("{0} is not part of an unpacked release: name the directory of one with --from")]
    NoTree(PathBuf),
    /// A part of the release is missing.
    #[error("the release in {tree} has no {file}: unpack it again, all of it")]
    Incomplete {
        /// The unpacked tarball.
        tree: PathBuf,
        /// What it lacks.
        file: PathBuf,
    },
    /// containerd's configuration is not TOML.
    #[error("{0} is not valid TOML: mend it, or leave the engine out with --engine")]
    Toml(PathBuf, #[source] Box<toml_edit::TomlError>),
    /// A configuration that is not written as text or is of a version that Monohull does not know.
    #[error(
        "{path} is of version {version}: convert it with 'containerd config migrate', or leave it out with --engine"
    )]
    ConfigVersion {
        /// The file.
        path: PathBuf,
        /// What it says of itself; 1 when it says nothing.
        version: i64,
    },
    /// No table can be added at the end of the file.
    #[error(
        "{0} has its runtimes in inline tables, to which nothing can be added: write them as [tables], or leave it out with --engine"
    )]
    Inline(PathBuf),
    /// An engine that was asked for is not there.
    #[error("{0} is not on this host: nothing of it was found below {1}")]
    NoEngine(&'static str, PathBuf),
    /// The manifest is damaged or of another release.
    #[error("{0} cannot be understood: it belongs to another release of Monohull, or is damaged")]
    Manifest(PathBuf, #[source] serde_json::Error),
    /// There is no manifest.
    #[error("nothing is installed below {0} by 'monohull install'")]
    NotInstalled(PathBuf),
    /// What a changed file was before is lost.
    #[error("{0} is not what was saved there: what it was made from cannot be restored")]
    Backup(PathBuf),
    /// Another process is at it.
    #[error("another 'monohull install' or 'uninstall' runs below {0}: wait for it")]
    Busy(PathBuf),
    /// A step failed, and so did undoing those before it.
    #[error("{cause}; undoing the rest failed as well ({undoing}): run 'monohull uninstall'")]
    HalfWay {
        /// What failed first.
        #[source]
        cause: Box<InstallError>,
        /// What failed then.
        undoing: String,
    },
}

impl InstallError {
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }

    pub(super) fn sys(what: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Io { what, path: path.to_owned(), source: errno.into() }
    }
}
