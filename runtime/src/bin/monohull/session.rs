//! One container from its pod's start to its end: streams, signals, terminal, exit code.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use futures_util::FutureExt;
use monohull_runtime::pod::{ContainerConfig, Pod, PodConfig, PodError};
use monohull_runtime::process::{Exit, Process, Streams};
use monohull_runtime::spans::Spans;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

use crate::failure::{Failure, say};
use crate::run::OWN_FAILURE;
use crate::scratch::Scratch;
use crate::streams;
use crate::terminal::{self, Raw};

/// Docker's code for a program that is there but can't be executed.
const NOT_EXECUTABLE: u8 = 126;
/// Docker's code for a program that is not there.
const NOT_FOUND: u8 = 127;
/// Signals that end us: after that many the container is not asked any more.
const PATIENCE: u32 = 3;

/// What to run.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) pod: PodConfig,
    pub(crate) container: ContainerConfig,
    /// Holds the root and files that `container` names.
    pub(crate) scratch: Scratch,
}

/// Runs the container and returns its process's exit code. Leaves nothing behind.
///
/// `network` is the host's network namespace, where spans of the start are sent to.
pub(crate) async fn run(
    session: Session,
    network: Option<Arc<OwnedFd>>,
    signals: &mut Signals,
) -> Result<u8, Failure> {
    let Session { pod, container, scratch } = session;
    let terminal = container.stdio.terminal;
    let (spans, timeline) = (Spans::new(&pod.id, &pod.namespace, network), pod.timeline.clone());
    spans.follow(&pod.settings);
    // A signal drops the pod on its way, and that kills its VM.
    let (pod, process) = tokio::select! {
        started = Pod::start_with(pod, container) => started.map_err(|e| {
            let failure = start_failure(&e);
            spans.send(&timeline, Some(&failure.message));
            failure
        })?,
        number = signals.terminating() => return Ok(killed_by(number)),
    };
    let ended = async {
        let streams = process.take_streams();
        let raw = Raw::of_stdin(terminal, streams.stdin.is_some())?;
        process.start().await.map_err(|e| start_failure(&e))?;
        spans.send(&timeline, None);
        attend(&process, streams, raw, signals).await
    };
    let ended = ended.await;
    let result = end(&pod, ended).await;
    drop(pod);
    drop(scratch);
    result
}

/// Stays with a process that runs already to its end, which is that of its pod.
pub(crate) async fn attend_to_end(
    pod: &Pod,
    process: &Process,
    terminal: bool,
    signals: &mut Signals,
) -> Result<u8, Failure> {
    let ended = async {
        let streams = process.take_streams();
        let raw = Raw::of_stdin(terminal, streams.stdin.is_some())?;
        if let Some((columns, rows)) = terminal::size().filter(|_| terminal) {
            // It may be of another size than the original's. Whoever draws on it is told to draw anew, so that there is something.
            let _ = process.resize(columns, rows).await;
        }
        attend(process, streams, raw, signals).await
    };
    let ended = ended.await;
    end(pod, ended).await
}

/// Ends the pod of a process that has ended or was given up.
async fn end(pod: &Pod, ended: Result<u8, Failure>) -> Result<u8, Failure> {
    let reason = pod.ended().now_or_never();
    let shutdown = pod.shutdown().await;
    let code = ended?;
    if let Some(reason) = reason {
        return Err(Failure::new(PodError::Ended(reason).to_string()).with_code(code));
    }
    // The process's exit code stands; that the pod did not go in good order is worth a line.
    if let Err(error) = shutdown {
        say(&Failure::of("cannot end the pod in good order", &error).message);
    }
    Ok(code)
}

/// Stays with a process that runs to its end.
async fn attend(
    process: &Process,
    streams: Streams,
    raw: Option<Raw>,
    signals: &mut Signals,
) -> Result<u8, Failure> {
    let input = streams.stdin.map(|stream| tokio::spawn(streams::feed(tokio::io::stdin(), stream)));
    let mut outputs = JoinSet::new();
    if let Some(stream) = streams.stdout {
        outputs.spawn(streams::drain(stream, tokio::io::stdout()));
    }
    if let Some(stream) = streams.stderr {
        outputs.spawn(streams::drain(stream, tokio::io::stderr()));
    }
    let code = match wait(process, signals).await {
        Ok(exit) => {
            // The last output may still be on its way; whoever does not want to wait for it sends another signal.
            tokio::select! {
                () = async { while outputs.join_next().await.is_some() {} } => (),
                _ = signals.terminating() => (),
            }
            if exit.oom_kills > 0 && exit.code == 137 {
                say("a process of the container was killed for want of memory: raise --memory");
            }
            u8::try_from(exit.code).unwrap_or(u8::MAX)
        }
        Err(number) => killed_by(number),
    };
    if let Some(input) = input {
        input.abort();
    }
    drop(raw);
    Ok(code)
}

/// Waits for the process's end and meanwhile forwards signals and sizes. The user's patience may end first: then the
/// number of the last signal is the error.
async fn wait(process: &Process, signals: &mut Signals) -> Result<Exit, i32> {
    let mut exit = std::pin::pin!(process.wait());
    let mut forwarded = 0;
    loop {
        let event = tokio::select! {
            exit = &mut exit => return Ok(exit),
            event = signals.next() => event,
        };
        // A process that has just ended takes neither signals nor sizes; its end is the next event.
        match event {
            Event::Resized => {
                if let Some((columns, rows)) = terminal::size() {
                    let _ = process.resize(columns, rows).await;
                }
            }
            Event::Terminating(number) => {
                forwarded += 1;
                if forwarded >= PATIENCE {
                    return Err(number);
                }
                let _ = process.signal(number.unsigned_abs(), false).await;
            }
        }
    }
}

/// A process that can't be made or released: docker's exit code if its program is the reason, else our own.
fn start_failure(error: &PodError) -> Failure {
    let failure = Failure::of("cannot start the container", error);
    let code = start_code(&failure.message);
    failure.with_code(code)
}

/// The agent's words for a program that it can't execute are runc's, from which every engine derives the code:
/// `exec: "name": why` before the program is found, `exec /path: why` after.
fn start_code(message: &str) -> u8 {
    let program = ["exec: \"", "exec /"].iter().any(|words| message.contains(words));
    let missing = ["executable file not found", "no such file or directory"];
    match program {
        true if missing.iter().any(|words| message.contains(words)) => NOT_FOUND,
        true => NOT_EXECUTABLE,
        false => OWN_FAILURE,
    }
}

/// The exit code of a process that a signal killed.
pub(crate) fn killed_by(number: i32) -> u8 {
    u8::try_from(128 + number).unwrap_or(u8::MAX)
}

/// The signals that this process gets.
#[derive(Debug)]
pub(crate) struct Signals {
    terminating: Vec<(i32, Signal)>,
    resized: Signal,
}

/// A signal that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// SIGINT, SIGTERM, SIGHUP or SIGQUIT, by number.
    Terminating(i32),
    /// SIGWINCH.
    Resized,
}

impl Signals {
    /// Catches them from now on.
    pub(crate) fn new() -> std::io::Result<Self> {
        let kinds =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
        let terminating = kinds.into_iter().map(|kind| Ok((kind.as_raw_value(), signal(kind)?)));
        Ok(Self {
            terminating: terminating.collect::<std::io::Result<_>>()?,
            resized: signal(SignalKind::window_change())?,
        })
    }

    /// Waits for the next signal.
    pub(crate) async fn next(&mut self) -> Event {
        let terminating = self.terminating.iter_mut().map(|(number, signal)| {
            let number = *number;
            Box::pin(async move {
                signal.recv().await;
                number
            })
        });
        tokio::select! {
            (number, ..) = futures_util::future::select_all(terminating) => Event::Terminating(number),
            _ = self.resized.recv() => Event::Resized,
        }
    }

    /// Waits for a signal that asks for the end, and returns its number.
    pub(crate) async fn terminating(&mut self) -> i32 {
        loop {
            if let Event::Terminating(number) = self.next().await {
                return number;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_do_not_start_have_dockers_codes() {
        for (message, code) in [
            ("c: exec: \"sleeep\": executable file not found in $PATH", 127),
            ("c: exec: \"/sleeep\": stat /sleeep: no such file or directory", 127),
            ("c: exec: \"sleeep\": permission denied", 126),
            ("c: exec /bin/sleeep: exec format error", 126),
            ("cannot open /dev/kvm: no such file or directory", 125),
            ("mounts[3] (/data): cannot read /data: permission denied", 125),
        ] {
            assert_eq!(start_code(message), code, "{message}");
        }
    }

    #[test]
    fn signals_exit_as_shells_say() {
        assert_eq!(killed_by(libc::SIGTERM), 143);
        assert_eq!(killed_by(libc::SIGINT), 130);
    }

    #[tokio::test]
    async fn signals_arrive_by_number() {
        let mut signals = Signals::new().unwrap();
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP).unwrap();
        assert_eq!(signals.terminating().await, libc::SIGHUP);
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGWINCH).unwrap();
        assert!(matches!(signals.next().await, Event::Resized));
    }
}
