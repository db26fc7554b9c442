//! `monohull run --block`: the container's files as a file system in a file, which the guest mounts.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Command;

use monohull_runtime::image::Tree;
use monohull_runtime::rootfs::{Mount, Rootfs};
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};

use crate::failure::Failure;
use crate::size;

/// What a container's root is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// An erofs; what is written is in the pod's memory.
    ReadOnly,
    /// An ext4 of so many bytes, which is written to.
    Writable(u64),
}

/// The smallest ext4 that holds something, in bytes.
const LEAST: u64 = 8 << 20;
const MIB: u64 = 1 << 20;

/// Parses the option's value, which may be empty.
pub(crate) fn parse(text: &str) -> Result<Block, String> {
    if text.is_empty() {
        return Ok(Block::ReadOnly);
    }
    match size::parse(text)? {
        bytes if bytes < LEAST => {
            Err(format!("{bytes} bytes are too few for a file system: write 1G for a gigabyte"))
        }
        bytes => Ok(Block::Writable(bytes.next_multiple_of(MIB))),
    }
}

/// Makes a file system of `directory` in `scratch`.
pub(crate) fn root(block: Block, directory: &Path, scratch: &Path) -> Result<Rootfs, Failure> {
    let path = scratch.join("root.img");
    let (mut make, fstype) = match block {
        Block::ReadOnly => {
            let mut make = Command::new("mkfs.erofs");
            make.arg("--quiet").arg(&path).arg(directory);
            (make, "erofs")
        }
        Block::Writable(bytes) => {
            let sized = File::create_new(&path).and_then(|file| file.set_len(bytes));
            sized.map_err(|e| Failure::of("cannot make the container's root", &e))?;
            let mut make = Command::new("mkfs.ext4");
            make.args(["-q", "-F", "-d"]).arg(directory).arg(&path);
            (make, "ext4")
        }
    };
    let program = format!("mkfs.{fstype}");
    let output = make.output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            let package = if fstype == "erofs" { "erofs-utils" } else { "e2fsprogs" };
            Failure::new(format!("--block needs {program}, which is not there: install {package}"))
        }
        _ => Failure::of(&format!("cannot run {program}"), &error),
    })?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let words = words.trim();
        return Err(Failure::new(format!(
            "cannot make the container's root: {program}: {words}: does all fit?"
        )));
    }
    let source = path.display().to_string();
    Ok(Rootfs::Mounts(vec![Mount { fstype: fstype.into(), source, ..Mount::default() }]))
}

/// Writes /etc/hosts into the container's tree. It does not name the host: copies of the pod have other names.
pub(crate) fn write_hosts(tree: &Path) -> io::Result<()> {
    let etc = Tree::open(tree)?.make_directory(Path::new("etc"), |_, _| Ok(()))?;
    match unlinkat(&etc, "hosts", AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(openat(&etc, "hosts", flags, Mode::from_raw_mode(0o644))?);
    io::Write::write_all(&mut &file, b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn without_a_size_nothing_is_written_to_the_file() {
        assert_eq!(parse(""), Ok(Block::ReadOnly));
        assert_eq!(parse("64M"), Ok(Block::Writable(64 << 20)));
        assert!(parse("512").is_err() && parse("x").is_err());
    }

    #[test]
    fn hosts_is_written_within_the_tree_whatever_was_there() {
        let outside = tempfile::tempdir().unwrap();
        let tree = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("hosts"), "precious").unwrap();
        fs::create_dir(tree.path().join("etc")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("hosts"), tree.path().join("etc/hosts")).unwrap();
        write_hosts(tree.path()).unwrap();
        assert_eq!(fs::read_to_string(outside.path().join("hosts")).unwrap(), "precious");
        assert!(fs::read_to_string(tree.path().join("etc/hosts")).unwrap().contains("localhost"));
    }
}
