//! A pod's socket for `monohull exec`: commands in the guest itself, if the settings have a `debug_shell`. Else there is no socket.
//!
//! It is in the pod's directory, which is root's alone, and neither VMM, fs server nor guest knows of it. Packets of JSON
//! ([`monohull_vmm::ipc`]); one connection is one command. The first packet is [`Request::Run`]. The answer is [`Answer::Started`] with
//! the command's streams (input, output, errors, those that it has, in that order), which lead into the guest and not through the
//! pod's owner, or [`Answer::Refused`]. [`Request::Resize`] may follow; [`Answer::Exited`] or [`Answer::Ended`] is the last.
//!
//! Nobody waits for the end of a stream to learn of the end of a command: that is a packet, and with the command's process ends
//! all that it has started, so that the streams end, too. A connection that closes is the command's end.

#[cfg(test)]
mod tests;

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Weak;

use monohull_vmm::api::MAX_MESSAGE;
use monohull_vmm::ipc::{Channel, IpcError};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::pod::Pod;
use crate::process::{Process, Stdio, Streams};
use crate::{sys, text};

const SOCKET: &str = "exec.sock";
/// Connections that wait to be accepted.
const BACKLOG: i32 = 4;

/// What is asked.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Run a command. Once, first.
    Run {
        /// Arguments of busybox: an applet and its arguments.
        args: Vec<String>,
        /// Variables of its environment.
        env: Vec<String>,
        /// Whether it has a standard input.
        stdin: bool,
        /// Whether it has a terminal, in place of three pipes.
        terminal: bool,
        /// Columns and rows of the terminal.
        size: Option<(u16, u16)>,
    },
    /// Set the size of its terminal.
    Resize(u16, u16),
}

/// What is answered.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It runs.
    Started,
    /// It does not, for this reason.
    Refused(String),
    /// It has ended with this code.
    Exited(u32),
    /// The pod ends, and with it the command.
    Ended(String),
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

    /// Connects to the owner of the pod that has this directory. Not found: the pod was started without a `debug_shell`.
    pub fn open(pod_dir: &Path) -> io::Result<Self> {
        let dir = directory(pod_dir)?;
        let socket = socket()?;
        rustix::net::connect(&socket, &address(&dir)?)?;
        Self::new(socket)
    }

    /// Receives a message and its descriptors; `None` when the other end is closed.
    pub async fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        self.ready.async_io(Interest::READABLE, |_| Ok(self.channel.receive()?)).await
    }

    /// Sends a message with descriptors. Invalid input: it is longer than a packet.
    pub async fn send(&self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let sent = |_: &OwnedFd| self.channel.send(message, fds).map_err(unsent);
        self.ready.async_io(Interest::WRITABLE, sent).await
    }
}

fn unsent(error: IpcError) -> io::Error {
    match error {
        IpcError::TooLarge => {
            let reason = format!("a command and its arguments have at most {MAX_MESSAGE} bytes");
            io::Error::new(io::ErrorKind::InvalidInput, reason)
        }
        error => error.into(),
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

/// Listens in a pod's directory.
pub(crate) fn listen(pod_dir: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let dir = directory(pod_dir)?;
    let listener = socket()?;
    rustix::net::bind(&listener, &address(&dir)?)?;
    std::fs::set_permissions(pod_dir.join(SOCKET), Permissions::from_mode(0o600))?;
    rustix::net::listen(&listener, BACKLOG)?;
    sys::watch(listener, Interest::READABLE)
}

/// Serves any number of commands at a time, until nobody can be accepted any more.
pub(crate) async fn serve(listener: AsyncFd<OwnedFd>, pod: Weak<Pod>) {
    let accept = |listener: &OwnedFd| Ok(rustix::net::accept_with(listener, SocketFlags::CLOEXEC)?);
    loop {
        let socket = match listener.async_io(Interest::READABLE, accept).await {
            Ok(socket) => socket,
            Err(error) => return tracing::warn!(%error, step = "accept who wants a command in the guest"),
        };
        let pod = pod.clone();
        tokio::spawn(async move {
            let served = async { command(&Connection::new(socket)?, &pod).await };
            if let Err(error) = served.await {
                tracing::info!(error = %text::chain(&error), step = "serve a command of monohull exec");
            }
        });
    }
}

/// Serves one connection.
async fn command(connection: &Connection, pod: &Weak<Pod>) -> io::Result<()> {
    let Some((Request::Run { args, env, stdin, terminal, size }, _)) = connection.receive().await? else {
        return Err(io::Error::other("the first request is to run a command"));
    };
    let stdio = Stdio { terminal, stdin, stdout: true, stderr: !terminal, size };
    // Not before: a pod lives no longer for somebody who asks nothing.
    let Some(pod) = pod.upgrade() else { return Ok(()) };
    let end = pod.watch_end();
    let started = pod.debug(args.clone(), env, stdio).await;
    drop(pod);
    let process = match started {
        Ok(process) => process,
        Err(error) => return connection.send(&Answer::Refused(text::chain(&error)), &[]).await,
    };
    // Not its arguments: logs go into bug reports, and secrets may be among them.
    let program = args.first().map_or("", String::as_str);
    tracing::info!(program, arguments = args.len(), "a command of monohull exec runs in the guest");
    let last = tokio::select! {
        biased;
        reason = end.reason() => Ok(Answer::Ended(reason)),
        last = follow(connection, &process) => last,
    };
    match last {
        Ok(last) => connection.send(&last, &[]).await,
        Err(error) => {
            // Its end is not waited for: it is the guest's.
            let _ = process.signal(libc::SIGKILL.unsigned_abs(), false).await;
            Err(error)
        }
    }
}

/// Hands the streams over, and waits for the end of the process.
async fn follow(connection: &Connection, process: &Process) -> io::Result<Answer> {
    let Streams { stdin, stdout, stderr } = process.take_streams();
    let streams: Vec<_> = [stdin, stdout, stderr].into_iter().flatten().collect();
    let fds: Vec<_> = streams.iter().map(AsFd::as_fd).collect();
    connection.send(&Answer::Started, &fds).await?;
    drop(streams);
    loop {
        let request = tokio::select! {
            exit = process.wait() => return Ok(Answer::Exited(exit.code)),
            request = connection.receive() => request?,
        };
        match request {
            // A process that has just ended takes no size; its end is the next event.
            Some((Request::Resize(columns, rows), _)) => drop(process.resize(columns, rows).await),
            Some((Request::Run { .. }, _)) => return Err(io::Error::other("a connection runs one command")),
            None => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "its client has gone")),
        }
    }
}
