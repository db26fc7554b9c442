//! Threads that stand for containers (docs/decisions/0002-pids.md).

use std::io;
use std::sync::mpsc;
use std::thread;

use nix::unistd::gettid;

/// A thread has next to nothing to do.
const STACK: usize = 64 * 1024;

/// A sleeping thread, whose id is a living pid of the host in the pod's namespaces. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct StandIn {
    pid: u32,
    _end: mpsc::Sender<()>,
}

impl StandIn {
    /// Starts one. Call it on the main thread, whose namespaces it gets.
    pub(crate) fn start() -> io::Result<Self> {
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let stand = move || {
            // Both ends live in this function and in the result.
            let _ = tell.send(gettid());
            let _ = ended.recv();
        };
        thread::Builder::new().name("container".into()).stack_size(STACK).spawn(stand)?;
        let pid = told.recv().map_err(io::Error::other)?;
        Ok(Self { pid: u32::try_from(pid.as_raw()).map_err(io::Error::other)?, _end: end })
    }

    /// The thread's id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn each_has_a_pid_of_its_own_that_names_the_processs_namespaces() {
        let (first, second) = (StandIn::start().unwrap(), StandIn::start().unwrap());
        assert_ne!(first.pid(), second.pid());
        let network = |pid: &str| std::fs::read_link(PathBuf::from(format!("/proc/{pid}/ns/net"))).unwrap();
        assert_eq!(network(&first.pid().to_string()), network("self"));
    }
}
