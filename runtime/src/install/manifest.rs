//! What `monohull install` has done, so that it can be undone: `/var/lib/monohull/install.json`, and beside it the files
//! that it changed, as they were.

use std::fmt::Write as _;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::root::{Attributes, Root};
use super::{InstallError, Kind, MANIFEST};

/// The version of `install.json` that this code writes.
const VERSION: u32 = 1;
/// Where files are saved before they are changed, by their hash.
const BACKUPS: &str = "/var/lib/monohull/install";

/// Contents of `install.json`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// Format of this file; readers refuse others.
    version: u32,
    /// The release of Monohull that wrote it.
    release: String,
    /// Directories that were not there, outermost first.
    pub(super) directories: Vec<PathBuf>,
    /// Files that were made or changed.
    pub(super) files: Vec<Installed>,
}

/// A file that was made or changed.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Installed {
    /// Where it is, below the root directory.
    pub(super) path: PathBuf,
    /// What it was made to be.
    pub(super) sha256: String,
    /// What it was before; `None` when it was not there.
    pub(super) before: Option<Before>,
    /// The lines in it that are Monohull's; `None` when it is as a whole.
    pub(super) lines: Option<String>,
    /// What was put into a new file beside those lines.
    pub(super) initial: Option<String>,
    /// The engine that reads it.
    pub(super) engine: Option<Kind>,
}

/// A file before it was changed.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Before {
    /// Its hash, and its name among the backups.
    pub(super) sha256: String,
    /// Permissions.
    pub(super) mode: u32,
    /// Owner.
    pub(super) uid: u32,
    /// Group.
    pub(super) gid: u32,
}

impl Manifest {
    /// Reads it; `None` when there is none.
    pub(super) fn read(root: &Root) -> Result<Option<Self>, InstallError> {
        let path = Path::new(MANIFEST);
        let Some(text) = root.text(path)? else { return Ok(None) };
        let invalid = |e| InstallError::Manifest(path.into(), e);
        let manifest: Self = serde_json::from_str(&text).map_err(invalid)?;
        if manifest.version != VERSION {
            let message = format!("its version is {}, not {VERSION}", manifest.version);
            return Err(invalid(serde::de::Error::custom(message)));
        }
        Ok(Some(manifest))
    }

    /// An empty one, of this release.
    pub(super) fn new() -> Self {
        Self { version: VERSION, release: env!("CARGO_PKG_VERSION").into(), ..Self::default() }
    }

    /// The bytes to be written.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, InstallError> {
        let current = Self { version: VERSION, release: env!("CARGO_PKG_VERSION").into(), ..self.clone() };
        let mut bytes =
            serde_json::to_vec_pretty(&current).map_err(|e| InstallError::Manifest(MANIFEST.into(), e))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// What was done to the file at `path`.
    pub(super) fn file(&self, path: &Path) -> Option<&Installed> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Notes what is done to a file, in place of what was known of it.
    pub(super) fn set(&mut self, file: Installed) {
        match self.files.iter_mut().find(|known| known.path == file.path) {
            Some(known) => *known = file,
            None => self.files.push(file),
        }
    }
}

impl Before {
    /// Of a file as it is.
    pub(super) fn new(sha256: String, attributes: Attributes) -> Self {
        Self { sha256, mode: attributes.mode, uid: attributes.uid, gid: attributes.gid }
    }

    /// Its owner and permissions.
    pub(super) fn attributes(&self) -> Attributes {
        Attributes { mode: self.mode, uid: self.uid, gid: self.gid }
    }

    /// Where it is saved.
    pub(super) fn backup(&self) -> PathBuf {
        Path::new(BACKUPS).join(&self.sha256)
    }
}

/// The hash of all that `source` has, in hexadecimal digits.
pub(super) fn hash_of(mut source: impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(size) => hash.update(buffer.get(..size).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hash.finalize().iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string can't fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    }))
}
