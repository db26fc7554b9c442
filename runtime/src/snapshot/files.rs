//! The files of image disks: shared where nobody writes to them, copied where somebody does.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;
use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

/// Bytes read and written at once.
const CHUNK: usize = 256 << 10;
/// What zeroes are told by, in bytes.
const BLOCK: usize = 4096;
static ZEROES: [u8; BLOCK] = [0; BLOCK];

/// Puts what is in `from`, a regular file or a block device of `bytes` bytes, at `to`, where nothing is. A regular file that
/// nobody writes to is linked there, if it is on the same file system: it is there as long as either name is. Returns the
/// file.
pub(crate) fn keep(from: &File, to: &Path, bytes: u64, read_only: bool) -> io::Result<File> {
    if read_only && from.metadata()?.is_file() && link(from, to).is_ok() {
        return File::open(to);
    }
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(to)?;
    copy(from, &file, bytes)?;
    Ok(file)
}

/// Gives an open file another name. It fails across mounts, and for files that have no name.
fn link(from: &File, to: &Path) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", from.as_raw_fd());
    linkat(AT_FDCWD, Path::new(&path), AT_FDCWD, to, AtFlags::AT_SYMLINK_FOLLOW)?;
    let (one, other) = (from.metadata()?, fs::symlink_metadata(to)?);
    if (one.dev(), one.ino()) == (other.dev(), other.ino()) {
        return Ok(());
    }
    fs::remove_file(to)?;
    Err(io::ErrorKind::NotFound.into())
}

/// A copy of `from`, `bytes` bytes long, that has no name, in a directory. It is gone when it is closed.
pub(crate) fn unnamed_copy(from: &File, directory: &Path, bytes: u64) -> io::Result<File> {
    let file = tempfile::tempfile_in(directory)?;
    copy(from, &file, bytes)?;
    Ok(file)
}

/// Copies `bytes` bytes into an empty file: by sharing blocks where the file system can do that, else without what reads as
/// zeroes.
pub(crate) fn copy(from: &File, to: &File, bytes: u64) -> io::Result<()> {
    let is_device = from.metadata()?.file_type().is_block_device();
    if !is_device && ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    to.set_len(bytes)?;
    if is_device {
        return copy_bytes(from, to, 0..bytes);
    }
    let mut at = 0;
    while at < bytes {
        let data = match seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing more up to the end.
            Err(Errno::NXIO) => return Ok(()),
            // It does not know of holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return copy_bytes(from, to, at..bytes),
            Err(error) => return Err(error.into()),
        };
        let hole = seek(from, SeekFrom::Hole(data))?.min(bytes);
        if data >= bytes {
            return Ok(());
        }
        copy_data(from, to, data..hole)?;
        at = hole;
    }
    Ok(())
}

fn copy_data(from: &File, to: &File, range: std::ops::Range<u64>) -> io::Result<()> {
    let (mut source, mut target) = (range.start, range.start);
    while source < range.end {
        let left = usize::try_from(range.end - source).unwrap_or(usize::MAX).min(1 << 30);
        match copy_file_range(from, Some(&mut source), to, Some(&mut target), left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            // Not between these two.
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                return copy_bytes(from, to, source..range.end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_bytes(from: &File, to: &File, range: std::ops::Range<u64>) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut at = range.start;
    while at < range.end {
        let len = usize::try_from(range.end - at).unwrap_or(CHUNK).min(CHUNK);
        let chunk = buffer.get_mut(..len).unwrap_or_default();
        from.read_exact_at(chunk, at)?;
        for (block, offset) in chunk.chunks(BLOCK).zip((at..).step_by(BLOCK)) {
            if !ZEROES.starts_with(block) {
                to.write_all_at(block, offset)?;
            }
        }
        at += len as u64;
    }
    Ok(())
}
