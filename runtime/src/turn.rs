//! Turns: how many pods of a host start at the same time (`docs/decisions/0013-turns.md`).
//!
//! A start is work for a CPU from its first instruction to its last. Of many that begin at once none would be ready before nearly all
//! are, and by then an engine may have given them up, thrown their work away and begun again. So a pod that starts holds one of
//! the host's turns, and those without one wait.
//!
//! A turn is a lock on one byte of `<state_dir>/_turns` (open file description locks, fcntl_locking(2)): who dies gives it back.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::{SysconfVar, sysconf};
use tokio::sync::oneshot;

use crate::{state, sys};

/// Beside the directories of containerd's namespaces, none of which begins with a `_`.
const FILE: &str = "_turns";
/// So many for each CPU: while one start waits for the kernel, another has something to do.
const EACH: u8 = 2;
/// Of a thread that waits.
const STACK: usize = 64 * 1024;

/// One of the host's turns, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _lock: Option<File>,
}

impl Turn {
    /// Waits for one of the host's; `waiting` is called if there is none at once. A pod that can't wait, for want of a descriptor or a
    /// thread, starts all the same.
    pub(crate) async fn take(state_dir: &Path, waiting: impl FnOnce()) -> Self {
        Self::take_of(EACH.saturating_mul(host_cpus()), state_dir, waiting).await
    }

    /// [`Self::take`], of so many.
    async fn take_of(turns: u8, state_dir: &Path, waiting: impl FnOnce()) -> Self {
        match lock_one(turns, state_dir, waiting).await {
            Ok(lock) => Self { _lock: Some(lock) },
            Err(error) => {
                tracing::warn!(%error, step = "wait for the pod's turn");
                Self { _lock: None }
            }
        }
    }
}

async fn lock_one(turns: u8, state_dir: &Path, waiting: impl FnOnce()) -> io::Result<File> {
    let file = state::open_shared(&state_dir.join(FILE))?;
    for turn in 0..turns {
        if lock(&file, turn)? {
            return Ok(file);
        }
    }
    waiting();
    // One can't wait for any of them: who comes now waits for one that chance names.
    let mut chance = [0];
    sys::random(&mut chance)?;
    let turn = chance[0] % turns;
    let (tell, told) = oneshot::channel();
    // The lock is given back if nobody wants it any more.
    let wait = move || drop(tell.send(wait_for(&file, turn).map(|()| file)));
    thread::Builder::new().stack_size(STACK).spawn(wait)?;
    told.await.map_err(io::Error::other)?
}

/// All that the host has: those that this process may use are fewer where its pod has a limit, and the turns are every pod's.
fn host_cpus() -> u8 {
    let online = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten().unwrap_or(1);
    u8::try_from(online).unwrap_or(u8::MAX).max(1)
}

/// Whether the turn was free, and is now this file's.
fn lock(file: &File, turn: u8) -> io::Result<bool> {
    match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&byte(turn))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn wait_for(file: &File, turn: u8) -> io::Result<()> {
    loop {
        match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLKW(&byte(turn))) {
            Err(Errno::EINTR) => {}
            done => return done.map(drop).map_err(io::Error::from),
        }
    }
}

fn byte(turn: u8) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: turn.into(),
        l_len: 1,
        l_pid: 0,
    }
}

/// Removes what pods have waited for in `state_dir`.
pub fn remove(state_dir: &Path) -> io::Result<()> {
    match fs::remove_file(state_dir.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const TURNS: u8 = 2;
    const SOON: Duration = Duration::from_millis(100);

    async fn take(dir: &Path) -> Turn {
        let turn = Turn::take_of(TURNS, dir, || {}).await;
        assert!(turn._lock.is_some());
        turn
    }

    #[tokio::test]
    async fn who_comes_when_all_turns_are_taken_waits_for_one() {
        let dir = tempfile::tempdir().unwrap();
        let held = [take(dir.path()).await, take(dir.path()).await];
        let mut has_waited = false;
        let mut third = Box::pin(Turn::take_of(TURNS, dir.path(), || has_waited = true));
        assert!(timeout(SOON, &mut third).await.is_err(), "two turns, and three have one");
        drop(held);
        third.await;
        assert!(has_waited);
    }

    #[tokio::test]
    async fn a_turn_that_nobody_waits_for_any_more_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let held = [take(dir.path()).await, take(dir.path()).await];
        let mut gone = Box::pin(Turn::take_of(TURNS, dir.path(), || {}));
        assert!(timeout(SOON, &mut gone).await.is_err());
        drop((gone, held));
        drop([take(dir.path()).await, take(dir.path()).await]);
    }

    #[tokio::test]
    async fn the_first_pod_of_a_host_makes_the_directory_and_the_last_trace_goes() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        remove(&state).unwrap();
        drop(take(&state).await);
        remove(&state).unwrap();
        assert!(fs::read_dir(&state).unwrap().next().is_none());
    }

    #[tokio::test]
    async fn a_pod_that_cannot_wait_starts() {
        assert!(Turn::take(Path::new("/proc/none"), || {}).await._lock.is_none());
    }
}
