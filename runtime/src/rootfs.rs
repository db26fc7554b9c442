//! What a container's root is made of: how a list of host mounts becomes a list of guest mounts.
//!
//! Files and block devices with a file system (erofs, ext4, xfs) are handed to the guest as they are, and nothing is
//! mounted on the host. Directory trees are shared with it, live (docs/decisions/0001-directory-roots.md). What the guest
//! may not write to gets an overlay whose upper layer is a tmpfs in the guest: for mount points, and for what a container
//! writes to an image.

mod image;
mod overlay;
mod template;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

pub(crate) use overlay::HostOverlay;

use crate::spec::{ImageVolume, MemoryVolume};

/// The type of a storage that is an export of the pod's fs server (`agent.proto`).
pub(crate) const SHARED: &str = "virtiofs";

/// A mount as containerd sends it in a Create request (`containerd.types.Mount`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// "overlay", "bind", "erofs", "ext4", "format/mkdir/overlay", …
    pub fstype: String,
    /// A host path, or what the type wants.
    pub source: String,
    /// Usually empty.
    pub target: String,
    /// fstab options; those that begin with `X-containerd.` are for whoever performs the mount.
    pub options: Vec<String>,
}

/// Where a container's root comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rootfs {
    /// Mounts to be done in order.
    Mounts(Vec<Mount>),
    /// A directory on the host that holds the tree (CRI-O, `--rootfs`).
    Directory(PathBuf),
}

impl Rootfs {
    /// Whether it has a tree of the host, for which the pod needs its fs server.
    pub(crate) fn has_tree(&self) -> bool {
        match self {
            Self::Mounts(mounts) => {
                mounts.iter().any(|mount| matches!(mount.fstype.as_str(), "bind" | "overlay"))
            }
            Self::Directory(_) => true,
        }
    }
}

/// Why a root or volume can't be had.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// Something that is not supported.
    #[error("rootfs{place}: {reason}")]
    Unsupported {
        /// Which mount: "[2] (erofs)", or nothing.
        place: String,
        /// What about it.
        reason: String,
    },
    /// A source that can't be opened.
    #[error("cannot open {0}")]
    Open(PathBuf, #[source] io::Error),
    /// A source that is something else than its mount says.
    #[error("{path} is {what}")]
    Kind {
        /// The source.
        path: PathBuf,
        /// "neither a regular file nor a block device", …
        what: String,
    },
}

impl RootfsError {
    /// Whether the request is at fault, not the host.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Unsupported { .. } | Self::Kind { .. })
    }

    fn unsupported(reason: impl Into<String>) -> Self {
        Self::Unsupported { place: String::new(), reason: reason.into() }
    }

    /// Names the mount that the error is about.
    fn at(self, index: usize, mount: &Mount) -> Self {
        match self {
            Self::Unsupported { reason, .. } => {
                Self::Unsupported { place: format!("[{index}] ({})", mount.fstype), reason }
            }
            other => other,
        }
    }
}

/// One mount in the guest (`agent.proto`), whose source is in one of several stages of preparation.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Storage<S> {
    pub(crate) fstype: String,
    pub(crate) source: S,
    pub(crate) target: String,
    pub(crate) options: Vec<String>,
    pub(crate) directories: Vec<String>,
    pub(crate) within: String,
}

/// A source as planned: host paths.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Planned {
    /// A file or block device that holds a file system.
    Image { path: PathBuf, read_only: bool },
    /// A tree to share.
    Tree(SharedTree),
    /// What the guest's mount(2) takes.
    Path(&'static str),
    /// What containers of the pod share by this name.
    Name(String),
}

/// A source that is ready: descriptors.
#[derive(Debug)]
pub(crate) enum Source {
    /// A file or block device for the image disk.
    File { file: OwnedFd, read_only: bool },
    /// A tree to share, whose name the guest gets.
    Tree(SharedTree),
    /// What the guest's mount(2) takes.
    Path(String),
}

/// A tree that the guest gets from the fs server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SharedTree {
    pub(crate) tree: HostTree,
    pub(crate) read_only: bool,
    /// It is all of a container's root, not a layer among others.
    pub(crate) whole: bool,
}

/// A directory tree on the host.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HostTree {
    /// A directory, with what is mounted below it.
    Directory(PathBuf),
    /// The merged view of several, which is mounted for the pod alone.
    Overlay(HostOverlay),
}

impl<S> Storage<S> {
    fn new(fstype: &str, source: S, target: String, options: Vec<String>) -> Self {
        let (directories, within) = (Vec::new(), String::new());
        Self { fstype: fstype.to_owned(), source, target, options, directories, within }
    }
}

/// A pod's tmpfs in place of one on the host.
pub(crate) fn memory(volume: MemoryVolume) -> Storage<Planned> {
    let name = volume.source.to_string_lossy().into_owned();
    let storage = Storage::new("memory", Planned::Name(name), volume.target, volume.options);
    Storage { within: volume.within, ..storage }
}

/// A file system of the host's that is not the root.
pub(crate) fn image(volume: ImageVolume) -> Storage<Planned> {
    let source = Planned::Image { path: volume.source, read_only: volume.read_only };
    Storage::new(&volume.fstype, source, volume.target, volume.options)
}

/// A tree of the host, mounted at a guest path.
fn shared(tree: HostTree, read_only: bool, target: String) -> Storage<Planned> {
    let tree = SharedTree { tree, read_only, whole: false };
    Storage::new(SHARED, Planned::Tree(tree), target, Vec::new())
}

/// The guest mounts, in order, that make `<base>/rootfs` out of a host root. `base` is the container's guest directory.
/// With `read_only` the container does not write to it: then the fs server lets it not.
pub(crate) fn plan(
    rootfs: &Rootfs,
    read_only: bool,
    base: &str,
) -> Result<Vec<Storage<Planned>>, RootfsError> {
    let mounts = match rootfs {
        Rootfs::Directory(path) => {
            let root = shared(HostTree::Directory(path.clone()), read_only, format!("{base}/lower"));
            return Ok(complete(root, base));
        }
        Rootfs::Mounts(mounts) => mounts,
    };
    let Some((last, layers)) = mounts.split_last() else {
        return Err(RootfsError::unsupported("the request names no mounts, and no directory either"));
    };
    let place = |index| move |error: RootfsError| error.at(index, mounts.get(index).unwrap_or(last));
    let mut storages = Vec::new();
    for (index, mount) in layers.iter().enumerate() {
        storages.push(layer(mount, true, format!("{base}/layers/{index}")).map_err(place(index))?);
    }
    if template::is_template(last) {
        return template::overlay(last, storages, base).map_err(place(layers.len()));
    }
    if !layers.is_empty() {
        let reason = "only a format/overlay can follow other mounts";
        return Err(place(layers.len())(RootfsError::unsupported(reason)));
    }
    let root = layer(last, read_only, format!("{base}/lower")).map_err(place(0))?;
    Ok(complete(root, base))
}

/// What can be written to is the root; what can't is the lowest layer of one.
fn complete(mut root: Storage<Planned>, base: &str) -> Vec<Storage<Planned>> {
    let writable = match &mut root.source {
        Planned::Image { read_only, .. } => !*read_only,
        Planned::Tree(tree) => {
            tree.whole = true;
            !tree.read_only
        }
        Planned::Path(_) | Planned::Name(_) => false,
    };
    if writable {
        root.target = format!("{base}/rootfs");
        return vec![root];
    }
    with_tmpfs_upper(vec![root], base)
}

/// One host mount as a guest mount of its own. A tree that is only a layer of the root, or the root of a container that
/// does not write to it, is read-only.
fn layer(mount: &Mount, read_only_tree: bool, target: String) -> Result<Storage<Planned>, RootfsError> {
    if !mount.target.is_empty() && mount.target != "/" {
        return Err(RootfsError::unsupported(format!(
            "target {:?}: only the root can be mounted on",
            mount.target
        )));
    }
    let read_only = mount.options.iter().any(|option| option == "ro");
    match mount.fstype.as_str() {
        fstype @ ("erofs" | "ext4" | "xfs") => {
            let read_only = fstype == "erofs" || read_only;
            let source = Planned::Image { path: absolute(&mount.source)?, read_only };
            let options = image_options(&mount.options, read_only).map_err(RootfsError::unsupported)?;
            Ok(Storage::new(fstype, source, target, options))
        }
        "bind" => {
            Ok(shared(HostTree::Directory(absolute(&mount.source)?), read_only || read_only_tree, target))
        }
        "overlay" => {
            let overlay = HostOverlay::parse(&mount.options)?;
            let read_only = read_only || read_only_tree || !overlay.has_upper();
            Ok(shared(overlay.into_tree(), read_only, target))
        }
        other => Err(RootfsError::unsupported(format!(
            "type {other:?}: the guest takes erofs, ext4 and xfs images, overlay and bind mounts of directories"
        ))),
    }
}

fn absolute(path: &str) -> Result<PathBuf, RootfsError> {
    let path = PathBuf::from(path);
    if path.is_absolute() {
        return Ok(path);
    }
    Err(RootfsError::unsupported(format!("source {path:?} is not an absolute path")))
}

/// What of an image's mount options concerns the guest. Fails with the reason to refuse one.
pub(crate) fn image_options(options: &[String], read_only: bool) -> Result<Vec<String>, String> {
    let mut kept = Vec::new();
    for option in options.iter().map(String::as_str) {
        match option {
            // The image disk takes the place of a loop device; reading and writing is settled below.
            "loop" | "ro" | "rw" => {}
            _ if option.starts_with("device=") => {
                return Err("option device=: erofs images in several files are not supported".into());
            }
            // Done by containerd before the mount is sent.
            _ if option.starts_with("X-containerd.mkfs.") => {}
            _ if option.starts_with("X-containerd.") => {
                return Err(format!("option {option} is not supported"));
            }
            _ => kept.push(option.to_owned()),
        }
    }
    if read_only {
        kept.push("ro".into());
    }
    Ok(kept)
}

/// Completes read-only layers (the last of which are mounted first) with an upper layer in the guest's memory.
fn with_tmpfs_upper(mut lower: Vec<Storage<Planned>>, base: &str) -> Vec<Storage<Planned>> {
    let lowerdir = lower.iter().map(|storage| storage.target.as_str()).collect::<Vec<_>>().join(":");
    let options = vec![format!("lowerdir={lowerdir}")];
    lower.extend(tmpfs_upper(options, base));
    lower
}

/// An overlay on `<base>/rootfs` with the given options and, as its upper layer, a new tmpfs.
fn tmpfs_upper(mut options: Vec<String>, base: &str) -> [Storage<Planned>; 2] {
    let mut tmpfs =
        Storage::new("tmpfs", Planned::Path("tmpfs"), format!("{base}/rw"), vec!["mode=0755".into()]);
    tmpfs.directories = vec!["upper".into(), "work".into()];
    options.push(format!("upperdir={base}/rw/upper"));
    options.push(format!("workdir={base}/rw/work"));
    [tmpfs, Storage::new("overlay", Planned::Path("overlay"), format!("{base}/rootfs"), options)]
}

/// Opens images. Trees are mounted once the pod has its fs server.
pub(crate) fn prepare(storages: Vec<Storage<Planned>>) -> Result<Vec<Storage<Source>>, RootfsError> {
    let mut ready = Vec::with_capacity(storages.len());
    for Storage { fstype, source, target, options, directories, within } in storages {
        let source = match source {
            Planned::Image { path, read_only } => {
                Source::File { file: image::open(&path, read_only)?, read_only }
            }
            Planned::Tree(tree) => Source::Tree(tree),
            Planned::Path(path) => Source::Path(path.to_owned()),
            Planned::Name(name) => Source::Path(name),
        };
        ready.push(Storage { fstype, source, target, options, directories, within });
    }
    Ok(ready)
}

impl std::fmt::Display for HostTree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::Overlay(overlay) => write!(f, "an overlay of {} directories", overlay.layers()),
        }
    }
}
