//! Volumes that the guest mirrors: the kubelet's configMaps, secrets and projected volumes, and whatever else changes by
//! the same rename.
//!
//! Their content is sent to the agent, which keeps it in memory. This end watches the directory, and sends what it has
//! become. So inotify tells of the change in the guest, too, which virtio-fs can't. See docs/decisions/0005-mirrors.md.

mod read;

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use monohull_protocol::agent::Mirror;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::agent::{AgentError, RefusedCode};
use crate::pod::Link;
use crate::{sys, text};
use read::{Directory, Unfit};

/// Most bytes of a container's mirrors together: with the spec they must fit into one message of 4 MiB.
pub(crate) const MAX_CREATE: usize = 2 << 20;
/// Most bytes of one that has grown since.
const MAX_UPDATE: usize = 3 << 20;

/// A pod's mirrors. The first one starts the task that follows them.
#[derive(Debug, Default)]
pub(crate) struct Mirrors {
    watch: Mutex<Option<Arc<AsyncFd<OwnedFd>>>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    table: Mutex<Table>,
    /// Told when there is something to look at that no event tells of.
    look: Notify,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    mirrors: BTreeMap<String, Original>,
}

/// What a mirror mirrors.
#[derive(Debug)]
struct Original {
    directory: Directory,
    /// What the guest has, without the content.
    sent: Mirror,
    /// Whether the guest has it already.
    live: bool,
}

/// A directory that is mirrored until this is dropped.
#[derive(Debug)]
pub(crate) struct Mirrored {
    shared: Arc<Shared>,
    name: String,
}

impl Mirrors {
    /// Mirrors the directory `source` if it is one that changes by one rename and has no more than `room` bytes. Returns
    /// what the guest is to have at first, and how many bytes that is.
    pub(crate) fn add(
        &self,
        source: &Path,
        room: usize,
        link: &Link,
    ) -> io::Result<Option<(Mirrored, Mirror, usize)>> {
        let Some(directory) = Directory::open(source)? else { return Ok(None) };
        // First: what changes from here on is an event.
        self.watch(&directory, link)?;
        let (mut mirror, bytes) = match directory.read(room) {
            Ok(read) => read,
            Err(Unfit::Failed(error)) => return Err(error),
            Err(unfit) => {
                tracing::info!(source = %source.display(), why = %unfit, "a volume is shared, not mirrored");
                return Ok(None);
            }
        };
        let mut table = self.shared.lock();
        let name = table.next.to_string();
        table.next += 1;
        mirror.name.clone_from(&name);
        let original = Original { directory, sent: outline(&mirror), live: false };
        table.mirrors.insert(name.clone(), original);
        drop(table);
        Ok(Some((Mirrored { shared: self.shared.clone(), name }, mirror, bytes)))
    }

    /// One inotify instance serves the whole pod: a user has 128 of them (fs.inotify.max_user_instances).
    fn watch(&self, directory: &Directory, link: &Link) -> io::Result<()> {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let active = if let Some(active) = &*watch {
            active.clone()
        } else {
            let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            let new = Arc::new(sys::watch(fd, Interest::READABLE)?);
            tokio::spawn(follow(new.clone(), self.shared.clone(), link.clone()));
            watch.insert(new).clone()
        };
        add_watches(active.get_ref(), directory.path())
    }
}

impl Mirrored {
    /// The guest has it now: what has changed meanwhile is sent, and all that changes from now on.
    pub(crate) fn set_live(&self) {
        if let Some(original) = self.shared.lock().mirrors.get_mut(&self.name) {
            original.live = true;
        }
        self.shared.look.notify_one();
    }
}

impl Drop for Mirrored {
    fn drop(&mut self) {
        // Its watch stays as long as the directory: an event too many costs a look.
        self.shared.lock().mirrors.remove(&self.name);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has changed of the mirrors that the guest has.
    fn changes(&self, watch: impl AsFd) -> Vec<Mirror> {
        let mut changes = Vec::new();
        for (name, original) in self.lock().mirrors.iter().filter(|(_, original)| original.live) {
            let read = original.directory.read(MAX_UPDATE);
            // A new version is a new directory.
            let watched = add_watches(&watch, original.directory.path());
            match (read, watched) {
                (Ok((mut mirror, _)), Ok(())) => {
                    mirror.name.clone_from(name);
                    if outline(&mirror) != original.sent {
                        changes.push(mirror);
                    }
                }
                (Err(error), _) => stale(original, &error),
                (_, Err(error)) => stale(original, &error),
            }
        }
        changes
    }

    fn set_sent(&self, mirror: &Mirror) {
        if let Some(original) = self.lock().mirrors.get_mut(&mirror.name) {
            original.sent = outline(mirror);
        }
    }
}

fn stale(original: &Original, why: &dyn std::error::Error) {
    let (path, why) = (original.directory.path().display(), text::chain(why));
    tracing::warn!(volume = %path, why, "the pod keeps the volume's former content");
}

/// Everything but the content of files: a version's never changes.
fn outline(mirror: &Mirror) -> Mirror {
    let mut outline = mirror.clone();
    for entry in &mut outline.content {
        entry.data.clear();
    }
    outline
}

/// Watches for what a writer does: links that come and go, and owners and modes that are set afterwards.
fn add_watches(watch: impl AsFd, path: &Path) -> io::Result<()> {
    let changes = WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::ATTRIB;
    inotify::add_watch(&watch, path, changes | WatchFlags::ONLYDIR)?;
    match inotify::add_watch(&watch, path.join(read::DATA), WatchFlags::ATTRIB | WatchFlags::ONLYDIR) {
        // Replaced at this moment: that is an event of the directory.
        Ok(_) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Sends what changes, until the VM ends.
async fn follow(watch: Arc<AsyncFd<OwnedFd>>, shared: Arc<Shared>, link: Link) {
    let vm = link.vm.clone();
    let follow = async {
        loop {
            tokio::select! {
                readable = watch.readable() => match readable {
                    Ok(mut readable) => {
                        let relevant = drain(watch.get_ref());
                        readable.clear_ready();
                        if !relevant {
                            continue;
                        }
                    }
                    Err(_) => return,
                },
                () = shared.look.notified() => {}
            }
            for mirror in shared.changes(watch.get_ref()) {
                send(&shared, &link, &mirror).await;
            }
        }
    };
    tokio::select! {
        () = follow => {}
        _ = vm.ended() => {}
    }
}

async fn send(shared: &Shared, link: &Link, mirror: &Mirror) {
    match link.agent.update_mirror(mirror).await {
        Ok(()) => shared.set_sent(mirror),
        // Its container is being deleted.
        Err(AgentError::Refused { code: RefusedCode::NotFound, .. }) => {}
        Err(error) => {
            if let Some(original) = shared.lock().mirrors.get(&mirror.name) {
                stale(original, &error);
            }
        }
    }
}

/// Takes all events. False when they tell of nothing but a version that is being written or removed.
fn drain(watch: impl AsFd) -> bool {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(watch, &mut buffer);
    let mut relevant = false;
    // The end is EAGAIN.
    while let Ok(event) = reader.next() {
        let passing =
            |name: &std::ffi::CStr| name.to_bytes().starts_with(b"..") && name.to_bytes() != b"..data";
        relevant |= !event.file_name().is_some_and(passing);
    }
    relevant
}

#[cfg(test)]
mod tests;
