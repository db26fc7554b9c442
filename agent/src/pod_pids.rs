//! A PID namespace of the pod's own, for the containers that share one. Its first process does nothing but keep it, and
//! collect orphans.
//!
//! The agent can't make it: a process enters a new PID namespace only by being born. So the agent executes itself as a
//! maker, whose child is the keeper, and which then ends.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use crate::error::{Doing, Result};
use crate::process::Launcher;
use crate::reaper::Child;
use crate::{kmsg, sys};

/// First argument of the maker.
pub(crate) const MAKER: &str = "make-pod-pids";
/// First argument of the keeper.
pub(crate) const KEEPER: &str = "keep-pod-pids";

/// The namespace, for as long as the VM.
#[derive(Debug)]
pub(crate) struct PodPids {
    keeper: Child,
}

impl PodPids {
    /// Makes the namespace.
    pub(crate) async fn new(launcher: &Launcher) -> Result<Self> {
        let what = || "make the pod's PID namespace".to_owned();
        let (ours, theirs) = StdUnixStream::pair().doing(what)?;
        ours.set_nonblocking(true).doing(what)?;
        let launch = launcher.reaper.launch();
        Command::new(&launcher.agent)
            .arg(MAKER)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(OwnedFd::from(theirs))
            .stderr(Stdio::null())
            .spawn()
            .doing(what)?;
        let mut pid = String::new();
        let mut ours = UnixStream::from_std(ours).doing(what)?;
        ours.read_to_string(&mut pid).await.doing(what)?;
        let keeper = launch.claim(pid.trim().parse().doing(what)?)?;
        Ok(Self { keeper })
    }

    /// Its place in the agent's /proc.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/pid", self.keeper.pid.as_raw_nonzero()).into()
    }
}

/// The maker's main function: prints the keeper's pid.
pub(crate) fn make() -> ExitCode {
    let made = sys::new_pid_namespace().and_then(|()| {
        let keeper =
            Command::new("/proc/self/exe").arg(KEEPER).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        writeln!(std::io::stdout(), "{}", keeper.id())
    });
    match made {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            kmsg::error(format!("make the pod's PID namespace: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// The keeper's main function.
pub(crate) fn keep() -> ! {
    sys::ignore_children();
    loop {
        std::thread::park();
    }
}
