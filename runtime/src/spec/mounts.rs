//! A container's mounts: what the guest has itself stays, what comes from the host is brought along or refused.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{HUGETLBFS_MAGIC, Statfs, TMPFS_MAGIC, statfs};
use oci_spec::runtime as oci;

use super::{GUEST_DEVICES, ImageVolume, MemoryVolume, SocketVolume, SpecError, Volume, Volumes};
use crate::share::{Export, ReadOnly};
use crate::sockets::{Client, HostSocket};
use crate::{mountinfo, rootfs};

/// File systems that the guest mounts by itself.
const GUEST_TYPES: [&str; 8] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "ramfs"];
/// File systems that the guest mounts from a file or block device of the host.
const IMAGE_TYPES: [&str; 3] = ["erofs", "ext4", "xfs"];
const SHM: &str = "/dev/shm";
/// Host directories of which the guest has its own: a bind mount of one means the pod's.
const GUEST_DIRECTORIES: [&str; 3] = [SHM, "/dev/mqueue", "/sys/fs/cgroup"];
/// How the mounts below a container's mount propagate: what the host mounts reaches the guest, nothing reaches the host.
const PROPAGATION: [&str; 8] =
    ["shared", "rshared", "slave", "rslave", "private", "rprivate", "unbindable", "runbindable"];

/// Rewrites the mounts of a spec; `base` is the container's directory in the guest.
pub(super) fn rewrite(spec: &mut oci::Spec, base: &str, bundle: &Path) -> Result<Volumes, SpecError> {
    let mut volumes = Volumes::default();
    let client = spec.process().as_ref().map(|process| client(process.user())).unwrap_or_default();
    for (index, mount) in spec.mounts_mut().iter_mut().flatten().enumerate() {
        let field = format!("mounts[{index}] ({})", mount.destination().display());
        let mapped = |mappings: &Option<Vec<_>>| mappings.as_ref().is_some_and(|m: &Vec<_>| !m.is_empty());
        if mapped(mount.uid_mappings()) || mapped(mount.gid_mappings()) {
            return Err(SpecError::field(field, "id-mapped mounts are not supported"));
        }
        let is_bind = is_bind(mount);
        let options = mount.options().clone().unwrap_or_default();
        if is_of_host(mount) && options.iter().any(|option| option == "shared" || option == "rshared") {
            let reason = "what is mounted in the guest can't appear on the host (\"rshared\", mountPropagation \
                          Bidirectional); HostToContainer works";
            return Err(SpecError::field(field, reason));
        }
        let kept = options.into_iter().filter(|option| !PROPAGATION.contains(&option.as_str()));
        mount.set_options(Some(kept.collect()));
        if is_bind {
            let source = bind(mount, &field, base, bundle, (&client, &mut volumes))?;
            if is_of_host(mount) && is_writable_below(mount, bundle) {
                // The guest has one file system of the whole tree. Its top is read-only in the server's mounts.
                let kept = mount.options().iter().flatten().filter(|option| *option != "ro");
                let kept = kept.cloned().collect();
                mount.set_options(Some(kept));
            }
            mount.set_typ(Some("bind".into())).set_source(Some(source.into()));
        } else if mount.typ().as_deref().is_some_and(|typ| IMAGE_TYPES.contains(&typ)) {
            image(mount, &field, base, bundle, &mut volumes)?;
        } else if !mount.typ().as_deref().is_some_and(|typ| GUEST_TYPES.contains(&typ)) {
            let typ = mount.typ().as_deref().unwrap_or_default();
            return Err(SpecError::field(field, format!("type {typ:?} is not supported")));
        }
    }
    Ok(volumes)
}

/// Whether a mount is a bind mount for which the guest has nothing of its own.
pub(super) fn is_of_host(mount: &oci::Mount) -> bool {
    let destination = mount.destination().to_string_lossy();
    is_bind(mount) && !GUEST_DIRECTORIES.contains(&destination.as_ref())
}

fn is_bind(mount: &oci::Mount) -> bool {
    let asked = |option: &String| option == "bind" || option == "rbind";
    mount.typ().as_deref() == Some("bind") || mount.options().iter().flatten().any(asked)
}

/// The guest path that takes the place of a bind mount's source.
fn bind(
    mount: &oci::Mount,
    field: &str,
    base: &str,
    bundle: &Path,
    (client, volumes): (&Client, &mut Volumes),
) -> Result<String, SpecError> {
    if !is_of_host(mount) {
        return Ok(mount.destination().to_string_lossy().into_owned());
    }
    let source = mount.source().as_deref().filter(|source| !source.as_os_str().is_empty());
    let source = bundle.join(source.ok_or_else(|| SpecError::field(field, "a bind mount without a source"))?);
    let cannot_read = |e| SpecError::Source { field: field.to_owned(), path: source.clone(), source: e };
    let metadata = fs::metadata(&source).map_err(cannot_read)?;
    let file_type = metadata.file_type();
    if let Some(device) = guest_device(&metadata) {
        return Ok(device.to_owned());
    }
    let target = format!("{base}/binds/{}", volumes.count());
    if file_type.is_socket() {
        let volume = socket(&source, client, target.clone()).map_err(cannot_read)?;
        volumes.sockets.push(volume);
        return Ok(target);
    }
    if !file_type.is_file() && !file_type.is_dir() {
        let what = format!("{} is {}, which the guest can't reach", source.display(), kind(file_type));
        return Err(SpecError::field(field, what));
    }
    let file_system = statfs(&source).map_err(|e| cannot_read(e.into()))?;
    if file_system.filesystem_type() == HUGETLBFS_MAGIC {
        return Err(SpecError::field(field, "the guest has no huge pages"));
    }
    if file_system.filesystem_type() == TMPFS_MAGIC
        && let Some((source, within)) = memory_volume(&source)
    {
        let root = fs::metadata(&source).map_err(cannot_read)?;
        let options = vec![
            format!("size={}", size(&file_system)),
            format!("mode={:o}", root.mode() & 0o7777),
            format!("uid={}", root.uid()),
            format!("gid={}", root.gid()),
        ];
        volumes.memory.push(MemoryVolume { source, within, options, target: target.clone() });
        return Ok(target);
    }
    let (read_only, recursive) = (read_only(mount), is_recursive(mount));
    volumes.shared.push(Volume { export: Export { source, read_only, recursive }, target: target.clone() });
    Ok(target)
}

fn has(mount: &oci::Mount, name: &str) -> bool {
    mount.options().iter().flatten().any(|option| option == name)
}

fn read_only(mount: &oci::Mount) -> ReadOnly {
    match (has(mount, "rro"), has(mount, "ro")) {
        (true, _) => ReadOnly::Recursive,
        (_, true) => ReadOnly::Top,
        _ => ReadOnly::No,
    }
}

/// Engines that name no option mean the usual one.
fn is_recursive(mount: &oci::Mount) -> bool {
    has(mount, "rbind") || !has(mount, "bind")
}

/// Whether a bind mount that is read-only by itself brings mounts along that are not.
fn is_writable_below(mount: &oci::Mount, bundle: &Path) -> bool {
    if read_only(mount) != ReadOnly::Top || !is_recursive(mount) {
        return false;
    }
    let source = mount.source().as_ref().and_then(|source| fs::canonicalize(bundle.join(source)).ok());
    let mountinfo = mountinfo::read().unwrap_or_default();
    source.is_some_and(|source| mountinfo::has_mounts_below(&mountinfo, &source))
}

/// Makes a mount of a file system's image a bind mount of where the guest has it.
fn image(
    mount: &mut oci::Mount,
    field: &str,
    base: &str,
    bundle: &Path,
    volumes: &mut Volumes,
) -> Result<(), SpecError> {
    let fstype = mount.typ().clone().unwrap_or_default();
    let source = mount.source().as_deref().filter(|source| !source.as_os_str().is_empty());
    let source =
        bundle.join(source.ok_or_else(|| SpecError::field(field, format!("{fstype} without a source")))?);
    let options = mount.options().clone().unwrap_or_default();
    // The last one counts.
    let mode = options.iter().rev().find(|option| matches!(option.as_str(), "ro" | "rro" | "rw"));
    let read_only = fstype == "erofs" || mode.is_some_and(|mode| mode != "rw");
    let refused = |reason: String| SpecError::field(field, reason);
    let options = options.into_iter().filter(|option| option != "rro").collect::<Vec<_>>();
    let options = rootfs::image_options(&options, read_only).map_err(refused)?;
    let target = format!("{base}/binds/{}", volumes.count());
    // Its options are those of the mount that it is a copy of.
    mount.set_typ(Some("bind".into())).set_source(Some(target.clone().into()));
    mount.set_options(Some(vec!["bind".into()]));
    volumes.images.push(ImageVolume { fstype, source, read_only, options, target });
    Ok(())
}

/// The socket at `source` as it is now.
fn socket(source: &Path, client: &Client, target: String) -> std::io::Result<SocketVolume> {
    let file = File::options().read(true).custom_flags(libc::O_PATH).open(source)?;
    let metadata = file.metadata()?;
    if !metadata.file_type().is_socket() {
        return Err(std::io::Error::other("it has just been replaced"));
    }
    let options = vec![
        format!("mode={:o}", metadata.mode() & 0o7777),
        format!("uid={}", metadata.uid()),
        format!("gid={}", metadata.gid()),
    ];
    let socket = HostSocket { path: source.to_owned(), socket: file.into(), client: client.clone() };
    Ok(SocketVolume { socket, options, target })
}

/// As whom the host's servers see the container.
fn client(user: &oci::User) -> Client {
    let groups = user.additional_gids().clone().unwrap_or_default();
    Client { uid: user.uid(), gid: user.gid(), groups }
}

/// The size of the host's tmpfs that a mount would put on `/dev/shm`.
pub(super) fn shm_bytes(mount: &oci::Mount) -> Option<u64> {
    if mount.destination() != Path::new(SHM) || !is_bind(mount) {
        return None;
    }
    let file_system = statfs(mount.source().as_deref()?).ok()?;
    (file_system.filesystem_type() == TMPFS_MAGIC).then(|| size(&file_system))
}

fn size(file_system: &Statfs) -> u64 {
    file_system.blocks().saturating_mul(file_system.block_size().unsigned_abs())
}

/// The guest's own device, if it has one of that number.
fn guest_device(metadata: &fs::Metadata) -> Option<&'static str> {
    let number = (i64::from(libc::major(metadata.rdev())), i64::from(libc::minor(metadata.rdev())));
    let same = |&(_, major, minor): &(&str, i64, i64)| number == (major, minor);
    let device = GUEST_DEVICES.into_iter().find(same).filter(|_| metadata.file_type().is_char_device());
    device.map(|(path, _, _)| path)
}

/// The emptyDir of medium Memory, which belongs to the pod alone, that a directory is a mount of, and what of it: a `subPath`
/// is a mount of a part.
fn memory_volume(source: &Path) -> Option<(PathBuf, String)> {
    let mountinfo = mountinfo::read().ok()?;
    mountinfo::memory_volume(&mountinfo, &fs::canonicalize(source).ok()?)
}

fn kind(file_type: fs::FileType) -> &'static str {
    match file_type {
        t if t.is_fifo() => "a FIFO of the host",
        t if t.is_block_device() => {
            "a block device of the host (mount its file system, or pass it as a device: `volumeDevices`, `--device`)"
        }
        _ => "a device of the host",
    }
}
