//! The VM's network devices: which is which, and their drivers.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Doing, Error, Result};

/// All virtio devices, each a link into the device tree.
const VIRTIO: &str = "/sys/bus/virtio/devices";
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_net";
/// What the kernel says of a network device (virtio 1.2 §5.1.1).
const ID: &str = "0x0001";

/// A network device of the VM, with or without a driver.
#[derive(Debug)]
pub(crate) struct Nic {
    /// In the device tree: "/sys/devices/…/virtio-mmio.4/virtio4".
    path: PathBuf,
}

/// All, in the order in which the VMM made them.
pub(super) fn all() -> Result<Vec<Nic>> {
    let entries = fs::read_dir(VIRTIO).doing(|| format!("list {VIRTIO}"))?;
    let mut devices: Vec<(u32, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let path = entry.path().canonicalize().ok()?;
            let is_nic = fs::read_to_string(path.join("device")).ok()?.trim() == ID;
            is_nic.then_some((slot(&path)?, path))
        })
        .collect();
    devices.sort_unstable();
    Ok(devices.into_iter().map(|(_, path)| Nic { path }).collect())
}

/// The one that the VMM made as its `wanted`th.
pub(super) fn nth(wanted: u32) -> Result<Nic> {
    let found = usize::try_from(wanted)
        .ok()
        .and_then(|wanted| all().map(|all| all.into_iter().nth(wanted)).transpose());
    found.unwrap_or_else(|| Err(Error::Invalid(format!("nic: the VM has no network device {wanted}"))))
}

impl Nic {
    /// The name of its interface; it gets its driver back if it has none.
    pub(super) fn device(&self) -> Result<String> {
        if !self.is_bound() {
            self.tell_driver("bind")?;
        }
        let directory = self.path.join("net");
        let mut names = fs::read_dir(&directory).doing(|| format!("list {}", directory.display()))?;
        let name = names.next().and_then(std::result::Result::ok);
        let name = name.and_then(|entry| entry.file_name().into_string().ok());
        name.ok_or_else(|| Error::Precondition(format!("{} is empty", directory.display())))
    }

    /// Whether it has a driver, and with that an interface.
    pub(super) fn is_bound(&self) -> bool {
        self.path.join("driver").exists()
    }

    /// Takes its driver away, and with that its interface. Blocks for some milliseconds.
    pub(crate) fn unbind(&self) -> Result<()> {
        self.tell_driver("unbind")
    }

    fn tell_driver(&self, verb: &str) -> Result<()> {
        let path = format!("{DRIVER}/{verb}");
        let name = self.path.file_name().unwrap_or_default().as_encoded_bytes();
        fs::write(&path, name).doing(|| format!("write {} to {path}", self.path.display()))
    }
}

/// The number of a virtio-mmio device: the kernel counts them in the order in which its command line names them, which
/// is that of their addresses.
fn slot(device: &Path) -> Option<u32> {
    device.iter().find_map(|part| part.to_str()?.strip_prefix("virtio-mmio.")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_ordered_by_number_not_by_text() {
        let path = |n: u32| format!("/sys/devices/virtio-mmio-cmdline/virtio-mmio.{n}/virtio{n}");
        assert_eq!(slot(Path::new(&path(2))), Some(2));
        assert!(slot(Path::new(&path(10))) > slot(Path::new(&path(9))));
        assert_eq!(slot(Path::new("/sys/devices/virtual/net/lo")), None);
    }
}
