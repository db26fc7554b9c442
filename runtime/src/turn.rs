//! Turns: how many pods of a host start at the same time (`docs/decisions/0013-turns.md`).
//!
//! A start is work for a CPU from its first instruction to its last. Of many that begin at once none would be ready before nearly all
//! are, and by then an engine may have given them up, thrown their work away and begun again. So a pod that starts holds one of
//! the host's turns, and those without one wait.
//!
//! A turn is a lock on one byte of `<state_dir>/_turns` (open file description locks, fcntl_locking(2)): who dies gives it back.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use tokio::sync::oneshot;

use crate::sys;

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
    /// Waits for one on a host with so many CPUs; `waiting` is called if there is none at once. A pod that can't wait, for want of a
    /// descriptor or a thread, starts all the same.
    pub(crate) async fn take(state_dir: &Path, cpus: u8, waiting: impl FnOnce()) -> Self {
        match lock_one(state_dir, cpus.max(1).saturating_mul(EACH), waiting).await {
            Ok(lock) => Self { _lock: Some(lock) },
            Err(error) => {
                tracing::warn!(%error, step = "wait for the pod's turn");
                Self { _lock: None }
            }
        }
    }
}

async fn lock_one(state_dir: &Path, turns: u8, waiting: impl FnOnce()) -> io::Result<File> {
    let file = open(state_dir)?;
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

fn open(state_dir: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let path = state_dir.join(FILE);
    match options.open(&path) {
        // The host's first pod.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(state_dir)?;
            options.open(&path)
        }
        file => file,
    }
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
    match std::fs::remove_file(state_dir.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(100);

    async fn take(dir: &Path) -> Turn {
        let turn = Turn::take(dir, 1, || {}).await;
        assert!(turn._lock.is_some());
        turn
    }

    #[tokio::test]
    async fn who_comes_when_all_turns_are_taken_waits_for_one() {
        let dir = tempfile::tempdir().unwrap();
        let held = [take(dir.path()).await, take(dir.path()).await];
        let mut has_waited = false;
        let mut third = Box::pin(Turn::take(dir.path(), 1, || has_waited = true));
        assert!(timeout(SOON, &mut third).await.is_err(), "two turns, and three have one");
        drop(held);
        third.await;
        assert!(has_waited);
    }

    #[tokio::test]
    async fn a_turn_that_nobody_waits_for_any_more_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let held = [take(dir.path()).await, take(dir.path()).await];
        let mut gone = Box::pin(Turn::take(dir.path(), 1, || {}));
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
        assert!(std::fs::read_dir(&state).unwrap().next().is_none());
    }

    #[tokio::test]
    async fn a_pod_that_cannot_wait_starts() {
        assert!(Turn::take(Path::new("/proc/none"), 1, || {}).await._lock.is_none());
    }
}
