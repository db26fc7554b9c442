//! Host directories and files that a pod's containers share or have as their roots: the tree of exports, and the fs server
//! that serves it.
//!
//! Each source becomes a mount in a directory that has no other content, `<pod>/shared/<number>`, with an `r` before the
//! number of a root. The mounts belong to a
//! thread with a mount namespace of its own, which lives as long as the pod: nothing of them is seen outside, and whoever
//! is killed, they vanish with the last process that is in there. The server is started from that thread. Later exports,
//! and what the host mounts below a source, reach the server by mount propagation.

mod tree;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use monohull_fs_protocol as protocol;
use monohull_vmm::api::ExitReason;
use tokio::io::Interest;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::log::{Part, Words};
use crate::rootfs::HostTree;
use crate::state::ProcessId;
use crate::sys;
use crate::vm::{Vm, VmError, VmWatch};
use tree::Tree;

/// What must die may take so long: a process that waits for a disk dies later.
const DYING: Duration = Duration::from_secs(30);
/// Name of the tree's directory in the pod's.
const TREE: &str = "shared";

/// Why a directory can't be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The server's program can't be started.
    #[error("cannot start the fs server {0} (`fs_server` in the settings)")]
    Start(PathBuf, #[source] io::Error),
    /// The tree's namespace and mount.
    #[error("cannot set up the pod's shared directories: cannot {0}")]
    SetUp(&'static str, #[source] io::Error),
    /// A source can't be mounted into the tree.
    #[error("cannot share {0} with the pod")]
    Export(String, #[source] io::Error),
    /// The VMM does not take the server.
    #[error(transparent)]
    Vm(#[from] VmError),
}

impl ShareError {
    fn set_up(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::SetUp(what, error)
    }
}

/// What of a source's mounts is read-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadOnly {
    /// Nothing that the host does not have read-only.
    No,
    /// The source, not what is mounted below it.
    Top,
    /// All of it.
    Recursive,
}

/// A source to share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Export {
    /// A directory or regular file.
    pub(crate) source: PathBuf,
    /// Enforced by the server's mounts, whatever the guest does.
    pub(crate) read_only: ReadOnly,
    /// Whether what is mounted below the source comes along.
    pub(crate) recursive: bool,
}

/// What the thread is asked for.
enum Command {
    Add(Export, oneshot::Sender<Result<String, ShareError>>),
    AddRoot(HostTree, bool, oneshot::Sender<Result<(String, OwnedFd), ShareError>>),
    Remove(Vec<String>),
}

/// A pod's shared directories. Dropping it ends the thread, and that kills the server.
#[derive(Debug)]
pub(crate) struct Share {
    commands: mpsc::Sender<Command>,
    server: Server,
}

/// The server's process.
#[derive(Debug)]
struct Server {
    id: ProcessId,
    /// Asks for its end.
    end: watch::Sender<bool>,
    ended: watch::Receiver<bool>,
}

impl Share {
    /// Makes the tree in the pod's directory `dir`, starts the server `program` and connects it to the VM, which ends
    /// when the server is lost. `host_mounts` as in [`crate::pod::PodConfig`].
    pub(crate) async fn start(
        dir: &Path,
        program: &Path,
        host_mounts: Option<Arc<OwnedFd>>,
        vm: &Vm,
    ) -> Result<Self, ShareError> {
        let tree = dir.join(TREE);
        fs::create_dir(&tree).map_err(ShareError::set_up("make their directory"))?;
        let (ours, theirs) = protocol::channel().map_err(ShareError::set_up("make the server's socket"))?;
        let memory = protocol::memory().map_err(ShareError::set_up("make the server's memory"))?;
        let (words, stderr) = Words::new(Part::Fs).map_err(ShareError::set_up("make the server's pipe"))?;
        let their_memory = memory.try_clone().map_err(ShareError::set_up("share the server's memory"))?;
        let (commands, receiver) = mpsc::channel();
        let (started, start) = oneshot::channel();
        let program = program.to_owned();
        // A thread of its own: making the tree changes its namespaces for good.
        let stdio = tree::Stdio { channel: theirs, memory: their_memory, stderr };
        let run = move || match Tree::start(tree, host_mounts, &program, stdio) {
            Ok((tree, child)) => {
                if started.send(Ok(child)).is_ok() {
                    serve(tree, &receiver);
                }
            }
            Err(error) => drop(started.send(Err(error))),
        };
        let thread = std::thread::Builder::new().name("share".into()).stack_size(256 * 1024).spawn(run);
        thread.map_err(ShareError::set_up("start a thread"))?;
        let ended = || ShareError::SetUp("start the thread", io::ErrorKind::BrokenPipe.into());
        let child = start.await.map_err(|_| ended())??;
        let server =
            Server::watch(child, words, vm.watch()).map_err(ShareError::set_up("watch the fs server"))?;
        vm.attach_fs(ours, memory).await?;
        Ok(Self { commands, server })
    }

    /// The server's process.
    pub(crate) fn server(&self) -> ProcessId {
        self.server.id
    }

    /// Ends the server, for a VM that needs it no more. Nothing that was shared is open when this returns, unless the server
    /// waits for a disk that does not answer.
    pub(crate) async fn end(&self) {
        self.server.end.send_replace(true);
        let mut ended = self.server.ended.clone();
        // The inner error is that of a watch that is gone, with the whole runtime.
        if timeout(DYING, ended.wait_for(|ended| *ended)).await.is_err() {
            tracing::warn!(pid = self.server.id.pid, step = "end the fs server: it outlives SIGKILL");
        }
    }

    /// Shares a source.
    pub(crate) async fn add(self: &Arc<Self>, export: Export) -> Result<Exported, ShareError> {
        let name = self.ask(|reply| Command::Add(export, reply)).await?;
        Ok(Exported { share: self.clone(), name })
    }

    /// Shares a container's root, which only its guest changes. Returns a descriptor of it besides (O_PATH): nobody else
    /// has it mounted.
    pub(crate) async fn add_root(
        self: &Arc<Self>,
        root: HostTree,
        read_only: bool,
    ) -> Result<(Exported, OwnedFd), ShareError> {
        let (name, opened) = self.ask(|reply| Command::AddRoot(root, read_only, reply)).await?;
        Ok((Exported { share: self.clone(), name }, opened))
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, ShareError>>) -> Command,
    ) -> Result<T, ShareError> {
        let (reply, answer) = oneshot::channel();
        // A send that fails drops `reply`.
        let _ = self.commands.send(command(reply));
        let ended = |_| ShareError::SetUp("reach their thread", io::ErrorKind::BrokenPipe.into());
        answer.await.map_err(ended)?
    }
}

/// A source that is shared until this is dropped.
#[derive(Debug)]
pub(crate) struct Exported {
    share: Arc<Share>,
    name: String,
}

impl Exported {
    /// The name by which the guest finds it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        // A thread that has ended has taken the tree with it.
        let _ = self.share.commands.send(Command::Remove(vec![std::mem::take(&mut self.name)]));
    }
}

/// Serves the owner's commands until it is gone.
fn serve(mut tree: Tree, commands: &mpsc::Receiver<Command>) {
    for command in commands {
        match command {
            Command::Add(export, reply) => {
                let failed = |error| ShareError::Export(export.source.display().to_string(), error);
                if let Err(Ok(name)) = reply.send(tree.add(&export).map_err(failed)) {
                    tree.remove(&name);
                }
            }
            Command::AddRoot(root, read_only, reply) => {
                let failed = |error| ShareError::Export(root.to_string(), error);
                if let Err(Ok((name, _))) = reply.send(tree.add_root(&root, read_only).map_err(failed)) {
                    tree.remove(&name);
                }
            }
            Command::Remove(names) => names.iter().for_each(|name| tree.remove(name)),
        }
    }
}

impl Server {
    /// Sees to it that the VM ends when the server does.
    fn watch(mut child: Child, mut words: Words, vm: VmWatch) -> io::Result<Self> {
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        let id = ProcessId::of(pid)?;
        let pidfd = sys::watch(sys::pidfd_open(pid)?, Interest::READABLE)?;
        let ((end, mut asked), (tell, ended)) = (watch::channel(false), watch::channel(false));
        tokio::spawn(async move {
            // Readable when the process has ended: then waiting for it does not wait.
            let by_itself = tokio::select! {
                _ = pidfd.readable() => { words.drain(); true }
                () = async { words.listen().await; drop(pidfd.readable().await) } => true,
                Ok(_) = asked.wait_for(|asked| *asked) => false,
            };
            if !by_itself {
                // Fails for a process that has just ended.
                let _ = child.kill();
                drop(pidfd.readable().await);
            }
            let status = child.wait();
            // It ends in good order when the VMM closes the socket, which is the VM's own end.
            if let Some(how) = failure(&status).filter(|_| by_itself) {
                tracing::warn!(pid, how, step = "fs server ended");
                vm.kill(ExitReason::Failure(format!("the pod's fs server {how}")));
            }
            tell.send_replace(true);
        });
        Ok(Self { id, end, ended })
    }
}

fn failure(status: &io::Result<ExitStatus>) -> Option<String> {
    use std::os::unix::process::ExitStatusExt;
    match status {
        Ok(status) if status.success() => None,
        Ok(status) => Some(match status.signal() {
            Some(libc::SIGKILL) => "was killed by SIGKILL (the host's OOM killer?)".into(),
            Some(libc::SIGSYS) => "was killed for a forbidden system call".into(),
            Some(signal) => format!("was killed by signal {signal}"),
            None => format!("failed ({status}); see its log"),
        }),
        Err(error) => Some(format!("cannot be waited for: {error}")),
    }
}
