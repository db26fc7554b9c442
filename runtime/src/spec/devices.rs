//! The devices of a spec: which the guest has of its own, which are brought along, which are refused.

use std::path::Path;

use oci_spec::runtime as oci;

use super::{GUEST_DEVICES, SpecError};

/// A block device of the host that a container gets as a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockDevice {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    /// The container's device rules do not let it write.
    pub(crate) read_only: bool,
}

/// The block devices of a container, each once. Other devices must be such that every guest has.
pub(super) fn check(linux: &oci::Linux) -> Result<Vec<BlockDevice>, SpecError> {
    let rules = linux.resources().as_ref().and_then(|resources| resources.devices().as_deref());
    let mut found: Vec<BlockDevice> = Vec::new();
    for device in linux.devices().iter().flatten() {
        if is_guests(device) {
            continue;
        }
        let refused = |reason: String| {
            let field = format!("linux.devices ({})", device.path().display());
            SpecError::field(field, reason)
        };
        if device.typ() != oci::LinuxDeviceType::B {
            return Err(refused(
                "of the host's devices only block devices can be passed to the guest (privileged containers: switch \
                 `privileged_without_host_devices` on)"
                    .into(),
            ));
        }
        if !device.path().starts_with("/dev") || device.path() == Path::new("/dev") {
            return Err(refused("a block device's path must be below /dev".into()));
        }
        let number =
            |number: i64| u32::try_from(number).map_err(|_| refused(format!("{number} is no number")));
        let (major, minor) = (number(device.major())?, number(device.minor())?);
        if !found.iter().any(|known| (known.major, known.minor) == (major, minor)) {
            let read_only = !may_write(rules.unwrap_or_default(), device);
            found.push(BlockDevice { major, minor, read_only });
        }
    }
    Ok(found)
}

fn is_guests(device: &oci::LinuxDevice) -> bool {
    let number = (device.major(), device.minor());
    let known = |&(_, major, minor): &(&str, i64, i64)| number == (major, minor);
    let is_char = matches!(device.typ(), oci::LinuxDeviceType::C | oci::LinuxDeviceType::U);
    is_char && GUEST_DEVICES.iter().any(known)
}

/// Whether the rules let a container write to a block device: the last one about it counts. Without rules it may.
fn may_write(rules: &[oci::LinuxDeviceCgroup], device: &oci::LinuxDevice) -> bool {
    // -1 stands for any.
    let same = |wanted: Option<i64>, number: i64| wanted.is_none_or(|wanted| wanted < 0 || wanted == number);
    let about = |rule: &&oci::LinuxDeviceCgroup| {
        let kind = rule.typ().unwrap_or(oci::LinuxDeviceType::A);
        matches!(kind, oci::LinuxDeviceType::A | oci::LinuxDeviceType::B)
            && same(rule.major(), device.major())
            && same(rule.minor(), device.minor())
            && rule.access().as_deref().is_none_or(|access| access.contains('w'))
    };
    rules.iter().rev().find(about).is_none_or(oci::LinuxDeviceCgroup::allow)
}
