//! A container's mounts: what the guest has itself stays, what comes from the host is brought along or refused.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use monohull_protocol::agent as proto;
use oci_spec::runtime as oci;

use super::{Packed, SpecError, Volumes};
use crate::rootfs::{FILE, Tree};

/// Largest file that is handed over by value.
const MAX_FILE: u64 = 1024 * 1024;
/// Most bytes of all of them: they travel in one message of at most 4 MiB, beside the spec.
const MAX_FILES: u64 = 2 * 1024 * 1024;
/// File systems that the guest mounts by itself.
const GUEST_TYPES: [&str; 8] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "ramfs"];
/// Host directories of which the guest has its own: a bind mount of one means the pod's.
const GUEST_DIRECTORIES: [&str; 3] = ["/dev/shm", "/dev/mqueue", "/sys/fs/cgroup"];
/// Mounts in the guest propagate nowhere.
const PROPAGATION: [&str; 8] =
    ["shared", "rshared", "slave", "rslave", "private", "rprivate", "unbindable", "runbindable"];

/// Rewrites the mounts of a spec; `base` is the container's directory in the guest.
pub(super) fn rewrite(spec: &mut oci::Spec, base: &str, bundle: &Path) -> Result<Volumes, SpecError> {
    let mut volumes = Volumes::default();
    for (index, mount) in spec.mounts_mut().iter_mut().flatten().enumerate() {
        let field = format!("mounts[{index}] ({})", mount.destination().display());
        let mapped = |mappings: &Option<Vec<_>>| mappings.as_ref().is_some_and(|m: &Vec<_>| !m.is_empty());
        if mapped(mount.uid_mappings()) || mapped(mount.gid_mappings()) {
            return Err(SpecError::field(field, "id-mapped mounts are not supported"));
        }
        let options = mount.options().clone().unwrap_or_default();
        let is_bind = mount.typ().as_deref() == Some("bind")
            || options.iter().any(|option| option == "bind" || option == "rbind");
        let kept = options.into_iter().filter(|option| !PROPAGATION.contains(&option.as_str()));
        mount.set_options(Some(kept.collect()));
        if is_bind {
            let source = bind(mount, &field, base, bundle, &mut volumes)?;
            mount.set_typ(Some("bind".into())).set_source(Some(source.into()));
        } else if !mount.typ().as_deref().is_some_and(|typ| GUEST_TYPES.contains(&typ)) {
            let typ = mount.typ().as_deref().unwrap_or_default();
            return Err(SpecError::field(field, format!("type {typ:?} is not supported")));
        }
    }
    Ok(volumes)
}

/// The guest path that takes the place of a bind mount's source.
fn bind(
    mount: &oci::Mount,
    field: &str,
    base: &str,
    bundle: &Path,
    volumes: &mut Volumes,
) -> Result<String, SpecError> {
    let destination = mount.destination().to_string_lossy().into_owned();
    if GUEST_DIRECTORIES.contains(&destination.as_str()) {
        return Ok(destination);
    }
    let source = mount.source().as_deref().filter(|source| !source.as_os_str().is_empty());
    let source = bundle.join(source.ok_or_else(|| SpecError::field(field, "a bind mount without a source"))?);
    let cannot_read = |e| SpecError::Source { field: field.to_owned(), path: source.clone(), source: e };
    let file_type = fs::metadata(&source).map_err(cannot_read)?.file_type();
    let has = |name: &str| mount.options().iter().flatten().any(|option| option == name);
    let refuse = |reason: String| Err(SpecError::field(field, reason));
    if file_type.is_file() {
        let Some(file) = read(&source, field)? else {
            // Too large to copy: read-only, so that a write fails instead of being lost.
            let target = format!("{base}/binds/{}", volumes.packed.len());
            let path = format!("{target}/{FILE}");
            volumes.packed.push(Packed { tree: Tree::File(source), target });
            return Ok(path);
        };
        let total: u64 = volumes.files.iter().chain([&file]).map(|file| file.data.len() as u64).sum();
        if total > MAX_FILES {
            return refuse(format!(
                "with {} the container's files exceed {MAX_FILES} bytes",
                source.display()
            ));
        }
        let path = format!("{base}/files/{}", volumes.files.len());
        volumes.files.push(proto::File { path: path.clone(), ..file });
        return Ok(path);
    }
    if file_type.is_dir() {
        if !has("ro") && !has("rro") {
            return refuse(format!(
                "the host directory {} can't be mounted writable; mount it read-only (ro), or use a tmpfs",
                source.display()
            ));
        }
        let target = format!("{base}/binds/{}", volumes.packed.len());
        volumes.packed.push(Packed { tree: Tree::Directory(source), target: target.clone() });
        return Ok(target);
    }
    refuse(format!("{} is {}, which the guest can't reach", source.display(), kind(&source, file_type)))
}

fn kind(path: &Path, file_type: fs::FileType) -> &'static str {
    match file_type {
        t if t.is_socket() => "a socket of the host",
        t if t.is_fifo() => "a FIFO of the host",
        _ if path.starts_with("/dev") => "a device of the host",
        _ => "a device",
    }
}

/// A file with its owner and mode, unless it is larger than [`MAX_FILE`]. The guest gets a copy of its own: writes do not
/// come back.
fn read(path: &PathBuf, field: &str) -> Result<Option<proto::File>, SpecError> {
    let cannot_read = |e| SpecError::Source { field: field.to_owned(), path: path.clone(), source: e };
    // Nonblocking: what was a file a moment ago might be a FIFO now.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(cannot_read)?;
    let metadata = file.metadata().map_err(cannot_read)?;
    let mut data = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut data).map_err(cannot_read)?;
    if data.len() as u64 > MAX_FILE {
        return Ok(None);
    }
    Ok(Some(proto::File {
        data,
        mode: metadata.permissions().mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        ..Default::default()
    }))
}
