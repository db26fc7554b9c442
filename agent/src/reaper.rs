//! Collects every dead child of PID 1, and loses none that somebody waits for.
//!
//! PID 1 has three kinds of children: helpers it executed, container processes that a helper made for it (with
//! CLONE_PARENT), and orphans the kernel gave it. SIGCHLD does not say which died, signals coalesce, and a container
//! process may die before its helper has told us its pid. One rule covers all: **a pid is reaped only when its owner is
//! known or nobody can be about to claim it.** While a [`Launch`] is alive, only registered pids are waited for, one by
//! one; unknown dead children stay zombies, so their pids stay theirs and no status is lost. With no launch under way,
//! everything is waited for, and what is not registered was an orphan. Claiming a pid, and ending a launch, look again.
//!
//! All of this happens between two awaits of one thread, so that there is no moment in which a process exists, is not
//! registered, and no launch is open. Nothing else in the agent may wait for children (no tokio::process).

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus, pidfd_open, wait, waitpid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::error::{Doing, Error, Result};

/// The table of owned children.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reaper(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    owners: HashMap<Pid, oneshot::Sender<WaitStatus>>,
    launches: usize,
}

/// A child that somebody waits for.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    /// Its status, once.
    pub(crate) status: oneshot::Receiver<WaitStatus>,
}

/// While it lives, no child that is not registered is reaped.
#[derive(Debug)]
pub(crate) struct Launch(Reaper);

impl Reaper {
    /// Starts the task that answers SIGCHLD.
    pub(crate) fn start() -> Result<Self> {
        let reaper = Self::default();
        let mut deaths = signal(SignalKind::child()).doing(|| "listen for SIGCHLD".into())?;
        let task = reaper.clone();
        tokio::spawn(async move {
            while deaths.recv().await.is_some() {
                task.lock().reap();
            }
        });
        Ok(reaper)
    }

    /// To be called before a process is made whose pid is not known at once.
    pub(crate) fn launch(&self) -> Launch {
        self.lock().launches += 1;
        Launch(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // The table is consistent at every point where a holder could have panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Launch {
    /// Takes ownership of child `pid`, which may have died already.
    pub(crate) fn claim(&self, pid: u32) -> Result<Child> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Error::Invalid("a process has no pid".into()))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())
            .doing(|| format!("open process {}", pid.as_raw_nonzero()))?;
        let (sender, status) = oneshot::channel();
        let mut table = self.0.lock();
        table.owners.insert(pid, sender);
        table.reap();
        Ok(Child { pid, pidfd, status })
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        let mut table = self.0.lock();
        table.launches -= 1;
        table.reap();
    }
}

impl Table {
    fn reap(&mut self) {
        if self.launches == 0 {
            while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                self.deliver(pid, status);
            }
            return;
        }
        let owned: Vec<Pid> = self.owners.keys().copied().collect();
        for pid in owned {
            if let Ok(Some((pid, status))) = waitpid(Some(pid), WaitOptions::NOHANG) {
                self.deliver(pid, status);
            }
        }
    }

    fn deliver(&mut self, pid: Pid, status: WaitStatus) {
        if let Some(owner) = self.owners.remove(&pid) {
            // An owner that went away does not want to know.
            let _ = owner.send(status);
        }
    }
}

/// The exit code that a shell would report: 128 + n for signal n.
pub(crate) fn exit_code(status: WaitStatus) -> u32 {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    code.and_then(|code| u32::try_from(code).ok()).unwrap_or(255)
}
