//! One mount, by the file-descriptor based mount calls (fsopen(2), fsmount(2), move_mount(2)): they take overlay's
//! layers one at a time, where mount(2) has a page for all of them, and a target that was opened beforehand.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, StatxFlags, statx};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_remount, move_mount, open_tree,
};

use crate::error::{Doing, Error, Result};
use crate::paths;

/// Mount options in the three places where the kernel wants them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Of the mount.
    attributes: Attributes,
    /// Of the filesystem: key and, unless it is a flag, value.
    parameters: Vec<(String, Option<String>)>,
    /// `rbind`: the mounts below the source too.
    recursive: bool,
}

/// Attributes of a mount; the filesystem's own read-only state is the parameter "ro".
#[derive(Debug, Default, PartialEq, Eq)]
struct Attributes {
    read_only: bool,
    no_suid: bool,
    no_dev: bool,
    no_exec: bool,
    no_atime: bool,
    strict_atime: bool,
    no_diratime: bool,
}

impl Options {
    /// Parses options as fstab has them, each of which may hold several with commas. What only tells a mount program
    /// what to do (`loop`, `X-…`) is dropped.
    pub(crate) fn parse<'a>(options: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut parsed = Self::default();
        for option in options.into_iter().flat_map(|text| text.split(',')) {
            parsed.add(option)?;
        }
        Ok(parsed)
    }

    fn add(&mut self, option: &str) -> Result<()> {
        let attributes = &mut self.attributes;
        match option {
            "" | "defaults" | "bind" | "loop" | "auto" | "noauto" | "nofail" | "_netdev" => {}
            "rbind" => self.recursive = true,
            "ro" => attributes.read_only = true,
            "rw" => attributes.read_only = false,
            "nosuid" => attributes.no_suid = true,
            "suid" => attributes.no_suid = false,
            "nodev" => attributes.no_dev = true,
            "dev" => attributes.no_dev = false,
            "noexec" => attributes.no_exec = true,
            "exec" => attributes.no_exec = false,
            "noatime" => attributes.no_atime = true,
            "strictatime" => attributes.strict_atime = true,
            "atime" | "relatime" | "nostrictatime" => {
                attributes.no_atime = false;
                attributes.strict_atime = false;
            }
            "nodiratime" => attributes.no_diratime = true,
            "diratime" => attributes.no_diratime = false,
            "remount" | "move" => {
                return Err(Error::Invalid(format!("storage option {option:?} makes no mount")));
            }
            _ if option.starts_with("X-") || option.starts_with("x-") => {}
            _ => match option.split_once('=') {
                Some((key, value)) => self.parameters.push((key.into(), Some(value.into()))),
                None => self.parameters.push((option.into(), None)),
            },
        }
        Ok(())
    }

    /// Makes the mount and its filesystem read-only.
    pub(crate) fn read_only(mut self) -> Self {
        self.attributes.read_only = true;
        self
    }

    fn mount_attributes(&self) -> MountAttrFlags {
        let Attributes { read_only, no_suid, no_dev, no_exec, no_atime, strict_atime, no_diratime } =
            self.attributes;
        let mut flags = MountAttrFlags::empty();
        flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, read_only);
        flags.set(MountAttrFlags::MOUNT_ATTR_NOSUID, no_suid);
        flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, no_dev);
        flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, no_exec);
        flags.set(MountAttrFlags::MOUNT_ATTR_NODIRATIME, no_diratime);
        // Two values of one field, not bits: at most one of them.
        if no_atime {
            flags |= MountAttrFlags::MOUNT_ATTR_NOATIME;
        } else if strict_atime {
            flags |= MountAttrFlags::MOUNT_ATTR_STRICTATIME;
        }
        flags
    }

    fn remount_flags(&self) -> MountFlags {
        let mut flags = MountFlags::BIND;
        flags.set(MountFlags::RDONLY, self.attributes.read_only);
        flags.set(MountFlags::NOSUID, self.attributes.no_suid);
        flags.set(MountFlags::NODEV, self.attributes.no_dev);
        flags.set(MountFlags::NOEXEC, self.attributes.no_exec);
        flags.set(MountFlags::NOATIME, self.attributes.no_atime);
        flags.set(MountFlags::NODIRATIME, self.attributes.no_diratime);
        flags
    }
}

/// The layers of an overlay's `lowerdir` as (parameter, path): `\:` is a colon within a path, `::` begins the
/// data-only layers (Documentation/filesystems/overlayfs.rst).
fn overlay_layers(lowerdir: &str) -> Vec<(&'static str, String)> {
    let mut layers = Vec::new();
    let mut parameter = "lowerdir+";
    let mut path = String::new();
    let mut characters = lowerdir.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => path.extend(characters.next()),
            ':' if path.is_empty() => parameter = "datadir+",
            ':' => layers.push((parameter, std::mem::take(&mut path))),
            _ => path.push(character),
        }
    }
    if !path.is_empty() {
        layers.push((parameter, path));
    }
    layers
}

/// Mounts a new filesystem on `target`. `source` is a device, or a name for filesystems that have none.
pub(crate) fn filesystem(fstype: &str, source: &str, options: &Options, target: impl AsFd) -> Result<()> {
    let what = || format!("mount {fstype} from {source}");
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC).doing(what)?;
    let set = |key: &str, value: Option<&str>| {
        match value {
            Some(value) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, key),
        }
        .map_err(|error| explain(&context, error))
        .doing(|| format!("{}: option {key}={}", what(), value.unwrap_or_default()))
    };
    set("source", Some(source))?;
    if options.attributes.read_only {
        set("ro", None)?;
    }
    for (key, value) in &options.parameters {
        match value {
            Some(value) if fstype == "overlay" && key == "lowerdir" => {
                for (parameter, path) in overlay_layers(value) {
                    set(parameter, Some(&path))?;
                }
            }
            _ => set(key, value.as_deref())?,
        }
    }
    fsconfig_create(&context).map_err(|error| explain(&context, error)).doing(what)?;
    let tree = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, options.mount_attributes()).doing(what)?;
    attach(&tree, target, what)
}

/// Mounts what is at `source` on `target` too.
pub(crate) fn bind(source: &Path, options: &Options, target: impl AsFd) -> Result<()> {
    let what = || format!("bind {}", source.display());
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, options.recursive);
    bind_opened(&paths::open_path(source)?, flags, options, target, what)
}

/// Mounts a directory or file that is open on `target` too.
pub(crate) fn bind_open(source: &OwnedFd, options: &Options, target: impl AsFd, what: &str) -> Result<()> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    bind_opened(source, flags, options, target, || format!("bind {what}"))
}

fn bind_opened(
    source: &OwnedFd,
    flags: OpenTreeFlags,
    options: &Options,
    target: impl AsFd,
    what: impl Fn() -> String,
) -> Result<()> {
    let tree = open_tree(source, "", flags).doing(&what)?;
    attach(&tree, target, &what)?;
    if options.remount_flags() != MountFlags::BIND {
        // The descriptor still names the mount, now that it is attached.
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}", tree.as_raw_fd());
        mount_remount(path, options.remount_flags(), "").doing(&what)?;
    }
    Ok(())
}

fn attach(tree: &OwnedFd, target: impl AsFd, what: impl FnOnce() -> String) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", target, "", flags).doing(what)
}

/// Adds what the kernel has to say about a failed mount, which it queues on the context's descriptor.
fn explain(context: &OwnedFd, error: rustix::io::Errno) -> Box<dyn std::error::Error + Send + Sync> {
    let mut text = error.to_string();
    let mut line = [0_u8; 512];
    while let Ok(length) = rustix::io::read(context, &mut line) {
        let Some(message) = line.get(..length).filter(|message| !message.is_empty()) else { break };
        text.push_str("; ");
        text.push_str(String::from_utf8_lossy(message).trim_end());
    }
    text.into()
}

/// Unmounts `path`. A filesystem that is still in use is detached and ends with its last user.
pub(crate) fn unmount(path: &Path) -> Result<()> {
    use rustix::mount::UnmountFlags;
    match rustix::mount::unmount(path, UnmountFlags::NOFOLLOW) {
        Err(rustix::io::Errno::BUSY) => {
            rustix::mount::unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
        }
        result => result,
    }
    .doing(|| format!("unmount {}", path.display()))
}

/// Unmounts what is mounted on `path`, and what is mounted on that; nothing need be.
pub(crate) fn unmount_submount(path: &Path) -> Result<()> {
    use rustix::mount::UnmountFlags;
    match rustix::mount::unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
        Err(rustix::io::Errno::INVAL) => Ok(()),
        result => result,
    }
    .doing(|| format!("unmount {}", path.display()))
}

/// Whether what is open is a directory, for choosing a target of the same kind. The host is not asked: no file changes its type.
pub(crate) fn is_directory(opened: &OwnedFd) -> Result<bool> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = statx(opened, "", flags, StatxFlags::TYPE).doing(|| "stat the source of a mount".into())?;
    Ok(FileType::from_raw_mode(found.stx_mode.into()).is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_go_where_the_kernel_wants_them() {
        let options =
            Options::parse(["ro,nosuid", "noexec", "size=64k", "loop", "X-containerd.mkdir=x", "userxattr"]);
        let options = options.unwrap();
        let expected = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        assert_eq!(options.mount_attributes(), expected);
        assert_eq!(options.parameters, [("size".into(), Some("64k".into())), ("userxattr".into(), None)]);
    }

    #[test]
    fn later_options_win() {
        let options = Options::parse(["ro", "nodev", "rw", "dev"]).unwrap();
        assert_eq!(options, Options::default());
    }

    #[test]
    fn options_that_make_no_mount_are_refused() {
        assert!(Options::parse(["remount,ro"]).is_err());
    }

    #[test]
    fn overlay_layers_keep_order_and_escaped_colons() {
        let layers = overlay_layers(r"/a:/b\:c:/d::/data");
        let expected =
            [("lowerdir+", "/a"), ("lowerdir+", "/b:c"), ("lowerdir+", "/d"), ("datadir+", "/data")];
        assert_eq!(layers, expected.map(|(key, path)| (key, path.to_owned())));
    }
}
