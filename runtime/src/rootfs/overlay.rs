//! Overlay mounts of host directories, as the overlayfs snapshotter and its remote relatives hand out.

use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::{RootfsError, Tree};

/// The merged view of at least one directory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HostOverlay {
    /// The uppermost first. An upper directory is the first of them: it is only read.
    layers: Vec<PathBuf>,
    /// Options that change what is seen.
    options: Vec<String>,
}

impl HostOverlay {
    /// Takes the options of an overlay mount (Documentation/filesystems/overlayfs.rst).
    pub(super) fn parse(options: &[String]) -> Result<Self, RootfsError> {
        let (mut upper, mut lower, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for option in options {
            match option.split_once('=').unwrap_or((option, "")) {
                ("upperdir", path) => upper = vec![directory(path)?],
                ("lowerdir", paths) => {
                    lower = split_layers(paths).map(directory).collect::<Result<_, _>>()?;
                }
                // The merged view is mounted read-only and never used at two places.
                (
                    "workdir" | "index" | "nfs_export" | "volatile" | "xino" | "uuid" | "fsync" | "ro" | "rw",
                    _,
                ) => {}
                ("noatime" | "relatime" | "nodev" | "nosuid" | "noexec", _) => {}
                ("userxattr" | "redirect_dir" | "metacopy", _) => kept.push(option.clone()),
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
        upper.append(&mut lower);
        Ok(Self { layers: upper, options: kept })
    }

    pub(super) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// One directory needs no overlay: the kernel would refuse one.
    pub(super) fn into_tree(mut self) -> Tree {
        match self.layers.pop() {
            Some(only) if self.layers.is_empty() => Tree::Directory(only),
            last => {
                self.layers.extend(last);
                Tree::Overlay(self)
            }
        }
    }

    /// Mounts the view, read-only, in a new mount namespace of the calling thread, which must end with its use: nothing
    /// is seen outside, and the mount vanishes with the thread and its children. Hides `place`, which must exist and
    /// hold none of the layers. Changes the thread's working directory; returns a path relative to it.
    pub(super) fn mount_privately(&self, place: &Path) -> io::Result<&'static Path> {
        enter_privately(place)?;
        // mount(2) takes one page of options: a hundred layers fit only under short names.
        let mut names = Vec::with_capacity(self.layers.len());
        for (number, layer) in self.layers.iter().enumerate() {
            let name = number.to_string();
            std::os::unix::fs::symlink(layer, &name)?;
            names.push(name);
        }
        let mut options = vec![format!("lowerdir={}", names.join(":"))];
        options.extend_from_slice(&self.options);
        mount(Some("overlay"), VIEW, Some("overlay"), MsFlags::MS_RDONLY, Some(options.join(",").as_str()))?;
        Ok(Path::new(VIEW))
    }
}

/// Name of what is to be packed, in the directory that [`enter_privately`] enters.
const VIEW: &str = "view";

/// Gives the calling thread a mount namespace, mounts a tmpfs on `place`, enters it, and makes a directory [`VIEW`] there.
fn enter_privately(place: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), none)?;
    nix::unistd::chdir(place)?;
    std::fs::create_dir(VIEW)
}

fn directory(path: impl AsRef<str>) -> Result<PathBuf, RootfsError> {
    super::absolute(path.as_ref())
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
    use super::*;

    fn parse(options: &[&str]) -> Result<HostOverlay, RootfsError> {
        HostOverlay::parse(&options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_upper_directory_is_the_first_layer() {
        let overlay =
            parse(&["index=off", "userxattr", "workdir=/w", "upperdir=/u", r"lowerdir=/a:/b\:c"]).unwrap();
        assert_eq!(overlay.layers, ["/u", "/a", "/b:c"].map(PathBuf::from));
        assert_eq!(overlay.options, ["userxattr"]);
    }

    #[test]
    fn one_layer_is_a_plain_directory() {
        let tree = parse(&["lowerdir=/a"]).unwrap().into_tree();
        assert_eq!(tree, Tree::Directory("/a".into()));
        assert!(
            matches!(parse(&["lowerdir=/a:/b"]).unwrap().into_tree(), Tree::Overlay(o) if o.layers() == 2)
        );
    }

    #[test]
    fn what_is_unknown_or_relative_is_refused() {
        for bad in [&["lowerdir=a"][..], &["upperdir=/u"], &["lowerdir=/a", "verity=require"], &["lowerdir="]]
        {
            assert!(parse(bad).unwrap_err().is_refusal(), "{bad:?}");
        }
    }
}
