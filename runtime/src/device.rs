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
    #[error("cannot open block device {number} at {path}{hint}")]
    Open {
        /// `major:minor`.
        number: String,
        /// Where the kernel puts it.
        path: PathBuf,
        /// What to do about it; begins with a separator.
        hint: &'static str,
        /// The reason.
        source: io::Error,
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
    let failed = |source: io::Error| {
        let read_only = matches!(source.raw_os_error(), Some(libc::EACCES | libc::EROFS | libc::EPERM));
        let hint = if read_only && !device.read_only {
            " for writing; if it is read-only, leave \"w\" out of its device rule"
        } else {
            ""
        };
        DeviceError::Open { number: number.clone(), path: path.clone(), hint, source }
    };
    let file = file.map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let wanted = libc::makedev(device.major, device.minor);
    if !metadata.file_type().is_block_device() || metadata.rdev() != wanted {
        return Err(DeviceError::Other { number, path });
    }
    Ok(file.into())
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
