//! Block devices of the host by their number, which is all that a spec tells of them.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use crate::spec::BlockDevice;

/// Why a device can't be passed to the guest.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The kernel knows no device of that number.
    #[error("the host has no block device {0}")]
    Unknown(String),
    /// Its node can't be opened.
    #[error("cannot open block device {number} at {path}")]
    Open {
        /// `major:minor`.
        number: String,
        /// Where the kernel puts it.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It is to be written to, and can't be.
    #[error("block device {number} ({path}) is write-protected; leave \"w\" out of its device rule")]
    WriteProtected {
        /// `major:minor`.
        number: String,
        /// Where the kernel puts it.
        path: PathBuf,
    },
    /// Its node is another device.
    #[error("{path} is not block device {number}")]
    Other {
        /// `major:minor`.
        number: String,
        /// Where the kernel puts it.
        path: PathBuf,
    },
}

/// Opens a block device as far as the guest may use it.
pub(crate) fn open(device: BlockDevice) -> Result<OwnedFd, DeviceError> {
    let number = format!("{}:{}", device.major, device.minor);
    let path = path(&number).ok_or_else(|| DeviceError::Unknown(number.clone()))?;
    let file = File::options()
        .read(true)
        .write(!device.read_only)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(&path);
    let failed = |source| DeviceError::Open { number: number.clone(), path: path.clone(), source };
    let file = file.map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let wanted = libc::makedev(device.major, device.minor);
    if !metadata.file_type().is_block_device() || metadata.rdev() != wanted {
        return Err(DeviceError::Other { number, path });
    }
    if !device.read_only && is_write_protected(wanted) {
        return Err(DeviceError::WriteProtected { number, path });
    }
    Ok(file.into())
}

/// Whether the kernel refuses writes to a block device. Opening it for writing succeeds all the same.
pub(crate) fn is_write_protected(number: libc::dev_t) -> bool {
    let (major, minor) = (libc::major(number), libc::minor(number));
    // The attribute `ro` of block/genhd.c and block/partitions/core.c.
    let read_only = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/ro"));
    read_only.is_ok_and(|text| text.trim() == "1")
}

/// Where devtmpfs has a block device (Documentation/ABI/testing/sysfs-dev, `DEVNAME` of its uevent).
fn path(number: &str) -> Option<PathBuf> {
    let uevent = fs::read_to_string(format!("/sys/dev/block/{number}/uevent")).ok()?;
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(PathBuf::from("/dev").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_without_a_device_is_refused_by_its_number() {
        let device = BlockDevice { major: 4095, minor: 77, read_only: true };
        let error = open(device).unwrap_err();
        assert_eq!(error.to_string(), "the host has no block device 4095:77");
    }
}
