//! The pod's image disk, as its owner keeps account of it: which file or block device is which extent, and for how long.
//!
//! One file or device is one extent, however many containers use it: the guest's kernel must not have two caches of the
//! same bytes, and layers that containers share are stored once. An extent leaves the disk with its last user.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use monohull_protocol::agent as proto;

use crate::vm::{Removal, Vm, VmError, VmWatch};

/// Why a file can't be put on the image disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It can't be examined.
    #[error("cannot examine {0}")]
    Examine(PathBuf, #[source] io::Error),
    /// The pod has it already, otherwise.
    #[error(
        "{path} is {has} in this pod already and can't be {wanted} too: one pod has a file or device in one way"
    )]
    Mode {
        /// The file or device.
        path: PathBuf,
        /// "read-only" or "writable".
        has: &'static str,
        /// The other one.
        wanted: &'static str,
    },
    /// The VMM.
    #[error(transparent)]
    Vm(#[from] VmError),
}

/// What tells one file from another as long as both are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Identity {
    /// A regular file by its file system and inode.
    File { device: u64, inode: u64 },
    /// A block device by its number, whatever its path.
    Device(u64),
}

/// The extents of a pod's disk.
#[derive(Debug, Default)]
pub(crate) struct ImageDisk {
    /// Held while an extent is added, so that nobody adds the same file meanwhile.
    extents: tokio::sync::Mutex<HashMap<Identity, Weak<Extent>>>,
    removals: Arc<Mutex<Vec<Removal>>>,
    settling: tokio::sync::Mutex<()>,
}

/// A file or block device on the disk, which is removed when the last user drops it.
#[derive(Debug)]
pub(crate) struct Extent {
    start: u64,
    sectors: u64,
    read_only: bool,
    /// What a snapshot of the pod has to keep.
    file: File,
    vm: VmWatch,
    removals: Arc<Mutex<Vec<Removal>>>,
}

impl ImageDisk {
    /// Puts `file` on the disk of `vm`, unless it is there.
    pub(crate) async fn add(
        &self,
        vm: &Vm,
        file: OwnedFd,
        read_only: bool,
    ) -> Result<Arc<Extent>, DiskError> {
        let file = File::from(file);
        let identity = Identity::of(&file).map_err(|e| DiskError::Examine(path(&file), e))?;
        let mut extents = self.extents.lock().await;
        extents.retain(|_, extent| extent.strong_count() > 0);
        // The file of an extent is open in the VMM, so that its identity can't have passed to another one.
        if let Some(extent) = extents.get(&identity).and_then(Weak::upgrade) {
            if extent.read_only != read_only {
                let name = |read_only| if read_only { "read-only" } else { "writable" };
                let (has, wanted) = (name(extent.read_only), name(read_only));
                return Err(DiskError::Mode { path: path(&file), has, wanted });
            }
            return Ok(extent);
        }
        let given = file.try_clone().map_err(|e| DiskError::Examine(path(&file), e))?;
        let (start, sectors) = vm.add_extent(given.into(), read_only).await?;
        Ok(self.insert(&mut extents, (identity, file), vm, (start, sectors, read_only)))
    }

    /// Gives a copy of a VM that has not run yet the file of an extent of its original: first sector, length in sectors, whether
    /// it is read-only.
    pub(crate) async fn restore(
        &self,
        vm: &Vm,
        file: File,
        extent: (u64, u64, bool),
    ) -> Result<Arc<Extent>, DiskError> {
        let identity = Identity::of(&file).map_err(|e| DiskError::Examine(path(&file), e))?;
        let given = file.try_clone().map_err(|e| DiskError::Examine(path(&file), e))?;
        vm.restore_extent(given.into(), extent.0, extent.2).await?;
        Ok(self.insert(&mut *self.extents.lock().await, (identity, file), vm, extent))
    }

    fn insert(
        &self,
        extents: &mut HashMap<Identity, Weak<Extent>>,
        (identity, file): (Identity, File),
        vm: &Vm,
        (start, sectors, read_only): (u64, u64, bool),
    ) -> Arc<Extent> {
        let (vm, removals) = (vm.watch(), Arc::clone(&self.removals));
        let extent = Arc::new(Extent { start, sectors, read_only, file, vm, removals });
        extents.insert(identity, Arc::downgrade(&extent));
        extent
    }

    /// All extents there are, in no order.
    pub(crate) async fn all(&self) -> Vec<Arc<Extent>> {
        self.extents.lock().await.values().filter_map(Weak::upgrade).collect()
    }

    /// Waits until the files of all extents that have been dropped are closed: only then can their owners unmap, detach
    /// or remove them.
    pub(crate) async fn settle(&self) {
        // Whoever comes second also waits for what the first one has taken.
        let _settling = self.settling.lock().await;
        let removals = std::mem::take(&mut *lock(&self.removals));
        for removal in removals {
            match removal.done().await {
                // With the VM its descriptors are gone.
                Ok(()) | Err(VmError::Ended(_)) => {}
                Err(error) => tracing::warn!(error = %crate::text::chain(&error), step = "remove extent"),
            }
        }
    }
}

impl Identity {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(if metadata.file_type().is_block_device() {
            Self::Device(metadata.rdev())
        } else {
            Self::File { device: metadata.dev(), inode: metadata.ino() }
        })
    }
}

impl Extent {
    /// Its first sector.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// How many it has.
    pub(crate) fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether the device refuses writes to it.
    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Its file or block device.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// As the agent is told of it.
    pub(crate) fn to_request(&self) -> proto::Extent {
        let Self { start, sectors, read_only, .. } = *self;
        proto::Extent { disk: 0, start, sectors, read_only, ..Default::default() }
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        let removal = self.vm.remove_extent(self.start);
        lock(&self.removals).extend(removal);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where an open file is, for messages.
fn path(file: &File) -> PathBuf {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_else(|_| "a file".into())
}
