//! A process's standard streams: vsock connections on the host's side, pipes or a pseudo terminal on the process's.
//!
//! Pipes, not sockets, because a process may open /dev/stdout, which works for pipes only. Every copy has one bounded
//! buffer, so a slow reader slows the writer down, whichever side it is on.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, Uid, fchown, fcntl_getfl, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::sync::watch;

use crate::error::{Doing, Error, Result};
use crate::{kmsg, sys};

/// Bytes per read and write; the size of a pipe.
const BUFFER: usize = 64 * 1024;
/// For a stream that the host opened before it named it in a request.
const ARRIVAL_DEADLINE: Duration = Duration::from_secs(10);

/// One stream's connection to the host.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
pub(crate) type Connection = Box<dyn Stream>;

/// Connections that wait for the request that names them.
#[derive(Clone)]
pub(crate) struct Streams {
    waiting: Arc<Mutex<HashMap<String, Connection>>>,
    arrivals: watch::Sender<()>,
}

impl Default for Streams {
    fn default() -> Self {
        Self { waiting: Arc::default(), arrivals: watch::Sender::new(()) }
    }
}

impl Streams {
    /// Reads the preamble of a new connection (its name, see agent.proto) and keeps it.
    pub(crate) async fn admit(&self, mut connection: Connection) -> io::Result<()> {
        let mut name = vec![0; connection.read_u8().await?.into()];
        connection.read_exact(&mut name).await?;
        let name = String::from_utf8(name).map_err(io::Error::other)?;
        self.lock().insert(name, connection);
        self.arrivals.send_replace(());
        Ok(())
    }

    /// Takes the connections that `stdio` names. They were opened before the request was sent, but on other
    /// connections than the request, so they may be seen a little later.
    pub(crate) async fn take(&self, stdio: &monohull_protocol::agent::Stdio) -> Result<Connections> {
        let stderr = if stdio.terminal { None } else { self.one("stderr", &stdio.stderr).await? };
        Ok(Connections {
            stdin: self.one("stdin", &stdio.stdin).await?,
            stdout: self.one("stdout", &stdio.stdout).await?,
            stderr,
        })
    }

    async fn one(&self, field: &str, name: &str) -> Result<Option<Connection>> {
        if name.is_empty() {
            return Ok(None);
        }
        let mut arrivals = self.arrivals.subscribe();
        let arrived = async {
            loop {
                if let Some(connection) = self.lock().remove(name) {
                    return connection;
                }
                // It never closes: `self` holds the sender.
                let _ = arrivals.changed().await;
            }
        };
        match tokio::time::timeout(ARRIVAL_DEADLINE, arrived).await {
            Ok(connection) => Ok(Some(connection)),
            Err(_) => Err(Error::Invalid(format!("stdio.{field}: no stream named {name:?} was opened"))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Connection>> {
        // The map is consistent at every point where a holder could have panicked.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The host's side of a process's streams. What is missing is /dev/null.
#[derive(Default)]
pub(crate) struct Connections {
    stdin: Option<Connection>,
    stdout: Option<Connection>,
    stderr: Option<Connection>,
}

/// Descriptors 0, 1 and 2 of a new process.
#[derive(Debug)]
pub(crate) struct ChildEnds {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// Our ends of a process's pipes, joined to the connections once the process exists.
#[derive(Default)]
pub(crate) struct Pipes {
    input: Option<(Connection, OwnedFd)>,
    outputs: Vec<(OwnedFd, Connection)>,
}

impl Pipes {
    /// Makes pipes for the streams that are wanted. They belong to `owner`, so that the process can reopen them.
    pub(crate) fn new(connections: Connections, owner: u32) -> Result<(Self, ChildEnds)> {
        let mut pipes = Self::default();
        let stdin = match connections.stdin {
            Some(connection) => {
                let (read, write) = pipe(owner)?;
                set_nonblocking(&write)?;
                pipes.input = Some((connection, write));
                read
            }
            None => null()?,
        };
        let mut output = |connection| match connection {
            Some(connection) => {
                let (read, write) = pipe(owner)?;
                set_nonblocking(&read)?;
                pipes.outputs.push((read, connection));
                Ok(write)
            }
            None => null(),
        };
        let (stdout, stderr) = (output(connections.stdout)?, output(connections.stderr)?);
        Ok((pipes, ChildEnds { stdin, stdout, stderr }))
    }

    /// Starts to copy. Each copy ends by itself.
    pub(crate) fn join(self) -> Result<()> {
        if let Some((connection, pipe)) = self.input {
            let interest = Interest::WRITABLE | Interest::ERROR;
            let pipe = sys::watch(pipe, interest).doing(|| "watch a pipe".into())?;
            tokio::spawn(copy_input(connection, pipe));
        }
        for (pipe, connection) in self.outputs {
            let pipe = sys::watch(pipe, Interest::READABLE).doing(|| "watch a pipe".into())?;
            tokio::spawn(async move { copy_output(&pipe, Some(connection), AtLoss::Stop).await });
        }
        Ok(())
    }
}

/// The agent's end of a process's pseudo terminal.
#[derive(Clone, Debug)]
pub(crate) struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    /// Takes over the master. The terminal is given to `owner`.
    pub(crate) fn new(master: OwnedFd, owner: u32) -> Result<Self> {
        let peer = sys::terminal_peer(&master).doing(|| "open the terminal".into())?;
        fchown(&peer, Some(Uid::from_raw(owner)), None)
            .doing(|| "give the terminal to the process's user".into())?;
        set_nonblocking(&master)?;
        Ok(Self(Arc::new(
            sys::watch(master, Interest::READABLE | Interest::WRITABLE)
                .doing(|| "watch the terminal".into())?,
        )))
    }

    /// Sets its size; 0 leaves it.
    pub(crate) fn resize(&self, columns: u32, rows: u32) -> Result<()> {
        let what = || format!("resize the terminal to {columns}x{rows}");
        if columns == 0 || rows == 0 {
            return Ok(());
        }
        let (ws_col, ws_row) = (columns.try_into().doing(what)?, rows.try_into().doing(what)?);
        let size = rustix::termios::Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(self.0.get_ref(), size).doing(what)
    }

    /// Starts to copy. Output is read even when nobody wants it: a full terminal would stop the process.
    pub(crate) fn join(&self, connections: Connections) {
        let (input, output) = (self.0.clone(), self.0.clone());
        if let Some(mut connection) = connections.stdin {
            tokio::spawn(async move {
                let mut buffer = vec![0; BUFFER];
                while let Ok(length @ 1..) = connection.read(&mut buffer).await {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    if write_all(&input, bytes).await.is_err() {
                        break;
                    }
                }
            });
        }
        tokio::spawn(async move { copy_output(&output, connections.stdout, AtLoss::Drain).await });
    }
}

/// What to do with further output when the host has closed its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AtLoss {
    /// Close the pipe: the process gets SIGPIPE, as in any pipeline.
    Stop,
    /// Read on.
    Drain,
}

async fn copy_output(source: &AsyncFd<OwnedFd>, mut connection: Option<Connection>, at_loss: AtLoss) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = match read(source, &mut buffer).await {
            Ok(0) => break,
            Ok(length) => length,
            // The end of a pseudo terminal: all its other ends are closed.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => break,
            Err(error) => {
                kmsg::error(format!("read a process's output: {error}"));
                break;
            }
        };
        let bytes = buffer.get(..length).unwrap_or_default();
        if let Some(to) = &mut connection
            && to.write_all(bytes).await.is_err()
        {
            connection = None;
            if at_loss == AtLoss::Stop {
                return;
            }
        }
    }
    if let Some(mut connection) = connection {
        drop(buffer);
        // The half-close tells the host that this was all. The connection stays until the host has read up to there.
        if connection.shutdown().await.is_ok() {
            let _ = connection.read(&mut [0]).await;
        }
    }
}

async fn copy_input(mut connection: Connection, sink: AsyncFd<OwnedFd>) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = tokio::select! {
            result = connection.read(&mut buffer) => match result {
                Ok(length @ 1..) => length,
                // The end of the input: dropping the pipe tells the process.
                _ => return,
            },
            // Nobody can read the pipe any more.
            _ = sink.ready(Interest::ERROR) => return,
        };
        if write_all(&sink, buffer.get(..length).unwrap_or_default()).await.is_err() {
            return;
        }
    }
}

async fn read(source: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    source.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *buffer)?)).await
}

async fn write_all(sink: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = sink.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await?;
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}

fn pipe(owner: u32) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe".into())?;
    // Both ends are one inode.
    fchown(&write, Some(Uid::from_raw(owner)), None).doing(|| "give a pipe to the process's user".into())?;
    Ok((read, write))
}

fn set_nonblocking(fd: impl AsFd) -> Result<()> {
    let what = || "make a descriptor non-blocking".to_owned();
    let flags = fcntl_getfl(&fd).doing(what)?;
    fcntl_setfl(&fd, flags | OFlags::NONBLOCK).doing(what)
}

fn null() -> Result<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .doing(|| "open /dev/null".into())
}

#[cfg(test)]
#[path = "stdio/tests.rs"]
mod tests;
