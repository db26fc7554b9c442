//! The tree of exports, in the mount namespace of the calling thread.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;

use monohull_fs_protocol::PRIVATE;
use monohull_vmm::client::with_own_process_ids;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::{Export, ReadOnly, ShareError};
use crate::rootfs::HostTree;
use crate::sys;

/// What a tree needs for its own: the mount points of the exports. They are empty.
const TREE_OPTIONS: &str = "mode=755,size=1m";

/// What the server has for its standard streams.
pub(super) struct Stdio {
    pub(super) channel: OwnedFd,
    pub(super) memory: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// See the module. Belongs to the thread that made it.
pub(super) struct Tree {
    path: PathBuf,
    host_mounts: Option<Arc<OwnedFd>>,
    next: u64,
}

impl Tree {
    /// Gives the calling thread, which must end with the pod, a mount namespace with an empty tree on `path`, and starts
    /// the server in it. The server dies with the thread.
    pub(super) fn start(
        path: PathBuf,
        host_mounts: Option<Arc<OwnedFd>>,
        program: &Path,
        Stdio { channel, memory, stderr }: Stdio,
    ) -> Result<(Self, Child), ShareError> {
        isolate(&path).map_err(ShareError::set_up("make a mount namespace"))?;
        let mut command = Command::new(program);
        command.arg(&path).env_clear().current_dir("/").stdin(channel).stdout(memory).stderr(stderr);
        let child = with_own_process_ids(|| command.spawn());
        let child = child.map_err(|error| ShareError::Start(program.to_owned(), error))?;
        Ok((Self { path, host_mounts, next: 0 }, child))
    }

    /// Mounts a source into the tree. Returns its name there.
    pub(super) fn add(&mut self, export: &Export) -> io::Result<String> {
        let name = self.next_name(None);
        self.added(&name, |target| {
            let mounted = copy_of(&export.source, export.recursive)?;
            attach(&mounted, export.read_only, target)
        })?;
        Ok(name)
    }

    /// Mounts a container's root into the tree. Returns its name there, and a descriptor of it.
    pub(super) fn add_root(&mut self, root: &HostTree, read_only: bool) -> io::Result<(String, OwnedFd)> {
        let name = self.next_name(Some(PRIVATE));
        let host_mounts = self.host_mounts.clone();
        let opened = self.added(&name, |target| {
            match root {
                HostTree::Directory(source) => {
                    let read_only = if read_only { ReadOnly::Recursive } else { ReadOnly::No };
                    attach(&copy_in(host_mounts.as_deref(), source)?, read_only, target)?;
                }
                HostTree::Overlay(overlay) => {
                    fs::DirBuilder::new().mode(0o755).create(target)?;
                    overlay.mount(target, read_only)?;
                }
            }
            let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
            File::options().read(true).custom_flags(flags).open(target)
        })?;
        Ok((name, opened.into()))
    }

    fn next_name(&mut self, prefix: Option<char>) -> String {
        self.next += 1;
        prefix.into_iter().chain(self.next.to_string().chars()).collect()
    }

    /// Has something mounted at a name; leaves nothing if that fails.
    fn added<T>(&mut self, name: &str, mount: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
        mount(&self.path.join(name)).inspect_err(|_| self.remove(name))
    }

    /// Unmounts an export. What the guest still has open of it stays with the server until it is closed.
    pub(super) fn remove(&mut self, name: &str) {
        let target = self.path.join(name);
        // Each fails where there is nothing to do. A mount point that is in use can't be removed, nor can what is in it.
        let _ = umount2(&target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        let _ = fs::remove_dir(&target).or_else(|_| fs::remove_file(&target));
    }
}

/// A mount of what is at `source`, with what is mounted below it if `recursive`. It is not attached anywhere yet: what is
/// mounted in the tree reaches the server at once, as it is.
fn copy_of(source: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(open_tree(CWD, source, flags)?)
}

/// [`copy_of`] a source as it is in another mount namespace, if any.
fn copy_in(mounts: Option<&OwnedFd>, source: &Path) -> io::Result<OwnedFd> {
    let Some(mounts) = mounts else { return copy_of(source, true) };
    // A thread of its own: it does not come back.
    let copy = || {
        unshare(CloneFlags::CLONE_FS)?;
        setns(mounts, CloneFlags::CLONE_NEWNS)?;
        copy_of(source, true)
    };
    let copied = std::thread::scope(|scope| scope.spawn(copy).join());
    let copied = copied.unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))?;
    sys::make_slave(copied.as_fd())?;
    Ok(copied)
}

/// Attaches a mount to `target`, which is made.
fn attach(mounted: &OwnedFd, read_only: ReadOnly, target: &Path) -> io::Result<()> {
    match read_only {
        ReadOnly::No => {}
        ReadOnly::Top => sys::make_read_only(mounted.as_fd(), false)?,
        ReadOnly::Recursive => sys::make_read_only(mounted.as_fd(), true)?,
    }
    let is_directory = rustix::fs::fstat(mounted).map(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR)?;
    if is_directory {
        fs::DirBuilder::new().mode(0o755).create(target)?;
    } else {
        File::create_new(target)?;
    }
    move_mount(mounted, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// A mount namespace that hears of the host's mounts and tells it nothing, with an empty tree on `path` whose mounts are
/// passed on to the namespaces of child processes.
fn isolate(path: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("shared"), path, Some("tmpfs"), flags, Some(TREE_OPTIONS))?;
    mount(none, path, none, MsFlags::MS_SHARED, none)?;
    Ok(())
}
