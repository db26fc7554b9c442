//! The owner's side of a VMM: starts the process, and speaks to it.

// Preparing a child between fork and exec has no safe interface.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sched::{CloneFlags, setns, unshare};

use crate::api::{CONTROL_FD, FromVmm, Request, VmConfig};
use crate::ipc::Channel;

/// A VMM process and its control socket. Dropping it kills the VM.
///
/// The socket is non-blocking and belongs into the owner's event loop; see [`Self::socket`].
#[derive(Debug)]
pub struct Vmm {
    child: Child,
    pidfd: OwnedFd,
    channel: Channel,
}

/// A VMM could not be started.
#[derive(Debug, thiserror::Error)]
#[error("can't {doing}")]
pub struct SpawnError {
    doing: String,
    #[source]
    source: io::Error,
}

impl Vmm {
    /// Starts `binary` and sends it the configuration with its descriptors.
    ///
    /// The process has an empty environment, a session and process ids of its own, and no descriptor but its socket and
    /// `stderr`, for what a crash may have to say. It dies with the *thread* that calls this
    /// (`PR_SET_PDEATHSIG`), which therefore has to be one that lives as long as the pod. The caller must be root; the
    /// VMM stops to be when it has the configuration.
    pub fn spawn(
        binary: &Path,
        config: &VmConfig,
        fds: &[BorrowedFd<'_>],
        stderr: Stdio,
    ) -> Result<Self, SpawnError> {
        let failed = |doing: &str| {
            let doing = doing.to_owned();
            |source| SpawnError { doing, source }
        };
        let (channel, theirs) = Channel::pair().map_err(failed("make the VMM's control socket"))?;
        let child =
            spawn(binary, &theirs, stderr).map_err(failed(&format!("start the VMM {}", binary.display())))?;
        let pid = child.id();
        let mut child = KillOnDrop(Some(child));
        let pidfd = pidfd_open(pid).map_err(failed("watch the VMM's process"))?;
        channel
            .set_nonblocking()
            .and_then(|()| Ok(channel.send(config, fds)?))
            .map_err(failed("send the VMM its configuration"))?;
        match child.0.take() {
            Some(child) => Ok(Self { child, pidfd, channel }),
            None => Err(failed("start the VMM")(io::ErrorKind::NotFound.into())),
        }
    }

    /// Process id of the VMM.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A descriptor of the process, readable once it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The control socket: readable when [`Self::receive`] has something to return, writable when [`Self::send`] has
    /// room.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Sends a request. Fails with `WouldBlock`, having sent nothing, when the VMM has not read earlier ones.
    pub fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        Ok(self.channel.send(request, fds)?)
    }

    /// Receives a message, with a descriptor if it is [`crate::api::Event::GuestConnected`]. Fails with `WouldBlock`
    /// when there is none; `None` when the VMM has closed its end, which without an
    /// [`crate::api::Event::Exited`] before means that it was killed.
    pub fn receive(&self) -> io::Result<Option<(FromVmm, Vec<OwnedFd>)>> {
        Ok(self.channel.receive()?)
    }

    /// Kills the VMM; it is still to be waited for.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()
    }

    /// Waits for the process to end. Returns at once when [`Self::pidfd`] is readable.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // Both do nothing to a process that was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A child that is killed unless it is taken out.
struct KillOnDrop(Option<Child>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn spawn(binary: &Path, socket: &Channel, stderr: Stdio) -> io::Result<Child> {
    // From number 3 on: if 3 was free, it is this socket's now, and otherwise it is something of ours. Either way it is
    // not the pipe on which the standard library's child reports a failed exec, which must not be overwritten below.
    let socket: RawFd = fcntl(socket, FcntlArg::F_DUPFD_CLOEXEC(CONTROL_FD))?;
    // SAFETY: just made, and owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let number = socket.as_raw_fd();
    let mut command = Command::new(binary);
    command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
    // SAFETY: `prepare_child` only makes system calls, which is allowed between fork and exec of a process with threads.
    unsafe { command.pre_exec(move || prepare_child(number)) };
    with_own_process_ids(|| command.spawn())
}

/// Calls `spawn`, whose child is the first process of a new process id namespace. This thread's other children are not.
pub fn with_own_process_ids<T>(spawn: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    // Not our own namespace's: this process may itself make its children in another.
    let before = File::open("/proc/thread-self/ns/pid_for_children")?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    let spawned = spawn();
    // A namespace takes no further process once its first has ended.
    setns(before, CloneFlags::CLONE_NEWPID)?;
    spawned
}

/// Runs in the child, before it executes the VMM.
fn prepare_child(socket: RawFd) -> io::Result<()> {
    let check = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: system calls on numbers and descriptors; none touches memory.
    unsafe {
        // If the parent has died before this line, the VMM finds its control socket closed.
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        check(libc::setsid())?;
        if socket == CONTROL_FD {
            check(libc::fcntl(socket, libc::F_SETFD, 0))?;
        } else {
            check(libc::dup2(socket, CONTROL_FD))?;
        }
        // Closed by exec rather than here, because a failure of exec is still to be reported through one of them.
        let first = CONTROL_FD as libc::c_uint + 1;
        check(libc::close_range(first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int))
    }
}

fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes a number and flags, touches no memory. The descriptor it returns is closed on exec.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and owned by nobody else. Descriptors fit an int.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}
