//! The body of the property test and the fuzz target.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::unwrap_used)] // A mistake of the test itself should stop it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use super::{Descriptors, MAX_NICS, Origin, check};
use crate::api::{FdRole, FromVmm, MAX_FDS, MAX_MEMORY_MIB, MAX_MESSAGE, Rate, Rates, VmConfig, WorkingSet};
use crate::devices::mem::SLOT;
use crate::ipc::Channel;
use crate::ipc::hostile::{assert_line, send};
use crate::virtio::hostile::Input;
use crate::x86::cmdline;
use crate::x86::layout::{CMDLINE_SIZE, hotplug, ram};

/// The roles that a descriptor can have.
const ROLES: [FdRole; 7] = [
    FdRole::Kvm,
    FdRole::Kernel,
    FdRole::Initramfs,
    FdRole::Vsock,
    FdRole::Console,
    FdRole::State,
    FdRole::Memory,
];
/// No address of guest memory is as high.
const END: u64 = 1 << 43;

/// Reads what `bytes` say as the first message to a VMM: as they are, or as the fields of a configuration that is then
/// written, changed in places, and sent. What is taken for a configuration must be one that a VM can be made of.
pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (owner, vmm) = Channel::pair().unwrap();
    vmm.set_nonblocking().unwrap();
    let count = usize::from(input.u8()) % (MAX_FDS + 4);
    let fds: Vec<OwnedFd> = (0..count).map(|_| File::open("/dev/null").unwrap().into()).collect();
    let mut packet = vec![b' '; usize::from(input.u16()) * usize::from(input.u8() / 128)];
    if input.u8().is_multiple_of(4) {
        packet.extend(input.rest());
    } else {
        packet.extend(changed(serde_json::to_vec(&config(&mut input, count)).unwrap(), &mut input));
    }
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    send(&owner, &packet, &borrowed);
    match vmm.receive::<VmConfig>() {
        Ok(None) => assert!(packet.is_empty()),
        Ok(Some((config, fds))) => {
            assert!(packet.len() <= MAX_MESSAGE && fds.len() == count && count <= MAX_FDS);
            take(&config, fds);
        }
        Err(error) => assert_line(&crate::describe(&error)),
    }
    // The same words from a VMM to its owner.
    send(&vmm, &packet, &[]);
    if let Ok(Some((message, _))) = owner.receive::<FromVmm>() {
        let again = serde_json::to_vec(&message).unwrap();
        assert_eq!(serde_json::from_slice::<FromVmm>(&again).unwrap(), message);
    }
}

/// A configuration in good form.
fn config(input: &mut Input<'_>, fds: usize) -> VmConfig {
    let text = |input: &mut Input<'_>| {
        let (bytes, times) = (input.take::<8>(), usize::from(input.u8() / 16).pow(2));
        String::from_utf8_lossy(&bytes).trim_matches('\0').repeat(times)
    };
    VmConfig {
        name: text(input),
        user: input.u32(),
        memory_mib: number(input),
        hotplug_mib: number(input),
        vcpus: input.u8(),
        cmdline: text(input),
        nics: input.u8() % 32,
        huge_pages: input.u8().is_multiple_of(2),
        rates: Rates { disk: rate(input), nics: rate(input) },
        working_set: WorkingSet { written: runs(input), used: runs(input) },
        paused: input.u8().is_multiple_of(2),
        fds: (0..fds).map(|_| ROLES[usize::from(input.u8()) % ROLES.len()]).collect(),
    }
}

fn runs(input: &mut Input<'_>) -> Vec<(u32, u32)> {
    (0..input.u8() % 3).map(|_| (input.u32(), input.u8().into())).collect()
}

fn rate(input: &mut Input<'_>) -> Rate {
    Rate { bytes: number(input).into(), operations: number(input).into() }
}

/// A size in MiB: mostly one near a limit.
fn number(input: &mut Input<'_>) -> u32 {
    let near = u32::from(input.u8());
    match input.u8() % 4 {
        0 => input.u32(),
        1 => (MAX_MEMORY_MIB + 64).saturating_sub(near),
        2 => near * 128,
        _ => near,
    }
}

/// Changes some of a message's bytes.
fn changed(mut message: Vec<u8>, input: &mut Input<'_>) -> Vec<u8> {
    while !input.is_empty() {
        let (at, byte) = (usize::from(input.u16()) % message.len(), input.u8());
        message[at] = byte;
    }
    message
}

/// Goes as far with a configuration as there is no KVM needed.
fn take(config: &VmConfig, fds: Vec<OwnedFd>) {
    let again = serde_json::to_vec(config).unwrap();
    assert_eq!(serde_json::from_slice::<VmConfig>(&again).unwrap(), *config);
    let mut fds = match Descriptors::new(config, fds) {
        Ok(fds) => fds,
        Err(error) => return assert_line(&crate::describe(&error)),
    };
    for role in ROLES {
        let named = config.fds.iter().filter(|other| **other == role).count();
        assert_eq!(named, usize::from(fds.0.contains_key(&role)), "{role:?}");
    }
    if let Err(error) = check(config) {
        return assert_line(&crate::describe(&error));
    }
    assert!(config.vcpus > 0 && u32::from(config.nics) <= MAX_NICS);
    places(config);
    let devices = 6 + u32::from(config.nics);
    match cmdline::build(devices, config.fds.contains(&FdRole::Console), &config.cmdline) {
        Ok(line) => {
            assert!(line.len() < CMDLINE_SIZE && line.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }
        Err(error) => assert_line(&crate::describe(&error)),
    }
    match Origin::take(config, &mut fds) {
        Ok(Origin::Boot { .. }) => assert!(config.fds.contains(&FdRole::Kernel)),
        Ok(Origin::Snapshot(_)) => unreachable!("/dev/null is no snapshot"),
        Err(error) => assert_line(&crate::describe(&error)),
    }
}

/// All memory has addresses, each its own, which any host can map.
fn places(config: &VmConfig) {
    let bytes = u64::from(config.memory_mib) << 20;
    let ranges = ram(bytes);
    assert_eq!(ranges.iter().map(|(_, len)| len).sum::<u64>(), bytes);
    let more = hotplug(bytes, u64::from(config.hotplug_mib) << 20, SLOT);
    let mut end = 0;
    for (start, len) in ranges.into_iter().chain([(more.start, more.end - more.start)]) {
        assert!(start >= end && start + len < END, "{start:#x} {len:#x}");
        end = start + len;
    }
}
