//! `monohull-initramfs --agent PATH --output PATH`: writes the guest's initramfs, with the agent as /init.
//!
//! The same agent gives the same bytes, whenever and by whomever it is run.

mod cpio;

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use cpio::{Archive, Entry};

/// The agent as it will be in the archive.
const INIT_MODE: u32 = 0o755;

/// Why no initramfs was written.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("usage: monohull-initramfs --agent PATH --output PATH")]
    Usage,
    #[error("read the agent {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{0} is not an ELF executable; give the agent's binary with --agent")]
    NotElf(PathBuf),
    #[error("{0} is too large for an initramfs")]
    TooLarge(PathBuf),
    #[error("write {path}")]
    Write { path: PathBuf, source: std::io::Error },
}

fn main() -> ExitCode {
    match run(std::env::args_os().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause =
                std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            eprintln!("monohull-initramfs: {error}{cause}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: impl Iterator<Item = OsString>) -> Result<(), Error> {
    let (agent, output) = parse(arguments)?;
    let binary = fs::read(&agent).map_err(|source| Error::Read { path: agent.clone(), source })?;
    if !binary.starts_with(b"\x7fELF") {
        return Err(Error::NotElf(agent));
    }
    let archive = initramfs(&binary).ok_or(Error::TooLarge(agent))?;
    // Renamed into place: whoever boots it never sees half of it.
    let mut partial = output.clone().into_os_string();
    partial.push(".partial");
    fs::write(&partial, archive)
        .and_then(|()| fs::rename(&partial, &output))
        .map_err(|source| Error::Write { path: output, source })
}

fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<(PathBuf, PathBuf), Error> {
    let (mut agent, mut output) = (None, None);
    while let Some(option) = arguments.next() {
        let value = arguments.next().ok_or(Error::Usage)?;
        match option.to_str() {
            Some("--agent") => agent = Some(value.into()),
            Some("--output") => output = Some(value.into()),
            _ => return Err(Error::Usage),
        }
    }
    agent.zip(output).ok_or(Error::Usage)
}

/// The tree that the agent finds when it begins.
///
/// The kernel opens /dev/console as its standard streams, and Rust's runtime aborts if one of them is closed and there
/// is no /dev/null to put in its place. /dev/kmsg carries errors of the first steps, before devtmpfs is mounted.
fn initramfs(agent: &[u8]) -> Option<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "run", "sys"] {
        archive.add(directory, Entry::Directory { mode: 0o755 })?;
    }
    for (name, mode, major, minor) in
        [("dev/console", 0o600, 5, 1), ("dev/kmsg", 0o600, 1, 11), ("dev/null", 0o666, 1, 3)]
    {
        archive.add(name, Entry::CharacterDevice { mode, major, minor })?;
    }
    archive.add("init", Entry::File { mode: INIT_MODE, data: agent })?;
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(list: &[&str]) -> Result<(PathBuf, PathBuf), Error> {
        parse(list.iter().map(OsString::from))
    }

    #[test]
    fn both_options_are_needed_in_any_order() {
        let (agent, output) = arguments(&["--output", "o", "--agent", "a"]).unwrap();
        assert_eq!((agent, output), ("a".into(), "o".into()));
        for list in [&["--agent", "a"][..], &["--agent"], &[], &["a", "o"]] {
            assert!(matches!(arguments(list), Err(Error::Usage)), "{list:?}");
        }
    }

    #[test]
    fn the_archive_depends_on_the_agent_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (agent, output) = (directory.path().join("agent"), directory.path().join("initramfs"));
        fs::write(&agent, b"\x7fELF and more").unwrap();
        let write = || {
            let list = ["--agent".into(), agent.clone().into(), "--output".into(), output.clone().into()];
            run(list.into_iter()).unwrap();
            fs::read(&output).unwrap()
        };
        let first = write();
        fs::File::options().write(true).open(&agent).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(first, write());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "a partial file was left");
    }

    #[test]
    fn what_is_no_executable_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let agent = directory.path().join("agent");
        fs::write(&agent, "#!/bin/sh").unwrap();
        let list = ["--agent".into(), agent.into(), "--output".into(), "/nonexistent/x".into()];
        assert!(matches!(run(list.into_iter()), Err(Error::NotElf(_))));
    }
}
