//! A process's standard streams: vsock connections on the host's side, pipes (here) or a pseudo
//! terminal (`terminal.rs`) on the process's.
//!
//! Pipes, not sockets, because a process may open /dev/stdout, which works for pipes only. Every copy has one bounded
//! buffer, so a slow reader slows the writer down, whichever side it is on.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, Uid, fchown};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::watch;

use crate::error::{Doing, Error, Result};
use crate::kmsg;
use crate::line::{Line, Plugs};
use crate::pipe::Pipe;

/// Bytes per read and write; the size of a pipe.
pub(crate) const BUFFER: usize = 64 * 1024;
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
    /// The pod is being saved, or is a copy that has not been told which pod it is.
    frozen: watch::Sender<bool>,
}

impl Default for Streams {
    fn default() -> Self {
        let (arrivals, frozen) = (watch::Sender::new(()), watch::Sender::new(false));
        Self { waiting: Arc::default(), arrivals, frozen }
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
        let stderr = if stdio.terminal { None } else { self.one("stdio.stderr", &stdio.stderr).await? };
        Ok(Connections {
            stdin: self.one("stdio.stdin", &stdio.stdin).await?,
            stdout: self.one("stdio.stdout", &stdio.stdout).await?,
            stderr,
            frozen: self.frozen.subscribe(),
        })
    }

    /// Whether connections that break may be replaced ([`Line`]). Returns a receiver of just that.
    pub(crate) fn set_frozen(&self, frozen: bool) -> watch::Receiver<bool> {
        self.frozen.send_replace(frozen);
        self.frozen.subscribe()
    }

    /// Takes the connection called `name`, which `field` of a request names.
    pub(crate) async fn one(&self, field: &str, name: &str) -> Result<Option<Connection>> {
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
            Err(_) => Err(Error::Invalid(format!("{field}: no stream named {name:?} was opened"))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Connection>> {
        // The map is consistent at every point where a holder could have panicked.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The host's side of a process's streams. What is missing is /dev/null.
pub(crate) struct Connections {
    pub(crate) stdin: Option<Connection>,
    pub(crate) stdout: Option<Connection>,
    pub(crate) stderr: Option<Connection>,
    /// See [`Streams::set_frozen`].
    pub(crate) frozen: watch::Receiver<bool>,
}

impl Default for Connections {
    fn default() -> Self {
        Self { stdin: None, stdout: None, stderr: None, frozen: watch::channel(false).1 }
    }
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
    input: Option<(Line, Pipe)>,
    outputs: Vec<(Pipe, Line)>,
    plugs: Plugs,
}

impl Pipes {
    /// Makes pipes for the streams that are wanted. They belong to `owner`, so that the process can reopen them.
    pub(crate) fn new(connections: Connections, owner: u32) -> Result<(Self, ChildEnds)> {
        let mut pipes = Self::default();
        let Connections { stdin, stdout, stderr, frozen } = connections;
        let stdin = match stdin {
            Some(connection) => {
                let (read, write) = pipe(owner)?;
                let (line, plug) = Line::new(Some(connection), frozen.clone());
                pipes.input = Some((line, Pipe::writer(write)?));
                pipes.plugs.stdin = Some(plug);
                read
            }
            None => null()?,
        };
        let outputs = &mut pipes.outputs;
        let mut output = |connection| match connection {
            Some(connection) => {
                let (read, write) = pipe(owner)?;
                let (line, plug) = Line::new(Some(connection), frozen.clone());
                outputs.push((Pipe::reader(read)?, line));
                Ok((write, Some(plug)))
            }
            None => Ok((null()?, None)),
        };
        let (stdout, plug) = output(stdout)?;
        pipes.plugs.stdout = plug;
        let (stderr, plug) = output(stderr)?;
        pipes.plugs.stderr = plug;
        Ok((pipes, ChildEnds { stdin, stdout, stderr }))
    }

    /// Starts to copy. Each copy ends by itself.
    pub(crate) fn join(self) -> Plugs {
        if let Some((line, pipe)) = self.input {
            tokio::spawn(copy_input(line, pipe));
        }
        for (pipe, line) in self.outputs {
            tokio::spawn(copy_output(pipe, line));
        }
        self.plugs
    }
}

async fn copy_output(source: Pipe, mut line: Line) {
    let mut buffer = Vec::new();
    loop {
        if let Err(error) = source.read(&mut buffer).await {
            kmsg::error(format!("read a process's output: {error}"));
            break;
        }
        if buffer.is_empty() {
            break;
        }
        if line.write_all(&buffer).await.is_err() {
            // The host does not want it: the process gets SIGPIPE, as in any pipeline.
            return;
        }
    }
    drop((source, buffer));
    line.finish().await;
}

async fn copy_input(mut line: Line, sink: Pipe) {
    let mut buffer = Vec::new();
    loop {
        buffer.clear();
        buffer.reserve_exact(BUFFER);
        tokio::select! {
            result = line.read(&mut buffer) => if !matches!(result, Ok(1..)) {
                // The end of the input: dropping the pipe tells the process.
                return;
            },
            // Nobody can read the pipe any more.
            () = sink.broken() => return,
        }
        match sink.write_all(buffer).await {
            Ok(room) => buffer = room,
            Err(_) => return,
        }
    }
}

fn pipe(owner: u32) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe".into())?;
    // Both ends are one inode.
    fchown(&write, Some(Uid::from_raw(owner)), None).doing(|| "give a pipe to the process's user".into())?;
    Ok((read, write))
}

fn null() -> Result<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .doing(|| "open /dev/null".into())
}

#[cfg(test)]
#[path = "stdio/tests.rs"]
mod tests;
