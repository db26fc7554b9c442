//! A client's command that runs while something happens to those it talks to.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};

use monohull_tests::watch::pidfd;

/// A command on its way.
#[derive(Debug)]
pub(crate) struct Client {
    child: Child,
    end: OwnedFd,
    /// Files and not pipes: nobody reads while it runs.
    stdout: File,
    stderr: File,
}

/// How a command has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Client {
    /// Starts `command`.
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
        command.stdin(Stdio::null()).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
        let child = command.spawn()?;
        let end = pidfd(child.id()).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { child, end, stdout, stderr })
    }

    /// Readable once it has ended.
    pub(crate) fn end(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }

    /// How it has ended, if it has.
    pub(crate) fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// What it has left, at its end or when it is given up: then it is killed.
    pub(crate) fn finish(mut self) -> io::Result<Ended> {
        let _ = self.child.kill();
        let status = self.child.wait()?;
        let text = |file: &mut File| {
            let mut bytes = Vec::new();
            file.rewind()?;
            file.read_to_end(&mut bytes)?;
            Ok::<_, io::Error>(String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(Ended { status, stdout: text(&mut self.stdout)?, stderr: text(&mut self.stderr)? })
    }
}
