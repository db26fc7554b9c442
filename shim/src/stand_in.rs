//! Threads that stand for containers (docs/decisions/0002-pids.md).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Pid, chroot, fchdir, gettid};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use tokio::sync::oneshot;

/// A thread has next to nothing to do.
const STACK: usize = 64 * 1024;

/// A root that a thread shall have, and where to answer.
type Root = (OwnedFd, oneshot::Sender<io::Result<()>>);

/// A sleeping thread, whose id is a living pid of the host in the pod's namespaces. It ends when this is dropped.
///
/// `/proc/<pid>/root` is where engines copy a container's files from and to. It is never the host's.
#[derive(Debug)]
pub(crate) struct StandIn {
    pid: u32,
    root: mpsc::Sender<Root>,
}

impl StandIn {
    /// Starts one, with an empty root that stays so. Call it on the main thread, whose namespaces it gets.
    pub(crate) fn start() -> io::Result<Self> {
        let (tell, told) = mpsc::channel::<io::Result<Pid>>();
        let (root, roots) = mpsc::channel::<Root>();
        let stand = move || {
            // Both ends live in this function and in the result.
            let _ = tell.send(empty().and_then(enter).map(|()| gettid()));
            while let Ok((root, reply)) = roots.recv() {
                let _ = reply.send(enter(root));
            }
        };
        thread::Builder::new().name("container".into()).stack_size(STACK).spawn(stand)?;
        let pid = told.recv().map_err(io::Error::other)??;
        Ok(Self { pid: u32::try_from(pid.as_raw()).map_err(io::Error::other)?, root })
    }

    /// The thread's id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Makes `root`, a directory, the thread's.
    pub(crate) async fn enter(&self, root: OwnedFd) -> io::Result<()> {
        let (reply, answer) = oneshot::channel();
        // A send that fails drops `reply`.
        let _ = self.root.send((root, reply));
        answer.await.map_err(io::Error::other)?
    }
}

fn enter(root: OwnedFd) -> io::Result<()> {
    // Threads of a process share their root until one asks for its own.
    unshare(CloneFlags::CLONE_FS)?;
    fchdir(root)?;
    Ok(chroot(".")?)
}

/// A file system with nothing in it, mounted nowhere.
fn empty() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::PathBuf;

    use super::*;

    fn of(stand_in: &StandIn, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", stand_in.pid()))
    }

    #[test]
    fn each_has_a_pid_of_its_own_that_names_the_processs_namespaces() {
        let (first, second) = (StandIn::start().unwrap(), StandIn::start().unwrap());
        assert_ne!(first.pid(), second.pid());
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        assert_eq!(fs::read_link(of(&first, "ns/net")).unwrap(), own);
    }

    #[tokio::test]
    async fn its_root_is_the_containers() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "of the container").unwrap();
        let stand_in = StandIn::start().unwrap();
        stand_in.enter(File::open(root.path()).unwrap().into()).await.unwrap();
        assert_eq!(fs::read_to_string(of(&stand_in, "root/file")).unwrap(), "of the container");
        fs::write(of(&stand_in, "root/new"), "").unwrap();
        assert!(root.path().join("new").exists());
        assert!(std::path::Path::new("/proc/self/root/proc").exists(), "the process has its own root still");
    }

    #[test]
    fn without_one_its_root_is_empty_and_stays_so() {
        let stand_in = StandIn::start().unwrap();
        assert_eq!(fs::read_dir(of(&stand_in, "root")).unwrap().count(), 0);
        let refused = fs::write(of(&stand_in, "root/new"), "").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    }
}
