//! Overlay mounts of host directories, as the overlayfs snapshotter and its remote relatives hand out.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use super::{HostTree, RootfsError};

/// mount(2) takes one page of options, with a zero at the end.
const MAX_OPTIONS: usize = 4095;

/// The merged view of at least one directory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HostOverlay {
    /// The uppermost first.
    lower: Vec<PathBuf>,
    /// What takes the writes: `upperdir` and `workdir`.
    upper: Option<(PathBuf, PathBuf)>,
    /// All other options.
    options: Vec<String>,
}

impl HostOverlay {
    /// Takes the options of an overlay mount (Documentation/filesystems/overlayfs.rst).
    pub(super) fn parse(options: &[String]) -> Result<Self, RootfsError> {
        let (mut upper, mut work, mut lower, mut kept) = (None, None, Vec::new(), Vec::new());
        for option in options {
            match option.split_once('=').unwrap_or((option, "")) {
                ("upperdir", path) => upper = Some(super::absolute(path)?),
                ("workdir", path) => work = Some(super::absolute(path)?),
                ("lowerdir", paths) => {
                    lower =
                        split_layers(paths).map(|path| super::absolute(&path)).collect::<Result<_, _>>()?;
                }
                (
                    "index" | "nfs_export" | "volatile" | "xino" | "uuid" | "fsync" | "userxattr"
                    | "redirect_dir" | "metacopy",
                    _,
                ) => kept.push(option.clone()),
                // Of the mount, not of the overlay; the guest's mounts have their own.
                ("ro" | "rw" | "noatime" | "relatime" | "nodev" | "nosuid" | "noexec", _) => {}
                _ => {
                    return Err(RootfsError::unsupported(format!(
                        "overlay option {option} is not supported"
                    )));
                }
            }
        }
        if lower.is_empty() {
            return Err(RootfsError::unsupported("an overlay without lowerdir"));
        }
        let upper = match (upper, work) {
            (Some(upper), Some(work)) => Some((upper, work)),
            (Some(_), None) => {
                return Err(RootfsError::unsupported("an overlay with upperdir without workdir"));
            }
            (None, _) => None,
        };
        Ok(Self { lower, upper, options: kept })
    }

    pub(super) fn layers(&self) -> usize {
        self.lower.len() + usize::from(self.upper.is_some())
    }

    pub(super) fn has_upper(&self) -> bool {
        self.upper.is_some()
    }

    /// One directory needs no overlay: the kernel would refuse one.
    pub(super) fn into_tree(mut self) -> HostTree {
        match self.lower.pop() {
            Some(only) if self.lower.is_empty() && self.upper.is_none() => HostTree::Directory(only),
            last => {
                self.lower.extend(last);
                HostTree::Overlay(self)
            }
        }
    }

    /// Mounts the view on `target`. The fs server neither executes programs nor opens devices.
    pub(crate) fn mount(&self, target: &Path, read_only: bool) -> io::Result<()> {
        // By their descriptors: so a hundred layers with long names fit, and a name may hold any sign.
        let mut opened = Vec::with_capacity(self.layers() + 1);
        let mut name = |path: &PathBuf| {
            let directory = open(path)?;
            let name = format!("/proc/self/fd/{}", directory.as_raw_fd());
            opened.push(directory);
            Ok::<_, io::Error>(name)
        };
        let lower = self.lower.iter().map(&mut name).collect::<io::Result<Vec<_>>>()?;
        let mut options = vec![format!("lowerdir={}", lower.join(":"))];
        if let Some((upper, work)) = &self.upper {
            options.push(format!("upperdir={}", name(upper)?));
            options.push(format!("workdir={}", name(work)?));
        }
        options.extend_from_slice(&self.options);
        let options = options.join(",");
        if options.len() > MAX_OPTIONS {
            let reason = format!("{} layers are more than one mount takes", self.layers());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let mut flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        flags.set(MsFlags::MS_RDONLY, read_only);
        mount(Some("overlay"), target, Some("overlay"), flags, Some(options.as_str()))?;
        Ok(())
    }
}

fn open(directory: &Path) -> io::Result<File> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let opened = File::options().read(true).custom_flags(flags).open(directory);
    opened.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", directory.display())))
}

/// Splits at colons that no backslash escapes.
fn split_layers(paths: &str) -> impl Iterator<Item = String> {
    let mut layers = vec![String::new()];
    let mut characters = paths.chars();
    while let Some(character) = characters.next() {
        match character {
            ':' => layers.push(String::new()),
            '\\' => layers.last_mut().into_iter().for_each(|layer| layer.extend(characters.next())),
            other => layers.last_mut().into_iter().for_each(|layer| layer.push(other)),
        }
    }
    layers.into_iter()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sched::{CloneFlags, unshare};
    use nix::sys::stat::{Mode, SFlag, mknod};

    use super::*;

    fn parse(options: &[&str]) -> Result<HostOverlay, RootfsError> {
        HostOverlay::parse(&options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn layers_and_options_are_told_apart() {
        let overlay =
            parse(&["index=off", "userxattr", "ro", "workdir=/w", "upperdir=/u", r"lowerdir=/a:/b\:c"])
                .unwrap();
        assert_eq!(overlay.lower, ["/a", "/b:c"].map(PathBuf::from));
        assert_eq!(overlay.upper, Some(("/u".into(), "/w".into())));
        assert_eq!(overlay.options, ["index=off", "userxattr"]);
    }

    #[test]
    fn one_layer_is_a_plain_directory() {
        let tree = parse(&["lowerdir=/a"]).unwrap().into_tree();
        assert_eq!(tree, HostTree::Directory("/a".into()));
        for two in [&["lowerdir=/a:/b"][..], &["lowerdir=/a", "upperdir=/u", "workdir=/w"]] {
            assert!(matches!(parse(two).unwrap().into_tree(), HostTree::Overlay(o) if o.layers() == 2));
        }
    }

    #[test]
    fn what_is_unknown_or_relative_is_refused() {
        for bad in [
            &["lowerdir=a"][..],
            &["upperdir=/u"],
            &["lowerdir=/a", "upperdir=/u"],
            &["lowerdir=/a", "verity=require"],
            &["lowerdir="],
        ] {
            assert!(parse(bad).unwrap_err().is_refusal(), "{bad:?}");
        }
    }

    #[test]
    fn a_hundred_layers_are_one_view_that_writes_to_the_upper_directory() {
        // A thread of its own: its mounts are seen nowhere else, and go with it.
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let root = tempfile::tempdir().unwrap();
            // Not every file system can be an upper layer, and a test's directory may be on an overlay.
            mount(Some("tmpfs"), root.path(), Some("tmpfs"), MsFlags::empty(), none).unwrap();
            let path = |name: &str| root.path().join(name);
            // Their names are more than a page of mount options holds, and need escapes there.
            let layer = |n: usize| path(&format!("{n:0>60},\\:"));
            for n in 0..120 {
                fs::create_dir(layer(n)).unwrap();
                fs::write(layer(n).join(format!("only-{n}")), "").unwrap();
                fs::write(layer(n).join("all"), n.to_string()).unwrap();
            }
            for name in ["upper", "work", "view"] {
                fs::create_dir(path(name)).unwrap();
            }
            mknod(&path("upper/only-5"), SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
            let overlay = HostOverlay {
                lower: (0..120).map(layer).collect(),
                upper: Some((path("upper"), path("work"))),
                options: vec!["index=off".into()],
            };

            overlay.mount(&path("view"), false).unwrap();

            assert_eq!(fs::read_to_string(path("view/all")).unwrap(), "0");
            assert!(path("view/only-119").exists(), "the lowest layer");
            assert!(!path("view/only-5").exists(), "a deleted file");
            fs::write(path("view/new"), "written").unwrap();
            assert_eq!(fs::read_to_string(path("upper/new")).unwrap(), "written");
            nix::mount::umount(&path("view")).unwrap();
            overlay.mount(&path("view"), true).unwrap();
            assert_eq!(fs::read_to_string(path("view/new")).unwrap(), "written");
            let refused = fs::write(path("view/other"), "").unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
            nix::mount::umount(&path("view")).unwrap();
            nix::mount::umount(root.path()).unwrap();
        })
        .join()
        .unwrap();
    }
}
