//! A process in a pod: a container's init, or one that exec made.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use monohull_protocol::agent as proto;
use monohull_vmm::api::ExitReason;
use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::agent::{AgentError, ProcessKey};
use crate::pod::{Link, PodError};
use crate::state_file::StateFile;
use crate::timeline;
use crate::vm::Ended;
use crate::vsock::StreamNames;

/// Code of a process whose VM ended under it: as if killed.
const KILLED: u32 = 128 + 9;
/// Code of a process whose end can't be learned.
const UNKNOWN: u32 = 255;
/// Linux's SIGRTMAX.
const MAX_SIGNAL: u32 = 64;

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

impl Stdio {
    /// What the agent is told.
    pub(crate) fn to_request(self, names: StreamNames) -> proto::Stdio {
        let (width, height) = self.size.unwrap_or_default();
        proto::Stdio {
            terminal: self.terminal,
            stdin: names.stdin,
            stdout: names.stdout,
            stderr: names.stderr,
            width: width.into(),
            height: height.into(),
            ..Default::default()
        }
    }
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
    /// 0 to 255; 128 + n for signal n. 137 when the VM ended first.
    pub code: u32,
    /// When, by the host's clock.
    pub at: SystemTime,
    /// How many processes of the container its memory limit had killed by then.
    pub oom_kills: u64,
}

/// A process in a pod. Cheap to clone; the streams go to whoever takes them first. It does not keep the pod alive.
#[derive(Clone, Debug)]
pub struct Process {
    inner: Arc<Inner>,
}

/// How far a process has come; its end is `Inner::exit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It exists, and runs nothing of the container yet.
    Created,
    /// It is being started.
    Starting,
    /// It has been started.
    Running,
}

#[derive(Debug)]
struct Inner {
    key: ProcessKey,
    pid: u32,
    link: Link,
    streams: Mutex<Streams>,
    phase: Mutex<Phase>,
    exit: watch::Receiver<Option<Exit>>,
    /// Where a container's start is noted.
    state: Arc<StateFile>,
}

impl Process {
    /// A process in the guest that has come as far as `phase`. One that is [`Phase::Created`] waits for [`Self::start`].
    pub(crate) fn new(
        (key, pid): (ProcessKey, u32),
        phase: Phase,
        streams: Streams,
        link: Link,
        state: Arc<StateFile>,
    ) -> Self {
        let (sender, exit) = watch::channel(None);
        let waiting = wait(link.clone(), key.clone());
        tokio::spawn(async move { sender.send_replace(Some(waiting.await)) });
        Self {
            inner: Arc::new(Inner {
                key,
                pid,
                link,
                streams: streams.into(),
                phase: phase.into(),
                exit,
                state,
            }),
        }
    }

    /// Its pid in the guest.
    pub fn pid(&self) -> u32 {
        self.inner.pid
    }

    /// Takes the host's ends of its streams.
    pub fn take_streams(&self) -> Streams {
        std::mem::take(&mut *self.inner.streams.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Releases a created container's init process.
    pub async fn start(&self) -> Result<(), PodError> {
        let inner = &*self.inner;
        if self.exit().is_some() {
            return Err(PodError::Precondition("cannot start a stopped process".into()));
        }
        self.step(Phase::Created, Phase::Starting)?;
        let begun_us = timeline::now_us();
        let started = inner.link.agent.start(&inner.key.container).await;
        let reached = if started.is_ok() { Phase::Running } else { Phase::Created };
        self.step(Phase::Starting, reached)?;
        if let Err(error) = started {
            return Err(inner.link.error(error).await);
        }
        inner.state.mark("container started");
        inner.state.tally().container_started(timeline::now_us().saturating_sub(begun_us));
        Ok(())
    }

    /// Sends a signal to the process, or with `all` to every process of its container.
    pub async fn signal(&self, signal: u32, all: bool) -> Result<(), PodError> {
        let inner = &*self.inner;
        if signal > MAX_SIGNAL {
            return Err(PodError::Invalid(format!("signal {signal} does not exist")));
        }
        if !all && self.exit().is_some() {
            return Err(PodError::NotFound("process already finished".into()));
        }
        match inner.link.agent.signal(&inner.key, signal, all).await {
            Ok(()) => Ok(()),
            Err(error) => Err(inner.link.error(error).await),
        }
    }

    /// Waits for its end. When the VM ends first: code 137, the time of the VM's end.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.inner.exit.clone();
        let exit = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        // The waiting task always has an answer, unless the whole runtime is being torn down.
        exit.unwrap_or_else(|| Exit { code: KILLED, at: SystemTime::now(), oom_kills: 0 })
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        *self.inner.exit.borrow()
    }

    /// Whether it was started and has not ended.
    pub fn is_running(&self) -> bool {
        self.exit().is_none() && *self.phase() == Phase::Running
    }

    /// Sets the size of its terminal.
    pub async fn resize(&self, columns: u16, rows: u16) -> Result<(), PodError> {
        let inner = &*self.inner;
        match inner.link.agent.resize(&inner.key, columns, rows).await {
            Ok(()) => Ok(()),
            Err(error) => Err(inner.link.error(error).await),
        }
    }

    fn phase(&self) -> std::sync::MutexGuard<'_, Phase> {
        self.inner.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self, from: Phase, to: Phase) -> Result<(), PodError> {
        let mut phase = self.phase();
        if *phase != from {
            return Err(PodError::Precondition("cannot start a running process again".into()));
        }
        *phase = to;
        Ok(())
    }
}

/// The end of a process, or that of its VM.
async fn wait(link: Link, key: ProcessKey) -> Exit {
    let since = SystemTime::now();
    tokio::select! {
        biased;
        exit = link.agent.wait(&key, since) => match exit {
            Ok(exit) => exit,
            Err(AgentError::Lost(..)) => killed(&link.lost().await),
            Err(error) => {
                tracing::warn!(container = key.container, exec = key.exec, error = %error, step = "wait");
                Exit { code: UNKNOWN, at: SystemTime::now(), oom_kills: 0 }
            }
        },
        ended = link.vm.ended() => killed(&ended),
    }
}

fn killed(ended: &Ended) -> Exit {
    let oom = matches!(ended.reason, ExitReason::HostOutOfMemory | ExitReason::GuestOutOfMemory(_));
    Exit { code: KILLED, at: ended.at, oom_kills: u64::from(oom) }
}
