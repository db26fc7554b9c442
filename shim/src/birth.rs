//! A process that is born in another cgroup.
#![allow(unsafe_code)] // clone3(2) has no wrapper.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// Of linux/sched.h; libc's has too few bits.
const CLONE_INTO_CGROUP: u64 = 1 << 33;
/// What the child ends with when it can't execute its program; a shell says the same.
const NOT_EXECUTED: i32 = 127;

/// Starts `command` in the cgroup whose directory `cgroup` is, and returns its pid. The caller must have a single thread.
///
/// Fails with ENOSYS before Linux 5.7, and when the cgroup can't be entered; without a cgroup it may work.
pub(crate) fn spawn_in(command: &mut Command, cgroup: BorrowedFd<'_>) -> io::Result<u32> {
    // Closed by a successful exec.
    let (mut told, mut tell) = io::pipe()?;
    // SAFETY: an all-zero clone_args is a valid value of that plain C structure.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = libc::SIGCHLD.unsigned_abs().into();
    arguments.cgroup = u64::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: pointer and size describe `arguments`, which the call only reads. The child gets a copy of this process's memory,
    // as with fork(2), and this process has one thread: nothing in that copy is locked or half changed.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    if pid == 0 {
        let _ = command.exec();
        let _ = tell.write_all(b"!");
        // SAFETY: ends the child without anything of the parent's that `exit` would do.
        unsafe { libc::_exit(NOT_EXECUTED) };
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    drop(tell);
    let pid = Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?);
    if told.read(&mut [0])? == 0 {
        return Ok(pid.as_raw().unsigned_abs());
    }
    waitpid(pid, None)?;
    Err(io::Error::other("it can't be executed"))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;

    use super::*;

    /// The directory of this process's cgroup, if the host has a unified hierarchy that we may use.
    fn own_cgroup() -> Option<std::path::PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let root = mounts.lines().find(|line| line.contains(" - cgroup2 "))?.split(' ').nth(4)?.to_owned();
        let own = monohull_runtime::cgroup::own_path()?;
        Some(std::path::Path::new(&root).join(own.strip_prefix("/").ok()?))
    }

    #[test]
    fn the_child_is_in_the_cgroup_from_its_beginning() {
        let Some(own) = own_cgroup() else {
            eprintln!(
                "not tested: no unified cgroup hierarchy here; the end-to-end tests start pods in cgroups"
            );
            return;
        };
        let directory = own.join(format!("monohull-birth-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let mut command = Command::new("sleep");
        let pid = spawn_in(command.arg("1000"), File::open(&directory).unwrap().as_fd()).unwrap();
        let member = fs::read_to_string(directory.join("cgroup.procs")).unwrap();
        let refused = spawn_in(&mut Command::new("/none"), File::open(&directory).unwrap().as_fd());
        let pid = Pid::from_raw(pid.try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).unwrap();
        waitpid(pid, None).unwrap();
        fs::remove_dir(&directory).unwrap();
        assert_eq!(member.trim(), pid.to_string());
        assert!(refused.is_err());
    }

    #[test]
    fn what_is_no_cgroup_is_refused() {
        assert!(spawn_in(&mut Command::new("true"), File::open("/").unwrap().as_fd()).is_err());
    }
}
