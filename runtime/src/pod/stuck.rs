//! Ends a pod whose guest is stuck.
//!
//! That a call is not answered in time says little: the host may be busy, or the agent waits for a disk. The guest is then asked for
//! what its kernel does alone, a vsock connection. A kernel that does not answer that either, for [`STUCK`] of the time for which its VM
//! could run, does nothing any more, and never will again. Its pod would stay as it is for ever; its end is something that an engine
//! sees and acts upon.

use std::fs;
use std::sync::Weak;
use std::time::Duration;

use monohull_vmm::api::ExitReason;

use super::{Link, Pod};
use crate::patience;

const STUCK: Duration = Duration::from_secs(30);

/// Looks after the pod's guest whenever it has not answered in time.
pub(super) async fn watch(link: &Link, pod: Weak<Pod>) {
    loop {
        link.doubted().await;
        let Some(pod) = pod.upgrade() else { return };
        pod.end_if_stuck().await;
    }
}

impl Pod {
    /// Returns when the guest has answered, or its VM has ended.
    pub(super) async fn end_if_stuck(&self) {
        // The guest of a pod that is being saved stands still.
        let _going_on = self.changes.read().await;
        while patience::unasked(STUCK, self.vm.pid(), self.vsock.answers()).await.is_none() {
            if is_stopped(self.vm.pid()) {
                continue;
            }
            let text = format!("its kernel is stuck: it has not answered for {} s", STUCK.as_secs());
            tracing::error!(step = "watch the guest", "the pod is ended: {text}");
            self.link.vm.kill(ExitReason::GuestFailure(text));
            self.link.vm.ended().await;
        }
    }
}

/// Whether somebody has stopped the process, or debugs it (proc_pid_stat(5)).
fn is_stopped(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| matches!(rest.trim_start().as_bytes(), [b'T' | b't', ..]))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sys::signal::{Signal, kill};
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn who_is_stopped_is_known() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        assert!(!is_stopped(pid.as_raw()));
        kill(pid, Signal::SIGSTOP).unwrap();
        assert!(matches!(waitpid(pid, Some(WaitPidFlag::WUNTRACED)), Ok(WaitStatus::Stopped(..))));
        assert!(is_stopped(pid.as_raw()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_stopped(pid.as_raw()));
    }
}
