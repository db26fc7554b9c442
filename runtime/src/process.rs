//! A process in a pod: a container's init, or one that exec made.

use std::time::SystemTime;

use tokio::net::UnixStream;

use crate::pod::PodError;

/// Which streams a process has. A stream that is not wanted is `/dev/null` in the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stdio {
    /// One pseudo terminal in place of three pipes; then `stderr` is not used.
    pub terminal: bool,
    /// Standard input is wanted.
    pub stdin: bool,
    /// Standard output is wanted.
    pub stdout: bool,
    /// Standard error is wanted.
    pub stderr: bool,
    /// Initial columns and rows of the terminal, if known.
    pub size: Option<(u16, u16)>,
}

/// The host's ends of a process's streams, ready when the process exists.
#[derive(Debug, Default)]
pub struct Streams {
    /// Written by the host; shutting it down for writing is the end of the input.
    pub stdin: Option<UnixStream>,
    /// Read by the host until its end, which comes after the process and all that inherited the stream are gone.
    pub stdout: Option<UnixStream>,
    /// Likewise.
    pub stderr: Option<UnixStream>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// 0 to 255; 128 + n for signal n.
    pub code: u32,
    /// When.
    pub at: SystemTime,
    /// The container's memory limit has killed a process.
    pub oom: bool,
}

/// A process in a pod. Cheap to clone; the streams go to whoever takes them first.
#[derive(Clone, Debug)]
pub struct Process {}

impl Process {
    /// Its pid in the guest.
    pub fn pid(&self) -> u32 {
        0
    }

    /// Takes the host's ends of its streams.
    pub fn take_streams(&self) -> Streams {
        Streams::default()
    }

    /// Releases a created container's init process.
    pub async fn start(&self) -> Result<(), PodError> {
        Err(PodError::Precondition("not built yet".into()))
    }

    /// Sends a signal to the process, or with `all` to every process of its container.
    pub async fn signal(&self, _signal: u32, _all: bool) -> Result<(), PodError> {
        Err(PodError::Precondition("not built yet".into()))
    }

    /// Waits for its end. When the VM ends first: code 137, the time of the VM's end.
    pub async fn wait(&self) -> Exit {
        Exit { code: 0, at: SystemTime::now(), oom: false }
    }

    /// Sets the size of its terminal.
    pub async fn resize(&self, _columns: u16, _rows: u16) -> Result<(), PodError> {
        Err(PodError::Precondition("not built yet".into()))
    }
}
