//! Saving a running pod, which goes on afterwards as if nothing had been.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use monohull_vmm::api::{ExitReason, SECTOR};

use super::{Pod, PodError};
use crate::disk::Extent;
use crate::snapshot::{Manifest, SavedExtent, files, now};
use crate::text;
use crate::vm::VmError;

impl Pod {
    /// Saves the pod into an empty directory: its VM, and the files of its disk. Its containers stand still meanwhile. What
    /// can't be copied is refused by its name; then, and when it fails, what is in the directory is of no use.
    pub(crate) async fn save(&self, directory: &Path) -> Result<Manifest, PodError> {
        // Nothing is created or removed meanwhile.
        let _alone = self.changes.write().await;
        self.check_copyable().await?;
        let mut extents = self.disk.all().await;
        extents.sort_by_key(|extent| extent.start());
        let (writable, shared): (Vec<_>, Vec<_>) =
            extents.into_iter().partition(|extent| !extent.is_read_only());
        let mut saved = keep(shared, directory).await?;
        if let Err(error) = self.link.agent.freeze().await {
            // One that could not be stopped in time must not be so later.
            let _ = self.link.agent.thaw().await;
            return Err(self.link.error(error).await);
        }
        let begun = Instant::now();
        let done = async {
            self.vm.pause().await?;
            saved.extend(keep(writable, directory).await?);
            let [state, memory] = [create(directory, "state")?, create(directory, "memory")?];
            Ok::<_, PodError>(self.vm.snapshot(state.into(), memory.into()).await?)
        };
        let done = done.await;
        self.go_on().await?;
        saved.sort_by_key(|extent| extent.start);
        let paused_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let manifest = self.manifest(saved, done?, paused_ms).await;
        tracing::info!(paused_ms, bytes = manifest.bytes, step = "snapshot made");
        Ok(manifest)
    }

    /// Lets a pod that has been stopped go on. One that does not is of no use.
    async fn go_on(&self) -> Result<(), PodError> {
        let went_on = async {
            self.vm.resume().await?;
            match self.link.agent.thaw().await {
                Ok(()) => Ok(()),
                Err(error) => Err(self.link.error(error).await),
            }
        };
        let went_on = went_on.await;
        if let Err(error) = &went_on {
            let text = format!("it does not go on after a snapshot: {}", text::chain(error));
            self.link.vm.kill(ExitReason::GuestFailure(text));
        }
        went_on
    }

    async fn manifest(&self, extents: Vec<SavedExtent>, bytes: u64, paused_ms: u64) -> Manifest {
        let shape = self.shape;
        Manifest {
            pod: self.name.id.clone(),
            namespace: self.name.namespace.clone(),
            created_at: now(),
            paused_ms,
            memory_mib: shape.memory_mib,
            hotplug_mib: shape.hotplug_mib,
            max_cpus: shape.vcpus,
            cpus: self.sizing.lock().await.cpus(),
            nics: shape.nics,
            bytes,
            extents,
            containers: self.containers.saved(),
        }
    }

    /// Refuses what a copy could not have: what is the host's and not the guest's.
    async fn check_copyable(&self) -> Result<(), PodError> {
        let refuse =
            |text: String| Err(PodError::Precondition(format!("cannot copy pod {}: {text}", self.name.id)));
        if let Some(reason) = self.containers.uncopyable() {
            return refuse(reason);
        }
        if self.share.get().is_some() {
            let text = "it has a server for host directories, which one of its containers has used or was expected to: start a \
                        pod whose containers have roots of blocks and no host paths (`monohull run --block`)";
            return refuse(text.into());
        }
        if self.has_console {
            return refuse("it has a debug console: start it without --console".into());
        }
        match self.sizing.lock().await.added_mib() {
            0 => Ok(()),
            mib => refuse(format!(
                "{mib} MiB were added to the memory that its VM began with, for a container's limit: start it without memory \
                 limits, or with default_memory_mib in the settings as large"
            )),
        }
    }
}

/// Puts the files of extents into the directory.
async fn keep(extents: Vec<Arc<Extent>>, directory: &Path) -> Result<Vec<SavedExtent>, PodError> {
    let directory = directory.to_owned();
    let keep = move || {
        let one = |extent: Arc<Extent>| {
            let (start, sectors) = (extent.start(), extent.sectors());
            let read_only = extent.is_read_only();
            let mut saved = SavedExtent { start, sectors, read_only, modified: (0, 0) };
            let path = directory.join(saved.file());
            let kept = files::keep(extent.file(), &path, sectors * SECTOR, read_only);
            let metadata = kept.and_then(|file| file.metadata());
            let metadata = metadata.map_err(|source| PodError::Copy { path, source })?;
            saved.modified = modified(&metadata);
            Ok(saved)
        };
        extents.into_iter().map(one).collect()
    };
    let kept = tokio::task::spawn_blocking(keep).await;
    kept.map_err(|error| VmError::Watch(std::io::Error::other(error)))?
}

fn modified(metadata: &std::fs::Metadata) -> (i64, i64) {
    use std::os::unix::fs::MetadataExt;
    (metadata.mtime(), metadata.mtime_nsec())
}

fn create(directory: &Path, name: &str) -> Result<std::fs::File, PodError> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = directory.join(name);
    let file = std::fs::File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
    file.map_err(|source| PodError::Copy { path, source })
}
