//! A VM that may be killed at any moment.

use std::io::{PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use monohull_vmm::api::{Action, Done, Event, ExitReason, FdRole, FromVmm, Reply, Request};
use monohull_vmm::client::Vmm;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::vm::Setup;

/// A test whose VM is silent for this long has failed.
const PATIENCE_MS: u16 = 60_000;
/// One that has read nothing for so long waits for its owner to read.
const STUCK_MS: u16 = 500;

/// The VMM's filter has killed it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Killed;

/// See the module.
pub(crate) struct Subject {
    vmm: Vmm,
    console: Option<PipeReader>,
    /// Connections of the guest that came while something else was waited for.
    connections: Vec<OwnedFd>,
}

impl Subject {
    /// Starts a VM, with a console.
    pub(crate) fn start(binary: &Path, setup: Setup) -> Result<Self, Killed> {
        let (console, output) = std::io::pipe().unwrap();
        let mut subject = Self::start_without_console(binary, setup.with(FdRole::Console, output))?;
        subject.console = Some(console);
        Ok(subject)
    }

    pub(crate) fn start_without_console(binary: &Path, setup: Setup) -> Result<Self, Killed> {
        let vmm = setup.start_as(binary).vmm;
        let mut subject = Self { vmm, console: None, connections: Vec::new() };
        match subject.receive()? {
            FromVmm::Event(Event::Started { .. }) => Ok(subject),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until there is something to read, unless the VMM is killed before.
    pub(crate) fn wait(&mut self, fd: BorrowedFd<'_>) -> Result<(), Killed> {
        let mut ready =
            [PollFd::new(fd, PollFlags::POLLIN), PollFd::new(self.vmm.pidfd(), PollFlags::POLLIN)];
        assert!(poll(&mut ready, PollTimeout::from(PATIENCE_MS)).unwrap() > 0, "the VM is silent");
        if ready[0].any() == Some(true) { Ok(()) } else { Err(self.killed()) }
    }

    /// Waits for the end of a VMM that says nothing more.
    pub(crate) fn killed(&mut self) -> Killed {
        super::vm::wait(self.vmm.pidfd());
        let status = self.vmm.wait().unwrap();
        assert_eq!(status.signal(), Some(Signal::SIGSYS as i32), "{status}");
        Killed
    }

    fn receive(&mut self) -> Result<FromVmm, Killed> {
        let socket = self.vmm.socket().try_clone_to_owned().unwrap();
        loop {
            self.wait(socket.as_fd())?;
            match self.vmm.receive() {
                Ok(Some((message, fds))) => {
                    self.connections.extend(fds);
                    return Ok(message);
                }
                // It has not read all requests; what it said before its end follows.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
                Ok(None) | Err(_) => return Err(self.killed()),
            }
        }
    }

    /// What the guest tells.
    pub(crate) fn told(&mut self, expected: &[u8]) -> Result<(), Killed> {
        let mut console = self.console.take().expect("a console");
        let told = self.read(&mut console, expected.len())?;
        self.console = Some(console);
        assert_eq!(told, expected, "what the guest tells");
        Ok(())
    }

    /// The next bytes of a stream whose other end the VMM has.
    pub(crate) fn read(&mut self, stream: &mut (impl AsFd + Read), bytes: usize) -> Result<Vec<u8>, Killed> {
        let mut all = vec![0; bytes];
        let mut rest = &mut all[..];
        while !rest.is_empty() {
            self.wait(stream.as_fd())?;
            match stream.read(rest) {
                Ok(0) | Err(_) => return Err(self.killed()),
                Ok(read) => rest = &mut rest[read..],
            }
        }
        Ok(all)
    }

    /// Gives it the time to be killed for what it does when it has nobody to wait for.
    pub(crate) fn lives(&mut self) -> Result<(), Killed> {
        let mut ended = [PollFd::new(self.vmm.pidfd(), PollFlags::POLLIN)];
        if poll(&mut ended, PollTimeout::from(STUCK_MS)).unwrap() > 0 { Err(self.killed()) } else { Ok(()) }
    }

    /// Sends requests and reads no answers, until nothing is read of the requests either.
    pub(crate) fn flood(&mut self) {
        let request = Request { id: 7, action: Action::SetBalloon { mib: 0 } };
        let socket = self.vmm.socket().try_clone_to_owned().unwrap();
        let mut room = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
        while poll(&mut room, PollTimeout::from(STUCK_MS)).unwrap() > 0 {
            while self.vmm.send(&request, &[]).is_ok() {}
            if room[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)) {
                return;
            }
        }
    }

    /// Asks the VMM for something, and waits for the answer.
    pub(crate) fn ask(
        &mut self,
        action: Action,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Result<Done, String>, Killed> {
        if self.vmm.send(&Request { id: 7, action }, fds).is_err() {
            return Err(self.killed());
        }
        loop {
            match self.receive()? {
                FromVmm::Reply(Reply { id: 7, result }) => return Ok(result),
                FromVmm::Event(Event::Exited { reason }) => panic!("the VM has ended: {reason}"),
                FromVmm::Event(_) => {}
                other @ FromVmm::Reply(_) => panic!("{other:?}"),
            }
        }
    }

    /// Asks for something that is to be done.
    pub(crate) fn have(&mut self, action: Action, fds: &[BorrowedFd<'_>]) -> Result<Done, Killed> {
        Ok(self.ask(action, fds)?.unwrap())
    }

    /// The host's end of a connection that the guest has opened.
    pub(crate) fn connection(&mut self) -> Result<OwnedFd, Killed> {
        loop {
            if let Some(connection) = self.connections.pop() {
                return Ok(connection);
            }
            let message = self.receive()?;
            assert!(matches!(message, FromVmm::Event(Event::GuestConnected { .. })), "{message:?}");
        }
    }

    /// Waits for its last message, and its end.
    pub(crate) fn end(mut self) -> Result<ExitReason, Killed> {
        let reason = loop {
            if let FromVmm::Event(Event::Exited { reason }) = self.receive()? {
                break reason;
            }
        };
        super::vm::wait(self.vmm.pidfd());
        match self.vmm.wait().unwrap() {
            status if status.signal() == Some(Signal::SIGSYS as i32) => Err(Killed),
            status if status.signal().is_none() => Ok(reason),
            status => panic!("{status}"),
        }
    }

    /// Stops it.
    pub(crate) fn stop(mut self) -> Result<(), Killed> {
        self.have(Action::Stop, &[])?;
        assert_eq!(self.end()?, ExitReason::Stopped);
        Ok(())
    }
}
