//! Paths below a directory, safe against symbolic links: what lies below may come from an image.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fchmod, fstat, mkdirat, openat, openat2};

use crate::error::{Doing, Error, Result};

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const NO_LINKS: ResolveFlags = ResolveFlags::NO_SYMLINKS.union(ResolveFlags::NO_MAGICLINKS);

/// Whether a container id is one that agent.proto allows; it becomes a path component.
pub(crate) fn valid_id(id: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !id.is_empty() && id.len() <= 76 && id.chars().all(allowed) && id != "." && id != ".."
}

/// `path` relative to `base`, if it is below it and has no `..`.
pub(crate) fn below<'a>(base: &Path, path: &'a Path) -> Option<&'a Path> {
    let rest = path.strip_prefix(base).ok()?;
    let plain = rest.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && rest.components().next().is_some()).then_some(rest)
}

/// Opens a path for use as a mount's source or target, following no symbolic link.
pub(crate) fn open_path(path: &Path) -> Result<OwnedFd> {
    openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), NO_LINKS)
        .doing(|| format!("open {} (no symbolic links allowed in it)", path.display()))
}

/// Makes directory `relative` with all its parents below `base`, mode 0755, following no symbolic link; opens it.
pub(crate) fn make_directories(base: &Path, relative: &Path) -> Result<OwnedFd> {
    let mut directory = open_path(base)?;
    for part in relative.components() {
        let Component::Normal(name) = part else {
            return Err(Error::Invalid(format!(
                "path {} has a component that is no name",
                relative.display()
            )));
        };
        let what = || format!("make directory {} in {}", relative.display(), base.display());
        match mkdirat(&directory, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error).doing(what),
        }
        directory = openat2(&directory, name, DIRECTORY, Mode::empty(), NO_LINKS).doing(what)?;
    }
    Ok(directory)
}

/// Opens what `relative` names below the open directory `root`, for use as a mount's source, following no symbolic link.
/// Directories that are missing are made with the mode of `root`, as the kubelet makes a `subPath`.
pub(crate) fn reach(root: OwnedFd, relative: &Path) -> Result<OwnedFd> {
    let what = || format!("open {} of a volume (no symbolic links allowed in it)", relative.display());
    let mode = Mode::from_raw_mode(fstat(&root).doing(what)?.st_mode & 0o7777);
    let mut reached = root;
    for part in relative.components() {
        let Component::Normal(name) = part else {
            return Err(Error::Invalid(format!("{} has a component that is no name", relative.display())));
        };
        let open = |flags| openat2(&reached, name, flags | OFlags::CLOEXEC, Mode::empty(), NO_LINKS);
        reached = match mkdirat(&reached, name, mode) {
            Ok(()) => {
                let made = open(OFlags::RDONLY | OFlags::DIRECTORY).doing(what)?;
                // mkdir(2) masks the mode.
                fchmod(&made, mode).doing(what)?;
                made
            }
            Err(rustix::io::Errno::EXIST) => open(OFlags::PATH).doing(what)?,
            Err(error) => return Err(error).doing(what),
        };
    }
    Ok(reached)
}

/// Makes directory `path` in the tree at `root` as a process chrooted there would: symbolic links are resolved within
/// `root`. What exists stays as it is.
pub(crate) fn make_directories_in_root(root: &Path, path: &Path) -> io::Result<()> {
    let root = openat(CWD, root, DIRECTORY, Mode::empty())?;
    let mut reached = std::path::PathBuf::from("/");
    for part in path.components() {
        let Component::Normal(name) = part else { continue };
        let parent = openat2(&root, &reached, DIRECTORY, Mode::empty(), ResolveFlags::IN_ROOT)?;
        match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => reached.push(name),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Makes an empty file at `relative` below `base` unless something is there; opens it for use as a mount's target.
pub(crate) fn make_file(base: &Path, relative: &Path) -> Result<OwnedFd> {
    let what = || format!("make file {} in {}", relative.display(), base.display());
    let name = relative
        .file_name()
        .ok_or_else(|| Error::Invalid(format!("{} names no file", relative.display())))?;
    let parent = make_directories(base, relative.parent().unwrap_or(Path::new("")))?;
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(&parent, name, flags, Mode::from_raw_mode(0o644)).doing(what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn ids_that_could_leave_their_directory_are_refused() {
        for id in ["", ".", "..", "a/b", "a\0b", "ä", &"x".repeat(77)] {
            assert!(!valid_id(id), "{id:?}");
        }
        assert!(valid_id("k8s.io-Pod_1"));
        assert!(valid_id(&"x".repeat(76)));
    }

    #[test]
    fn below_refuses_parents_and_the_base_itself() {
        let base = Path::new("/run/c/a");
        assert_eq!(below(base, Path::new("/run/c/a/rootfs")), Some(Path::new("rootfs")));
        for path in ["/run/c/a", "/run/c/ab", "/run/c/a/../b", "/run/c", "rootfs"] {
            assert_eq!(below(base, Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn make_directories_does_not_follow_links() {
        let base = tempfile::tempdir().unwrap();
        symlink("/tmp", base.path().join("link")).unwrap();
        assert!(make_directories(base.path(), Path::new("link/x")).is_err());
        assert!(make_directories(base.path(), Path::new("a/b/c")).is_ok());
        assert!(base.path().join("a/b/c").is_dir());
    }

    #[test]
    fn what_is_reached_below_a_volume_has_its_mode_and_follows_no_link() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let base = tempfile::tempdir().unwrap();
        std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o2777)).unwrap();
        symlink("/tmp", base.path().join("link")).unwrap();
        std::fs::write(base.path().join("file"), "").unwrap();
        let reached = |relative| reach(open_path(base.path()).unwrap(), Path::new(relative));
        assert!(reached("").is_ok() && reached("file").is_ok() && reached("a/b").is_ok());
        assert_eq!(base.path().join("a/b").metadata().unwrap().mode() & 0o7777, 0o2777);
        for bad in ["link", "link/x", "../x", "/a", "file/x"] {
            assert!(reached(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn make_directories_in_root_resolves_links_inside_the_root() {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir(base.path().join("real")).unwrap();
        symlink("/real", base.path().join("link")).unwrap();
        make_directories_in_root(base.path(), Path::new("/link/x")).unwrap();
        assert!(base.path().join("real/x").is_dir());
    }
}
