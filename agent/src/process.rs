//! A process of a container, from the helper that makes it to its exit status.

use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use monohull_protocol::agent::Stdio;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::clock;
use crate::error::{Doing, Error, Result};
use crate::helper::{self, Action, Reply, Request};
use crate::line::Plugs;
use crate::reaper::{Child, Reaper, exit_code};
use crate::stdio::{ChildEnds, Connections, Pipes};
use crate::sys;
use crate::terminal::Terminal;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// 0 to 255; 128 + n for signal n.
    pub(crate) code: u32,
    /// CLOCK_REALTIME, nanoseconds since 1970.
    pub(crate) at_ns: u64,
    /// How many processes of the container the OOM killer had killed by then.
    pub(crate) oom_kills: u64,
}

/// A process of a container.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    pidfd: OwnedFd,
    terminal: Option<Terminal>,
    plugs: Plugs,
    exit: watch::Receiver<Option<Exit>>,
}

impl Process {
    /// Watches over `child`. `at_exit` is called when it has ended and counts the OOM killer's victims.
    pub(crate) fn new(
        child: Child,
        (terminal, plugs): (Option<Terminal>, Plugs),
        at_exit: impl FnOnce() -> u64 + Send + 'static,
    ) -> Self {
        let (sender, exit) = watch::channel(None);
        let Child { pid, pidfd, status } = child;
        tokio::spawn(async move {
            // The reaper drops no status of a registered child.
            let code = status.await.map_or(255, exit_code);
            let at_ns = clock::real_ns();
            sender.send_replace(Some(Exit { code, at_ns, oom_kills: at_exit() }));
        });
        Self { pid: pid.as_raw_nonzero().get().unsigned_abs(), pidfd, terminal, plugs, exit }
    }

    /// Its pid in the guest.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended, if it has.
    pub(crate) fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for its end, for any number of callers.
    pub(crate) async fn wait(&self) -> Exit {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        // The sender sends before it goes.
        ended.unwrap_or(Exit { code: 255, at_ns: clock::real_ns(), oom_kills: 0 })
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: u32) -> Result<()> {
        let finished = || Error::NotFound("process already finished".into());
        if self.exit().is_some() {
            return Err(finished());
        }
        match sys::signal(&self.pidfd, signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(finished()),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                Err(Error::Invalid(format!("signal: there is no signal {signal}")))
            }
            result => result.doing(|| format!("send signal {signal} to process {}", self.pid)),
        }
    }

    /// Has its streams lead elsewhere, in a copy of the VM that it was made in.
    pub(crate) fn reconnect(&self, connections: Connections) {
        self.plugs.connect(connections);
    }

    /// Sets the size of its terminal.
    pub(crate) fn resize(&self, columns: u32, rows: u32) -> Result<()> {
        let terminal = self.terminal.as_ref();
        terminal
            .ok_or_else(|| Error::Precondition("the process has no terminal".into()))?
            .resize(columns, rows)
    }
}

/// The agent's end of the socket it shares with a helper and the process that the helper makes.
#[derive(Debug)]
pub(crate) struct Replies(BufReader<UnixStream>);

impl Replies {
    /// The next one; none when both have closed their ends.
    async fn next(&mut self) -> Result<Option<Reply>> {
        let mut line = String::new();
        self.0.read_line(&mut line).await.doing(|| "read the container helper's reply".into())?;
        if line.is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&line).map(Some).doing(|| format!("parse the container helper's reply {line:?}"))
    }

    /// Waits until the process exists. After an error the helper and all it made are gone.
    pub(crate) async fn created(&mut self) -> Result<u32> {
        let (mut refused, mut failed) = (None, None);
        while let Some(reply) = self.next().await? {
            match reply {
                Reply::Created(pid) => return Ok(pid),
                Reply::Refused(reason) => refused = Some(Error::Invalid(reason)),
                Reply::Failed(reason) => failed = Some(reason),
            }
        }
        let failed = failed.unwrap_or_else(|| "the helper ended without a reply".into());
        refused.map_or_else(|| Err(failed).doing(|| "make the container process".into()), Err)
    }

    /// Waits until a started process has executed its program.
    pub(crate) async fn executed(mut self) -> Result<()> {
        match self.next().await? {
            None => Ok(()),
            Some(Reply::Refused(reason)) => Err(Error::Invalid(reason)),
            Some(reply) => {
                Err(Error::Precondition(format!("unexpected word of a started process: {reply:?}")))
            }
        }
    }
}

/// What it takes to make container processes.
#[derive(Clone, Debug)]
pub(crate) struct Launcher {
    pub(crate) reaper: Reaper,
    /// The agent's own binary.
    pub(crate) agent: PathBuf,
    /// libcontainer's state directory.
    pub(crate) state: PathBuf,
}

/// A process to be made.
pub(crate) struct Plan<'a> {
    pub(crate) container: &'a str,
    pub(crate) action: Action,
    pub(crate) stdio: &'a Stdio,
    pub(crate) connections: Connections,
    /// The user it will run as; its streams are given to them.
    pub(crate) user: u32,
}

impl Launcher {
    /// Makes a process. An init process waits for its start; an exec'ed one runs when this returns.
    pub(crate) async fn launch(
        &self,
        plan: Plan<'_>,
        at_exit: impl FnOnce() -> u64 + Send + 'static,
    ) -> Result<(Process, Replies)> {
        let (streams, ends) = if plan.stdio.terminal {
            let console = Console::listen(&self.state)?;
            let (_, ends) = Pipes::new(Connections::default(), plan.user)?;
            (Streams::Terminal(console, plan.connections), ends)
        } else {
            let (pipes, ends) = Pipes::new(plan.connections, plan.user)?;
            (Streams::Pipes(pipes), ends)
        };
        let request = Request {
            container: plan.container.into(),
            state: self.state.clone(),
            console: streams.console(),
            action: plan.action,
        };
        let launch = self.reaper.launch();
        let mut replies = self.spawn(&request, ends)?;
        let child = launch.claim(replies.created().await?)?;
        drop(launch);
        match streams.join(plan.user, plan.stdio) {
            Ok(joined) => Ok((Process::new(child, joined, at_exit), replies)),
            Err(error) => {
                // It may be dead already.
                let _ = sys::signal(&child.pidfd, libc::SIGKILL.unsigned_abs());
                Err(error)
            }
        }
    }

    /// Starts a helper with these streams. A [`crate::reaper::Launch`] has to be under way.
    pub(crate) fn spawn(&self, request: &Request, ends: ChildEnds) -> Result<Replies> {
        let what = || "start the container helper".to_owned();
        let (ours, theirs) = StdUnixStream::pair().doing(what)?;
        // Nothing else is spawned before it is closed below: one thread of the agent spawns, this one.
        fcntl_setfd(&theirs, FdFlags::empty()).doing(what)?;
        let ChildEnds { stdin, stdout, stderr } = ends;
        // Not waited for here: the reaper collects it.
        Command::new(&self.agent)
            .args([helper::ARGUMENT, &theirs.as_raw_fd().to_string()])
            .env_clear()
            .stdin(stdin)
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .doing(what)?;
        drop(theirs);
        (&ours).write_all(&serde_json::to_vec(request).doing(what)?).doing(what)?;
        ours.shutdown(Shutdown::Write).doing(what)?;
        ours.set_nonblocking(true).doing(what)?;
        Ok(Replies(BufReader::new(UnixStream::from_std(ours).doing(what)?)))
    }
}

/// A new process's streams before they are joined.
enum Streams {
    Pipes(Pipes),
    Terminal(Console, Connections),
}

impl Streams {
    fn console(&self) -> Option<PathBuf> {
        match self {
            Self::Pipes(_) => None,
            Self::Terminal(console, _) => Some(console.path.clone()),
        }
    }

    fn join(self, user: u32, stdio: &Stdio) -> Result<(Option<Terminal>, Plugs)> {
        match self {
            Self::Pipes(pipes) => Ok((None, pipes.join())),
            Self::Terminal(console, connections) => {
                let terminal = Terminal::new(console.receive()?, user)?;
                terminal.resize(stdio.width, stdio.height)?;
                let plugs = terminal.join(connections);
                Ok((Some(terminal), plugs))
            }
        }
    }
}

/// The socket on which libcontainer delivers the master of the terminal it made in the container's devpts.
struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    fn listen(state: &Path) -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("console-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        // Beside the state directory: inside it, the name could be a container's.
        let path = state.with_file_name(name);
        let listener = UnixListener::bind(&path).doing(|| format!("listen on {}", path.display()))?;
        Ok(Self { listener, path })
    }

    /// Receives the master; it has been sent when the process exists.
    fn receive(&self) -> Result<OwnedFd> {
        let what = || "receive the terminal".to_owned();
        self.listener.set_nonblocking(true).doing(what)?;
        let (connection, _) = self.listener.accept().doing(what)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let mut name = [0; 256];
        recvmsg(&connection, &mut [IoSliceMut::new(&mut name)], &mut control, flags).doing(what)?;
        let received = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        received.ok_or("the message had no descriptor").doing(what)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // It is a name in a tmpfs; a leftover does no harm.
        let _ = std::fs::remove_file(&self.path);
    }
}
