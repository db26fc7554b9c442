//! What the kernel tells about mounts (proc(5), `/proc/PID/mountinfo`).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// In the path of a volume that the kubelet has made for the life of a pod.
const EMPTY_DIR: &str = "/volumes/kubernetes.io~empty-dir/";

/// The mounts that this process sees. Anybody's mount is among them, and the kernel does not escape bytes that are no UTF-8:
/// a path that has such is replaced by another, and is none that is looked for.
pub(crate) fn read() -> io::Result<String> {
    Ok(text(fs::read("/proc/self/mountinfo")?))
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// A mount.
struct Mount<'a> {
    /// The number of its file system.
    device: &'a str,
    /// What of that is mounted.
    root: PathBuf,
    /// Where.
    point: PathBuf,
}

/// Whether a mount point is below a directory.
pub(crate) fn has_mounts_below(mountinfo: &str, directory: &Path) -> bool {
    mounts(mountinfo).any(|mount| mount.point != directory && mount.point.starts_with(directory))
}

/// The emptyDir that a mount point is of, and what of it. One of medium Memory is a mount of its own; one that is a directory
/// of the node's file system is none, nor is a part of that.
pub(crate) fn memory_volume(mountinfo: &str, point: &Path) -> Option<(PathBuf, String)> {
    // The last one is on top.
    let mount = mounts(mountinfo).filter(|mount| mount.point == point).last()?;
    let whole = mounts(mountinfo).find(|other| {
        other.device == mount.device && other.root == Path::new("/") && is_empty_dir(&other.point)
    })?;
    let within = mount.root.strip_prefix("/").ok()?.to_str()?.to_owned();
    Some((whole.point, within))
}

fn is_empty_dir(point: &Path) -> bool {
    let path = point.to_string_lossy();
    path.split_once(EMPTY_DIR).is_some_and(|(_, name)| !name.is_empty() && !name.contains('/'))
}

fn mounts(mountinfo: &str) -> impl Iterator<Item = Mount<'_>> {
    mountinfo.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(2);
        Some(Mount { device: fields.next()?, root: path(fields.next()?), point: path(fields.next()?) })
    })
}

/// A path as it is: some of its characters are written as three octal digits.
fn path(escaped: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut parts = escaped.split('\\');
    bytes.extend_from_slice(parts.next().unwrap_or_default().as_bytes());
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend_from_slice(part.get(3..).unwrap_or_default().as_bytes());
            }
            None => {
                bytes.push(b'\\');
                bytes.extend_from_slice(part.as_bytes());
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_below_a_directory_and_nowhere_else() {
        let mountinfo = "1 0 8:1 / / rw - ext4 x rw\n2 1 0:5 / /v rw - tmpfs x rw\n3 1 0:6 / /volume/a rw - tmpfs x rw\n\
                         4 1 0:7 / /with\\040space/b rw - tmpfs x rw";
        for (directory, expected) in [
            ("/", true),
            ("/v", false),
            ("/volume", true),
            ("/volume/a", false),
            ("/with space", true),
            ("/with", false),
        ] {
            assert_eq!(has_mounts_below(mountinfo, Path::new(directory)), expected, "{directory}");
        }
    }

    #[test]
    fn a_mount_whose_path_is_no_text_hides_no_other() {
        let mounts = b"1 0 8:1 / /media/\xff rw - ext4 x rw\n2 1 0:5 / /v/a rw - tmpfs x rw".to_vec();
        assert!(has_mounts_below(&text(mounts), Path::new("/v")));
    }

    #[test]
    fn volumes_in_memory_are_mounts_of_their_own_and_so_are_their_parts() {
        let pod = "/k/pods/1";
        let mountinfo = format!(
            "1 0 0:1 / / rw - tmpfs x rw\n\
             2 1 0:5 / {pod}/volumes/kubernetes.io~empty-dir/m rw - tmpfs x rw\n\
             3 1 0:5 /a\\040b/c {pod}/volume-subpaths/m/main/0 rw - tmpfs x rw\n\
             4 1 0:1 {pod}/volumes/kubernetes.io~empty-dir/d/logs {pod}/volume-subpaths/d/main/1 rw - tmpfs x rw\n\
             5 1 0:6 / {pod}/volumes/kubernetes.io~secret/s rw - tmpfs x rw"
        );
        let of = |path: &str| memory_volume(&mountinfo, &Path::new(pod).join(path));
        let whole = Path::new(pod).join("volumes/kubernetes.io~empty-dir/m");
        assert_eq!(of("volumes/kubernetes.io~empty-dir/m"), Some((whole.clone(), String::new())));
        assert_eq!(of("volume-subpaths/m/main/0"), Some((whole, "a b/c".to_owned())));
        for of_host in [
            "volumes/kubernetes.io~empty-dir/d",
            "volume-subpaths/d/main/1",
            "volumes/kubernetes.io~secret/s",
        ] {
            assert_eq!(of(of_host), None, "{of_host}");
        }
    }
}
