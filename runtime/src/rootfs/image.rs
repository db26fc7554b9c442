//! Files and block devices that hold a file system.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use monohull_vmm::api::SECTOR;

use super::RootfsError;
use crate::device;

/// Opens an image for the image disk. What it is, is asked of the opened descriptor; what it holds is the guest's
/// business and never looked at.
pub(super) fn open(path: &Path, read_only: bool) -> Result<OwnedFd, RootfsError> {
    // Nonblocking: a FIFO must not keep us.
    let mut options = File::options();
    options.read(true).write(!read_only).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let cannot = |e| RootfsError::Open(path.to_owned(), e);
    let kind = |what: String| RootfsError::Kind { path: path.to_owned(), what };
    let mut file = options.open(path).map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    let file_type = metadata.file_type();
    if !file_type.is_file() && !file_type.is_block_device() {
        return Err(kind("neither a regular file nor a block device".into()));
    }
    if !read_only && file_type.is_block_device() && device::is_write_protected(metadata.rdev()) {
        return Err(kind("write-protected: mount it read-only (option \"ro\")".into()));
    }
    // A block device's metadata has no size; its end has.
    let size = file.seek(SeekFrom::End(0)).map_err(cannot)?;
    if size == 0 || size % SECTOR != 0 {
        return Err(kind(format!("{size} bytes long, which is no image: not a multiple of {SECTOR}")));
    }
    Ok(file.into())
}
