//! What is known of a snapshot besides what its VMM has written, and how much of that is believed.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;

use monohull_vmm::api::{MAX_MEMORY_MIB, SECTOR};
use serde::{Deserialize, Serialize};

use crate::process::Stdio;
use crate::state;

/// The version that this code writes, and the only one that it reads.
const VERSION: u32 = 1;
/// Most bytes of a manifest: enough for all extents and containers that a pod can have.
pub const MAX_MANIFEST: u64 = 256 << 10;
/// As many as a disk can have.
const MAX_EXTENTS: usize = 255;
/// More than a VM has memory for.
const MAX_CONTAINERS: usize = 1024;

/// What is wrong with a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It can't be read.
    #[error("it cannot be read")]
    Read(#[from] io::Error),
    /// It is cut off, or no manifest.
    #[error("it is damaged, or was never one")]
    Parse(#[from] serde_json::Error),
    /// It is none that anybody writes.
    #[error("it has more than {MAX_MANIFEST} bytes")]
    Long,
    /// Of another release.
    #[error("it has version {0}, not {VERSION}: make the snapshot anew")]
    Version(u32),
    /// Its checksum is another one.
    #[error("it is damaged: its checksum is not that of its content")]
    Checksum,
    /// A field can't be what it says.
    #[error("its {0} is impossible")]
    Field(&'static str),
}

/// A snapshot, but for its files.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The pod's id.
    pub pod: String,
    /// Its containerd namespace; empty for one of `monohull run`.
    pub namespace: String,
    /// Seconds since 1970.
    pub created_at: u64,
    /// How long the pod has stood still, in milliseconds.
    pub paused_ms: u64,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Memory in MiB that could be added.
    pub hotplug_mib: u32,
    /// The most CPUs it can have.
    pub max_cpus: u8,
    /// CPUs that it has.
    pub cpus: u8,
    /// Network interfaces that it could have.
    pub nics: u8,
    /// Bytes of the VM's state and memory that are no holes.
    pub bytes: u64,
    /// The files of its image disk.
    pub(crate) extents: Vec<SavedExtent>,
    /// Its containers, in no order.
    pub(crate) containers: Vec<SavedContainer>,
}

/// A file of the image disk.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedExtent {
    pub(crate) start: u64,
    pub(crate) sectors: u64,
    pub(crate) read_only: bool,
    /// When it was last written to: seconds since 1970, and nanoseconds.
    pub(crate) modified: (i64, i64),
}

impl SavedExtent {
    /// Its name in the snapshot's directory.
    pub(crate) fn file(&self) -> String {
        format!("extent-{}", self.start)
    }

    /// Whether nobody has touched its file.
    pub(super) fn is_unchanged(&self, file: &File) -> bool {
        file.metadata().is_ok_and(|metadata| {
            metadata.len() == self.sectors.saturating_mul(SECTOR)
                && (metadata.mtime(), metadata.mtime_nsec()) == self.modified
        })
    }
}

/// A container.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedContainer {
    pub(crate) id: String,
    /// Guest pid of its init process.
    pub(crate) pid: u32,
    /// Which streams that has.
    pub(crate) terminal: bool,
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    /// When it was created among the others, from 0.
    pub(crate) order: usize,
}

impl SavedContainer {
    pub(crate) fn stdio(&self) -> Stdio {
        let Self { terminal, stdin, stdout, stderr, .. } = *self;
        Stdio { terminal, stdin, stdout, stderr, size: None }
    }
}

/// A manifest as it is in its file.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    version: u32,
    /// CRC-32 would do; this one is at hand.
    sha256: String,
    /// JSON, so that the checksum is one of bytes.
    manifest: String,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Manifest {
    /// Ids of the containers, in the order in which they were created.
    pub fn containers(&self) -> Vec<&str> {
        let mut containers: Vec<_> = self.containers.iter().collect();
        containers.sort_by_key(|container| container.order);
        containers.into_iter().map(|container| container.id.as_str()).collect()
    }

    /// Whether a container's init process has a terminal.
    pub fn has_terminal(&self, container: &str) -> bool {
        self.containers.iter().any(|one| one.id == container && one.terminal)
    }

    /// As it is in a file.
    pub(super) fn to_text(&self) -> Result<String, ManifestError> {
        let manifest = serde_json::to_string(self)?;
        Ok(serde_json::to_string(&Envelope { version: VERSION, sha256: digest(&manifest), manifest })?)
    }

    /// Reads one, and checks it.
    pub(super) fn read(file: &File) -> Result<Self, ManifestError> {
        let mut text = Vec::new();
        file.take(MAX_MANIFEST + 1).read_to_end(&mut text)?;
        Self::parse(&text)
    }

    pub(super) fn parse(text: &[u8]) -> Result<Self, ManifestError> {
        if text.len() as u64 > MAX_MANIFEST {
            return Err(ManifestError::Long);
        }
        let Version { version } = serde_json::from_slice(text)?;
        if version != VERSION {
            return Err(ManifestError::Version(version));
        }
        let envelope: Envelope = serde_json::from_slice(text)?;
        if digest(&envelope.manifest) != envelope.sha256 {
            return Err(ManifestError::Checksum);
        }
        let manifest: Self = serde_json::from_str(&envelope.manifest)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Refuses what no pod could have had. What is left is the VMM's to check against its own files.
    pub(super) fn check(&self) -> Result<(), ManifestError> {
        let check = |good: bool, field| if good { Ok(()) } else { Err(ManifestError::Field(field)) };
        let is_id = |id: &str| state::check_id("id", id).is_ok();
        check(is_id(&self.pod), "pod")?;
        check(self.namespace.is_empty() || is_id(&self.namespace), "namespace")?;
        check((1..=MAX_MEMORY_MIB).contains(&self.memory_mib), "memory_mib")?;
        check(self.hotplug_mib <= MAX_MEMORY_MIB, "hotplug_mib")?;
        check(self.cpus > 0 && self.cpus <= self.max_cpus, "cpus")?;
        check(self.extents.len() <= MAX_EXTENTS, "number of extents")?;
        check(self.containers.len() <= MAX_CONTAINERS, "number of containers")?;
        for pair in self.extents.windows(2) {
            let [one, next] = pair else { continue };
            check(one.start < next.start, "order of extents")?;
        }
        check(self.extents.iter().all(|extent| extent.sectors > 0), "size of an extent")?;
        let mut ids: Vec<_> = self.containers.iter().map(|container| container.id.as_str()).collect();
        ids.sort_unstable();
        check(ids.iter().all(|id| is_id(id)), "container id")?;
        check(ids.windows(2).all(|pair| pair.first() != pair.last()), "container id, which is there twice,")
    }
}

fn digest(text: &str) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
