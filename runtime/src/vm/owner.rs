//! The task that owns a VMM: its process, its socket, the requests under way.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::SystemTime;

use monohull_protocol::{RPC_PORT, SOCKET_PORT};
use monohull_vmm::api::{Action, Done, Event, ExitReason, FromVmm, Reply, Request};
use monohull_vmm::client::Vmm;
use nix::sys::signal::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Command, Ended};
use crate::cgroup::OomCounter;
use crate::log::{self, Part, Words};
use crate::sockets::Sockets;
use crate::tally::Tally;
use crate::timeline::Timeline;
use crate::{sys, text};

/// Most start marks taken from a VMM.
const MAX_MARKS: usize = 32;
/// Most characters taken of a text that the VMM or guest wrote.
const MAX_TEXT: usize = 512;

/// Who waits for the agent's connection, who serves those to sockets of the host, and where the VMM's marks, the guest's
/// memory in MiB, and that it has reported what is free are noted.
#[derive(Debug)]
pub(super) struct Expected {
    agent: Option<oneshot::Sender<UnixStream>>,
    sockets: Arc<Sockets>,
    memory: watch::Sender<u32>,
    reports: watch::Sender<bool>,
    timeline: Timeline,
    /// How many marks are taken.
    marks: usize,
}

impl Expected {
    pub(super) fn new(
        agent: oneshot::Sender<UnixStream>,
        sockets: Arc<Sockets>,
        memory: watch::Sender<u32>,
        reports: watch::Sender<bool>,
        timeline: Timeline,
    ) -> Self {
        Self { agent: Some(agent), sockets, memory, reports, timeline, marks: MAX_MARKS }
    }
}

/// See the module. Dropping it kills the VMM.
#[derive(Debug)]
pub(super) struct Owner {
    vmm: Vmm,
    /// The VMM's standard error.
    words: Words,
    /// For readiness only, like `socket`: the VMM's own descriptors can't be in two places.
    pidfd: AsyncFd<OwnedFd>,
    socket: AsyncFd<OwnedFd>,
    commands: mpsc::UnboundedReceiver<Command>,
    ended: watch::Sender<Option<Ended>>,
    expected: Expected,
    tally: Option<Tally>,
    oom: Option<OomCounter>,
    outgoing: VecDeque<(Request, Vec<OwnedFd>)>,
    pending: HashMap<u64, oneshot::Sender<Result<Done, String>>>,
    next_id: u64,
    reason: Option<ExitReason>,
}

impl Owner {
    pub(super) fn new(
        (vmm, words): (Vmm, Words),
        commands: mpsc::UnboundedReceiver<Command>,
        ended: watch::Sender<Option<Ended>>,
        expected: Expected,
        tally: Option<Tally>,
    ) -> io::Result<Self> {
        let pidfd = sys::watch(vmm.pidfd().try_clone_to_owned()?, Interest::READABLE)?;
        let socket = sys::watch(vmm.socket().try_clone_to_owned()?, Interest::READABLE | Interest::WRITABLE)?;
        let (outgoing, pending) = (VecDeque::new(), HashMap::new());
        Ok(Self {
            vmm,
            words,
            pidfd,
            socket,
            commands,
            ended,
            expected,
            tally,
            oom: OomCounter::of_own_cgroup(),
            outgoing,
            pending,
            next_id: 1,
            reason: None,
        })
    }

    /// Serves until the VMM's process is gone.
    pub(super) async fn run(mut self) {
        let (mut open, mut commanded, mut speaks) = (true, true, true);
        loop {
            tokio::select! {
                exited = self.pidfd.readable() => {
                    drop(exited);
                    break;
                }
                command = self.commands.recv(), if commanded => match command {
                    Some(command) => self.command(command),
                    None => {
                        commanded = false;
                        self.end(ExitReason::Stopped);
                    }
                },
                () = self.words.listen(), if speaks => speaks = false,
                received = receive(&self.socket, &self.vmm), if open => open = self.take(received),
                sent = send(&self.socket, &self.vmm, self.outgoing.front()), if open => match sent {
                    Ok(()) => drop(self.outgoing.pop_front()),
                    // It has closed its end: its last words are still to be read.
                    Err(e) if is_closed(&e) => self.outgoing.clear(),
                    Err(e) => self.end(ExitReason::Failure(format!("cannot be written to: {e}"))),
                },
            }
        }
        if open {
            self.drain();
        }
        if speaks {
            self.words.drain();
        }
        let pid = self.vmm.pid();
        // The process has ended: this does not wait, it reaps.
        let status = self.vmm.wait();
        let reason = self.reason.take().unwrap_or_else(|| self.death(status));
        tracing::info!(pid, reason = %reason, step = "vm ended");
        if let Some(tally) = &self.tally {
            tally.vm_ended(&reason);
        }
        // Whoever waits for an answer learns from its dropped sender; the end must be known by then.
        self.ended.send_replace(Some(Ended { reason, at: SystemTime::now() }));
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Request { action, fds, reply } => self.request(action, fds, reply),
            Command::Kill(reason) => self.end(reason),
        }
    }

    fn request(&mut self, action: Action, fds: Vec<OwnedFd>, reply: oneshot::Sender<Result<Done, String>>) {
        let id = self.next_id;
        self.next_id += 1;
        self.outgoing.push_back((Request { id, action }, fds));
        self.pending.insert(id, reply);
    }

    /// Kills the VMM. The first reason counts.
    fn end(&mut self, reason: ExitReason) {
        self.reason.get_or_insert(reason);
        self.kill();
    }

    fn kill(&mut self) {
        // Fails only when it has been waited for.
        let _ = self.vmm.kill();
    }

    /// Deals with what came from the socket; false at its end.
    fn take(&mut self, received: io::Result<Option<(FromVmm, Vec<OwnedFd>)>>) -> bool {
        match received {
            Ok(Some((FromVmm::Reply(reply), _))) => self.reply(reply),
            Ok(Some((FromVmm::Event(event), fds))) => self.event(event, fds),
            // The process is ending, or is made to. A process that is ending keeps its exit status.
            Ok(None) => {
                self.kill();
                return false;
            }
            // It closed its end without having read all requests; what it sent before comes next.
            Err(e) if is_closed(&e) => {}
            Err(e) => {
                self.end(ExitReason::Failure(format!("sent an invalid message: {e}")));
                return false;
            }
        }
        true
    }

    fn reply(&mut self, reply: Reply) {
        if let Ok(Done::Memory { plugged_mib }) = reply.result {
            self.expected.memory.send_replace(plugged_mib);
        }
        if let Some(waiting) = self.pending.remove(&reply.id) {
            // Nobody waits any more when its deadline has passed.
            let _ = waiting.send(reply.result.map_err(|e| text::untrusted(&e, MAX_TEXT)));
        }
    }

    fn event(&mut self, event: Event, fds: Vec<OwnedFd>) {
        match event {
            // A VMM starts once: marks of further starts would fill the timeline.
            Event::Started { marks } => {
                let most = std::mem::take(&mut self.expected.marks);
                for (step, at_us) in marks.into_iter().take(most) {
                    self.expected.timeline.mark_at(&text::untrusted(&step, 64), at_us);
                }
            }
            // Other ports and further connections are closed by being dropped.
            Event::GuestConnected { port: RPC_PORT } => {
                let Some(agent) = self.expected.agent.take() else { return };
                match fds.into_iter().next().and_then(into_stream) {
                    // Nobody waits any more when the start was given up.
                    Some(stream) => drop(agent.send(stream)),
                    None => {
                        let text = "told of its agent's connection and sent none that can be used";
                        self.end(ExitReason::Failure(text.into()));
                    }
                }
            }
            Event::GuestConnected { port: SOCKET_PORT } => {
                if let Some(stream) = fds.into_iter().next().and_then(into_stream) {
                    self.expected.sockets.serve(stream);
                }
            }
            Event::GuestConnected { .. } => {}
            Event::MemoryReached { mib } => drop(self.expected.memory.send_replace(mib)),
            Event::FreeReported => drop(self.expected.reports.send_replace(true)),
            Event::LastWords { text } => log::say(Part::Guest, &text),
            // The VMM's last words: it has nothing left to do.
            Event::Exited { reason: ExitReason::GuestShutdown } if self.expected.agent.is_some() => {
                self.end(ExitReason::GuestFailure("it reset itself before its agent was ready".into()));
            }
            Event::Exited { reason } => self.end(bounded(reason)),
        }
    }

    /// Names the end of a VMM that did not say why.
    fn death(&self, status: io::Result<ExitStatus>) -> ExitReason {
        let killed = status.as_ref().is_ok_and(|status| status.signal() == Some(libc::SIGKILL));
        match self.oom.as_ref() {
            Some(oom) if killed && oom.has_counted() => ExitReason::HostOutOfMemory,
            _ if killed => ExitReason::Killed,
            _ => ExitReason::Failure(death(status)),
        }
    }

    /// Reads what the VMM left behind, for its last words.
    fn drain(&mut self) {
        loop {
            match self.vmm.receive() {
                Ok(Some((FromVmm::Event(event), fds))) => self.event(event, fds),
                Ok(Some(_)) => {}
                // Told once, before what is left.
                Err(e) if is_closed(&e) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }
}

async fn receive(socket: &AsyncFd<OwnedFd>, vmm: &Vmm) -> io::Result<Option<(FromVmm, Vec<OwnedFd>)>> {
    socket.async_io(Interest::READABLE, |_| vmm.receive()).await
}

async fn send(
    socket: &AsyncFd<OwnedFd>,
    vmm: &Vmm,
    packet: Option<&(Request, Vec<OwnedFd>)>,
) -> io::Result<()> {
    let Some((request, fds)) = packet else { return std::future::pending().await };
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    socket.async_io(Interest::WRITABLE, |_| vmm.send(request, &fds)).await
}

fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

fn into_stream(fd: OwnedFd) -> Option<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(fd);
    stream.set_nonblocking(true).ok()?;
    UnixStream::from_std(stream).ok()
}

/// The texts in a reason come from the VMM or the guest.
fn bounded(reason: ExitReason) -> ExitReason {
    let bound = |text: String| text::untrusted(&text, MAX_TEXT);
    match reason {
        ExitReason::GuestPanic(text) => ExitReason::GuestPanic(bound(text)),
        ExitReason::GuestOutOfMemory(text) => ExitReason::GuestOutOfMemory(bound(text)),
        ExitReason::GuestFailure(text) => ExitReason::GuestFailure(bound(text)),
        ExitReason::Failure(text) => ExitReason::Failure(bound(text)),
        other => other,
    }
}

fn death(status: io::Result<ExitStatus>) -> String {
    let status = match status {
        Ok(status) => status,
        Err(e) => return format!("cannot be waited for: {e}"),
    };
    match (status.signal(), status.code()) {
        (Some(libc::SIGSYS), _) => {
            "killed for a system call that its filter forbids (taken over by its guest, or a bug of the VMM); the kernel's log \
             has the number of the call"
                .into()
        }
        (Some(signal), _) => match Signal::try_from(signal) {
            Ok(signal) => format!("killed by {signal}"),
            Err(_) => format!("killed by signal {signal}"),
        },
        (None, code) => {
            format!("exited with status {} before it could tell why; see its log", code.unwrap_or(-1))
        }
    }
}
