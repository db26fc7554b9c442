//! Packing a directory tree into an erofs image, which the guest then mounts from the image disk.
//!
//! The image has no name: it goes when its last descriptor, in the VMM, does.

use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use monohull_vmm::api::SECTOR;
use nix::sys::signal::Signal;
use tokio::sync::oneshot;

use super::Tree;
use crate::{sys, text};

/// The packer, of the package erofs-utils.
const PACKER: &str = "mkfs.erofs";
/// Whole blocks, so that files are aligned to pages; each file's own time; and a UUID that is the same in every run.
const OPTIONS: [&str; 4] =
    ["--quiet", "-Enoinline_data", "--preserve-mtime", "-U00000000-0000-0000-0000-000000000000"];
/// The build time in the image, and the latest time a file in it can have: a fixed one, far off (the year 2100).
/// `-T` would set every file's time too.
const BUILD_TIME: (&str, &str) = ("SOURCE_DATE_EPOCH", "4102444800");
/// Most of the packer's messages that is kept.
const MAX_MESSAGES: usize = 4096;

/// Why a tree can't be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// No place for the image.
    #[error("cannot make an unnamed file in {0} (`scratch_dir` in the settings)")]
    Scratch(PathBuf, #[source] io::Error),
    /// The packer is not installed.
    #[error("{PACKER} is not installed; install the package erofs-utils")]
    Missing,
    /// The packer or its surroundings could not be set up.
    #[error("cannot {0}")]
    Run(&'static str, #[source] io::Error),
    /// The directory for images has no space left.
    #[error("no space left in {0} (`scratch_dir` in the settings)")]
    Full(PathBuf),
    /// The packer failed.
    #[error("{PACKER} failed ({status}): {messages}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// What it wrote.
        messages: String,
    },
}

/// The packer's process while it runs, to be killed when nobody waits for it any more.
#[derive(Clone, Debug, Default)]
struct Running(Arc<Mutex<Option<OwnedFd>>>);

impl Running {
    fn set(&self, pidfd: Option<OwnedFd>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = pidfd;
    }
}

/// Kills the packer on drop.
struct KillOnDrop(Running);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(pidfd) = &*self.0.0.lock().unwrap_or_else(PoisonError::into_inner) {
            // Fails only when it has ended.
            let _ = sys::pidfd_signal(pidfd.as_fd(), Signal::SIGKILL);
        }
    }
}

/// Packs a tree into an unnamed file in `scratch_dir`. Dropping the future kills the packer.
pub(super) async fn pack(tree: Tree, scratch_dir: &Path) -> Result<OwnedFd, PackError> {
    let image = unnamed_file(scratch_dir).map_err(|e| PackError::Scratch(scratch_dir.to_owned(), e))?;
    let output = image.try_clone().map_err(|e| PackError::Run("pass on a descriptor", e))?;
    let running = Running::default();
    let (sender, receiver) = oneshot::channel();
    let (their_running, place) = (running.clone(), scratch_dir.to_owned());
    // A thread of its own: mounting the tree changes its namespaces for good.
    let work = move || drop(sender.send(run(&tree, output, &place, &their_running)));
    let thread = std::thread::Builder::new().name("pack".into()).stack_size(256 * 1024).spawn(work);
    thread.map_err(|e| PackError::Run("start a thread", e))?;
    let guard = KillOnDrop(running);
    let result = receiver.await;
    drop(guard);
    result.map_err(|_| PackError::Run("wait for the packer", io::ErrorKind::BrokenPipe.into()))??;
    pad(&image).map_err(|e| PackError::Run("size the image", e))?;
    Ok(image.into())
}

fn unnamed_file(dir: &Path) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    File::options().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(dir)
}

/// Runs the packer to its end, in the calling thread's namespaces.
fn run(tree: &Tree, image: File, scratch_dir: &Path, running: &Running) -> Result<(), PackError> {
    let probe = image.try_clone().map_err(|e| PackError::Run("pass on a descriptor", e))?;
    let directory = match tree {
        Tree::Directory(path) => path.as_path(),
        Tree::Overlay(overlay) => overlay
            .mount_privately(scratch_dir)
            .map_err(|e| PackError::Run("mount the overlay to pack", e))?,
    };
    // The image is the packer's standard input: a name for a file that has none.
    let mut command = Command::new(PACKER);
    command.env(BUILD_TIME.0, BUILD_TIME.1).args(OPTIONS).arg("/proc/self/fd/0").arg(directory);
    command.stdin(image).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => PackError::Missing,
        _ => PackError::Run("start mkfs.erofs", e),
    })?;
    running.set(i32::try_from(child.id()).ok().and_then(|pid| sys::pidfd_open(pid).ok()));
    let messages = child.stderr.take().map(read_messages).unwrap_or_default();
    let status = child.wait();
    running.set(None);
    let status = status.map_err(|e| PackError::Run("wait for mkfs.erofs", e))?;
    if status.success() {
        return Ok(());
    }
    if is_full(&probe) {
        return Err(PackError::Full(scratch_dir.to_owned()));
    }
    Err(PackError::Failed { status, messages })
}

/// Reads to the end, keeps the first part.
fn read_messages(mut stderr: impl Read) -> String {
    let mut kept = Vec::new();
    let read = stderr.by_ref().take(MAX_MESSAGES as u64).read_to_end(&mut kept);
    // What can't be read is not worth failing for: the exit status tells.
    let _ = read.and_then(|_| io::copy(&mut stderr, &mut io::sink()));
    text::untrusted(&String::from_utf8_lossy(&kept), MAX_MESSAGES)
}

/// Whether the file's file system has no blocks left to give.
fn is_full(file: &File) -> bool {
    nix::sys::statvfs::fstatvfs(file).is_ok_and(|stat| stat.blocks_available() == 0)
}

/// Fills the image up to whole sectors.
fn pad(image: &File) -> io::Result<()> {
    let size = image.metadata()?.len();
    image.set_len(size.next_multiple_of(SECTOR))
}
