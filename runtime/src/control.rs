//! A pod's control socket, `<pod>/control.sock`: how root's `monohull exec` reaches the owner of a pod. It is there only if the
//! settings allow it (`debug_exec`), in a directory that is root's alone, and neither VMM, fs server nor guest knows of it.
//!
//! `SOCK_SEQPACKET`, packets of JSON ([`monohull_vmm::ipc`]). One connection is one command: the first packet is [`Request::Exec`], answered by
//! [`Answer::Started`] with the process's streams as descriptors (input, output, errors, those that it has, in that order), or
//! [`Answer::Refused`]. Signals and sizes may follow; [`Answer::Exited`] is the last. The process of a connection that breaks is killed.

#[cfg(test)]
mod tests;

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use monohull_vmm::ipc::Channel;
use oci_spec::runtime as oci;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;

use crate::pod::Pod;
use crate::process::{Process, Stdio, Streams};
use crate::{sys, text};

const SOCKET: &str = "control.sock";
/// Connections that wait to be accepted, and commands at a time.
const BACKLOG: i32 = 4;
const MAX_COMMANDS: usize = 16;
/// What execs of ours are called, before a number.
const EXEC_ID: &str = "monohull-exec-";

/// What is asked.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Run a command in a container. Once, first.
    Exec {
        /// The container.
        container: String,
        /// The process.
        process: Box<oci::Process>,
        /// Whether it has a standard input; a terminal in place of the other two if the process has one.
        stdin: bool,
        /// Columns and rows of the terminal.
        size: Option<(u16, u16)>,
    },
    /// Send the process a signal.
    Signal(u32),
    /// Set the size of its terminal.
    Resize(u16, u16),
}

/// What is answered.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The process runs.
    Started,
    /// It does not, for this reason.
    Refused(String),
    /// It has ended with this code.
    Exited(u32),
}

/// One end of a connection, in the event loop.
#[derive(Debug)]
pub struct Connection {
    channel: Channel,
    /// For readiness only.
    ready: AsyncFd<OwnedFd>,
}

impl Connection {
    fn new(socket: OwnedFd) -> io::Result<Self> {
        let ready = sys::watch(socket.try_clone()?, Interest::READABLE | Interest::WRITABLE)?;
        let channel = Channel::new(socket);
        channel.set_nonblocking()?;
        Ok(Self { channel, ready })
    }

    /// Connects to the owner of the pod that has this directory.
    pub fn open(pod_dir: &Path) -> io::Result<Self> {
        let dir = directory(pod_dir)?;
        let socket = socket()?;
        rustix::net::connect(&socket, &address(&dir)?)?;
        Self::new(socket)
    }

    /// Receives a message and its descriptors; `None` when the other end is closed.
    pub async fn receive<T: serde::de::DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        self.ready.async_io(Interest::READABLE, |_| Ok(self.channel.receive()?)).await
    }

    /// Sends a message with descriptors.
    pub async fn send(&self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.ready.async_io(Interest::WRITABLE, |_| Ok(self.channel.send(message, fds)?)).await
    }
}

/// A UNIX socket's address is 107 bytes long at most: it is named through a descriptor of its directory.
fn directory(pod_dir: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW).open(pod_dir)
}

fn address(dir: &File) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))?)
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Listens in the pod's directory until the pod is gone.
pub(crate) fn serve(pod: &Arc<Pod>, pod_dir: &Path) -> io::Result<()> {
    let dir = directory(pod_dir)?;
    let listener = socket()?;
    rustix::net::bind(&listener, &address(&dir)?)?;
    std::fs::set_permissions(pod_dir.join(SOCKET), Permissions::from_mode(0o600))?;
    rustix::net::listen(&listener, BACKLOG)?;
    let listener = sys::watch(listener, Interest::READABLE)?;
    let (pod, vm) = (Arc::downgrade(pod), pod.watch());
    tokio::spawn(async move {
        tokio::select! {
            () = accept(&listener, &pod) => {}
            _ = vm.ended() => {}
        }
    });
    Ok(())
}

async fn accept(listener: &AsyncFd<OwnedFd>, pod: &Weak<Pod>) {
    let commands = Arc::new(Semaphore::new(MAX_COMMANDS));
    let accept = |listener: &OwnedFd| Ok(rustix::net::accept_with(listener, SocketFlags::CLOEXEC)?);
    while let Ok(socket) = listener.async_io(Interest::READABLE, accept).await {
        // One too many is closed.
        let Ok(turn) = commands.clone().try_acquire_owned() else { continue };
        let pod = pod.clone();
        tokio::spawn(async move {
            let served = async { command(&Connection::new(socket)?, &pod).await };
            if let Err(error) = served.await {
                tracing::info!(error = %text::chain(&error), step = "serve a command of monohull exec");
            }
            drop(turn);
        });
    }
}

/// Serves one connection.
async fn command(connection: &Connection, pod: &Weak<Pod>) -> io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let Some((Request::Exec { container, process, stdin, size }, _)) = connection.receive().await? else {
        return Err(io::Error::other("the first request is to run a command"));
    };
    let terminal = process.terminal().unwrap_or_default();
    let stdio = Stdio { terminal, stdin, stdout: true, stderr: !terminal, size };
    let id = format!("{EXEC_ID}{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let Some(pod) = pod.upgrade() else { return Ok(()) };
    let started = pod.exec(&container, &id, &process, stdio).await;
    drop(pod);
    let process = match started {
        Ok(process) => process,
        Err(error) => return connection.send(&Answer::Refused(text::chain(&error)), &[]).await,
    };
    tracing::info!(container, exec = id, "a command of monohull exec runs");
    let followed = follow(connection, &process).await;
    if followed.is_err() {
        // Its end is not waited for: it is the guest's.
        let _ = process.signal(libc::SIGKILL.unsigned_abs(), false).await;
    }
    followed
}

/// Hands the streams over and passes signals on, to the end of the process.
async fn follow(connection: &Connection, process: &Process) -> io::Result<()> {
    let Streams { stdin, stdout, stderr } = process.take_streams();
    let streams: Vec<_> = [stdin, stdout, stderr].into_iter().flatten().collect();
    let fds: Vec<_> = streams.iter().map(AsFd::as_fd).collect();
    connection.send(&Answer::Started, &fds).await?;
    drop(streams);
    loop {
        let request = tokio::select! {
            exit = process.wait() => return connection.send(&Answer::Exited(exit.code), &[]).await,
            request = connection.receive() => request?,
        };
        // A process that has just ended takes neither signals nor sizes; its end is the next event.
        match request {
            None => return Err(io::ErrorKind::ConnectionAborted.into()),
            Some((Request::Signal(signal), _)) => drop(process.signal(signal, false).await),
            Some((Request::Resize(columns, rows), _)) => drop(process.resize(columns, rows).await),
            Some((Request::Exec { .. }, _)) => return Err(io::Error::other("a connection runs one command")),
        }
    }
}
