//! The mounts that containerd 2.2 leaves to a runtime: `format/` fills in where earlier mounts are, `mkdir/` makes
//! directories on them (containerd, docs/mounts.md).

use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::io::Errno;

use super::{HostTree, Mount, Planned, RootfsError, Storage, absolute, shared, tmpfs_upper};

const MKDIR: &str = "X-containerd.mkdir.path=";
/// An overlay's marks of a directory that hides what lower layers have in it, and of one that was another
/// (Documentation/filesystems/overlayfs.rst).
const MARKS: [&str; 2] = ["trusted.overlay.opaque", "trusted.overlay.redirect"];

/// Whether a mount is an overlay with templates.
pub(super) fn is_template(mount: &Mount) -> bool {
    mount
        .fstype
        .strip_suffix("/overlay")
        .is_some_and(|prefixes| prefixes.split('/').any(|prefix| prefix == "format"))
}

/// Where an overlay keeps what is written.
#[derive(Debug, Default)]
struct Upper {
    upperdir: Option<String>,
    workdir: Option<String>,
}

/// Adds the overlay that `mount` describes to the mounts it refers to.
pub(super) fn overlay(
    mount: &Mount,
    mut layers: Vec<Storage<Planned>>,
    base: &str,
) -> Result<Vec<Storage<Planned>>, RootfsError> {
    if let Some(odd) =
        mount.fstype.split('/').rev().skip(1).find(|prefix| !matches!(*prefix, "format" | "mkdir"))
    {
        return Err(RootfsError::unsupported(format!("{odd}/ is not supported")));
    }
    let targets: Vec<String> = layers.iter().map(|layer| layer.target.clone()).collect();
    let (mut lowerdir, mut upper, mut options) = (String::new(), Upper::default(), Vec::new());
    for option in &mount.options {
        let option = fill_in(option, &targets)?;
        if let Some(directory) = option.strip_prefix(MKDIR) {
            make_directory(directory, &mut layers)?;
            continue;
        }
        match option.split_once('=').unwrap_or((&option, "")) {
            ("lowerdir", paths) => lowerdir = paths.to_owned(),
            ("upperdir", path) => upper.upperdir = Some(path.to_owned()),
            ("workdir", path) => upper.workdir = Some(path.to_owned()),
            ("ro" | "rw", _) => {}
            _ if option.starts_with("X-containerd.") => {
                return Err(RootfsError::unsupported(format!("option {option} is not supported")));
            }
            _ => options.push(option),
        }
    }
    if let Some(odd) = lowerdir.split(':').find(|path| !targets.iter().any(|target| target == path)) {
        return Err(RootfsError::unsupported(format!("lowerdir {odd:?} is none of the mounts before it")));
    }
    if let Upper { upperdir: Some(upperdir), workdir: Some(workdir) } = &upper
        && is_on(upperdir, &layers)
        && is_on(workdir, &layers)
    {
        options.extend([
            format!("lowerdir={lowerdir}"),
            format!("upperdir={upperdir}"),
            format!("workdir={workdir}"),
        ]);
        layers.push(Storage::new("overlay", Planned::Path("overlay"), format!("{base}/rootfs"), options));
        return Ok(layers);
    }
    if let Some(written) = host_upper(&upper, base)? {
        lowerdir = format!("{}:{lowerdir}", written.target);
        layers.push(written);
    }
    options.push(format!("lowerdir={lowerdir}"));
    layers.extend(tmpfs_upper(options, base));
    Ok(layers)
}

/// A directory on the host can't be the guest's upper layer: the kernel takes no file system for it that may change by
/// itself. What it holds already becomes one more lower layer, in which the files that stand for deleted ones still do. Marks
/// of directories don't: the pod's fs server may not read `trusted.` attributes.
fn host_upper(upper: &Upper, base: &str) -> Result<Option<Storage<Planned>>, RootfsError> {
    let Some(path) = upper.upperdir.as_deref().map(absolute).transpose()? else { return Ok(None) };
    match fs::read_dir(&path).map(|mut entries| entries.next().is_none()) {
        Ok(true) => return Ok(None),
        // `mkdir/` would have made it.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(false) => {}
        Err(e) => return Err(RootfsError::Open(path, e)),
    }
    match marked_directory(&path) {
        Ok(None) => Ok(Some(shared(HostTree::Directory(path), true, format!("{base}/upper")))),
        Ok(Some(marked)) => Err(RootfsError::unsupported(format!(
            "{} replaces a directory of the image, which a guest can't see in an upper directory of the host: give the \
             snapshotter a default_size",
            marked.display()
        ))),
        Err(e) => Err(RootfsError::Open(path, e)),
    }
}

/// The first directory below `tree` that has one of the [`MARKS`].
fn marked_directory(tree: &Path) -> io::Result<Option<PathBuf>> {
    let mut unread = vec![tree.to_owned()];
    while let Some(directory) = unread.pop() {
        for mark in MARKS {
            match rustix::fs::lgetxattr(&directory, mark, &mut [0_u8; 0]) {
                Ok(_) => return Ok(Some(directory)),
                Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(e) => return Err(e.into()),
            }
        }
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                unread.push(entry.path());
            }
        }
    }
    Ok(None)
}

/// Whether a guest path is on a writable one of the mounts.
fn is_on(path: &str, layers: &[Storage<Planned>]) -> bool {
    let writable =
        |layer: &&Storage<Planned>| matches!(layer.source, Planned::Image { read_only: false, .. });
    layers.iter().filter(writable).any(|layer| below(path, &layer.target).is_some())
}

fn below<'a>(path: &'a str, target: &str) -> Option<&'a str> {
    path.strip_prefix(target)?.strip_prefix('/').filter(|rest| !rest.is_empty())
}

/// `<path>[:<mode>[:<uid>:<gid>]]`: one directory, on one of the mounts. On the host there is none to make: an upper
/// directory there is not written to.
fn make_directory(directory: &str, layers: &mut [Storage<Planned>]) -> Result<(), RootfsError> {
    let (path, rest) = directory.split_once(':').unwrap_or((directory, ""));
    let Some((layer, name)) = layers.iter_mut().find_map(|layer| {
        let name = below(path, &layer.target)?.to_owned();
        Some((layer, name))
    }) else {
        return absolute(path).map(drop);
    };
    let plain = Path::new(&name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if !plain || !matches!(rest, "0755" | "755" | "0755:0:0" | "755:0:0") {
        let reason =
            format!("{MKDIR}{directory}: only directories of mode 0755 that belong to root can be made");
        return Err(RootfsError::unsupported(reason));
    }
    layer.directories.push(name);
    Ok(())
}

/// Replaces `{{ mount N }}` and `{{ overlay A B }}` by guest paths.
fn fill_in(text: &str, targets: &[String]) -> Result<String, RootfsError> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((action, after)) = after.split_once("}}") else {
            return Err(RootfsError::unsupported(format!("option {text:?}: \"{{{{\" without \"}}}}\"")));
        };
        let value = evaluate(action, targets).ok_or_else(|| {
            RootfsError::unsupported(format!("option {text:?}: cannot fill in {{{{{action}}}}}"))
        })?;
        filled.push_str(before);
        filled.push_str(&value);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

fn evaluate(action: &str, targets: &[String]) -> Option<String> {
    let words: Vec<&str> = action.split_ascii_whitespace().collect();
    match words.as_slice() {
        ["mount", index] => targets.get(index.parse::<usize>().ok()?).cloned(),
        // Both ends belong to it; the other way round when they do.
        ["overlay", from, to] => {
            let (from, to): (usize, usize) = (from.parse().ok()?, to.parse().ok()?);
            let mut layers = targets.get(from.min(to)..=from.max(to))?.to_vec();
            if from > to {
                layers.reverse();
            }
            Some(layers.join(":"))
        }
        _ => None,
    }
}
