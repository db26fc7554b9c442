//! The owner's side: starts a VMM and gives it its configuration.

// Preparing a child between fork and exec has no safe interface.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::api::{CONTROL_FD, VmConfig};
use crate::ipc::{Channel, IpcError};

/// Why a VMM did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// No socket could be made.
    #[error("cannot make the VMM's socket")]
    Socket(#[source] io::Error),
    /// The program did not start.
    #[error("cannot start {0}; check `vmm` in the configuration")]
    Exec(PathBuf, #[source] io::Error),
    /// The configuration did not reach it.
    #[error("cannot configure the VMM")]
    Configure(#[source] IpcError),
}

/// Starts `binary` and sends `config` with its descriptors.
///
/// The VMM has an empty environment, no descriptor but its socket, a session of its own, and is killed when the calling
/// thread ends. The returned channel is non-blocking: the first message on it is [`crate::api::Event::Started`], or
/// [`crate::api::Event::Exited`] when the VM could not be made. The caller owns and reaps the child.
pub fn spawn(binary: &Path, config: &VmConfig, fds: &[BorrowedFd<'_>]) -> Result<(Child, Channel), SpawnError> {
    let (ours, theirs) = Channel::pair().map_err(SpawnError::Socket)?;
    ours.set_nonblocking().map_err(SpawnError::Socket)?;
    let socket = std::os::fd::AsFd::as_fd(&theirs).as_raw_fd();
    let mut command = Command::new(binary);
    command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: the closure runs between fork and exec in the child, possibly forked from a process with threads. It makes
    // only system calls (async-signal-safe), allocates nothing, and touches no memory but the copied `socket` number.
    unsafe { command.pre_exec(move || prepare_child(socket)) };
    let mut child = command.spawn().map_err(|error| SpawnError::Exec(binary.into(), error))?;
    drop(theirs);
    // The socket's buffer is empty, so this does not block.
    if let Err(error) = ours.send(config, fds) {
        let _ = child.kill();
        let _ = child.wait();
        return Err(SpawnError::Configure(error));
    }
    Ok((child, ours))
}

fn prepare_child(socket: i32) -> io::Result<()> {
    let check = |result: i32| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: plain system calls on numbers. `dup2` onto a number of our own choosing is sound here: nothing in this
    // process, which is about to exec, uses that descriptor.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        check(libc::setsid())?;
        if socket == CONTROL_FD {
            // Already in place; it only must survive the exec.
            check(libc::fcntl(socket, libc::F_SETFD, 0))?;
        } else {
            check(libc::dup2(socket, CONTROL_FD))?;
        }
        // Not closed here: the standard library's own pipe, which reports a failed exec, is among them.
        let first = libc::c_uint::try_from(CONTROL_FD + 1).unwrap_or(4);
        let cloexec = i32::try_from(libc::CLOSE_RANGE_CLOEXEC).unwrap_or(0);
        check(i32::try_from(libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, cloexec)).unwrap_or(-1))
    }
}
