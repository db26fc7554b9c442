//! What a container's root is made of, on the host's side.

use std::path::PathBuf;

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
