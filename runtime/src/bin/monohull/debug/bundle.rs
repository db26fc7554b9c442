//! The file that a bug report is.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

/// Bytes of one file in it; the rest is left out.
const MAX_ENTRY: usize = 1 << 20;

/// A file in it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    /// For people.
    pub(super) what: &'static str,
    pub(super) content: Vec<u8>,
}

impl Entry {
    pub(super) fn new(name: impl Into<String>, what: &'static str, content: impl Into<Vec<u8>>) -> Self {
        let mut content = content.into();
        content.truncate(MAX_ENTRY);
        Self { name: name.into(), what, content }
    }

    /// A value as JSON, or why there is none.
    pub(super) fn json(name: impl Into<String>, what: &'static str, value: &impl serde::Serialize) -> Self {
        let text = serde_json::to_string_pretty(value).unwrap_or_else(|error| error.to_string());
        Self::new(name, what, text + "\n")
    }
}

/// Writes a new file that only its owner can read. Nothing is left of it when that fails.
pub(super) fn write(path: &Path, pod: &str, seconds: u64, entries: &[Entry]) -> io::Result<()> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    let written = write_to(file, pod, seconds, entries);
    if written.is_err() {
        // It was made just now.
        let _ = std::fs::remove_file(path);
    }
    written
}

fn write_to(file: impl Write, pod: &str, seconds: u64, entries: &[Entry]) -> io::Result<()> {
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(entry.content.len()).unwrap_or_default());
        header.set_mode(0o600);
        header.set_mtime(seconds);
        let name = format!("monohull-debug-{pod}/{}", entry.name);
        archive.append_data(&mut header, name, entry.content.as_slice())?;
    }
    archive.into_inner()?.finish()?.flush()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_is_put_in_comes_out_and_an_existing_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.tar.gz");
        let entries = [Entry::new("log.txt", "", "said"), Entry::new("big", "", vec![b'x'; MAX_ENTRY + 1])];
        write(&path, "p1", 7, &entries).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(File::open(&path).unwrap()));
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            found.push((entry.path().unwrap().display().to_string(), content.len()));
        }
        assert_eq!(
            found,
            [("monohull-debug-p1/log.txt".into(), 4), ("monohull-debug-p1/big".into(), MAX_ENTRY)]
        );
        assert_eq!(write(&path, "p1", 7, &entries).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(path.exists());
    }
}
