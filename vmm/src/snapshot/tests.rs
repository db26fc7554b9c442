use std::os::unix::fs::{FileExt, MetadataExt};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::file::{FileError, HEADER, MAX_STATE, VERSION, decode, encode};
use super::hostile::Machine;
use super::memory::MemoryFileError;
use super::*;
use crate::virtio::hostile::memory as guest_memory;

fn state() -> State {
    Machine::new(&guest_memory()).state()
}

fn contents() -> Vec<u8> {
    encode(&state()).unwrap()
}

fn cpuid(function: u32, eax: u32) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, eax, ..Default::default() }
}

#[test]
fn a_state_file_reads_back_as_what_was_written() {
    let (file, state) = (tempfile::tempfile().unwrap(), state());
    let len = file::write(&file, &state).unwrap();
    assert_eq!(file.metadata().unwrap().len(), len);
    assert_eq!(encode(&file::read(&file).unwrap()).unwrap(), encode(&state).unwrap());
}

#[test]
fn every_flipped_bit_is_noticed() {
    let mut bytes = contents();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            assert!(decode(&bytes).is_err(), "bit {bit} of byte {at}");
            bytes[at] ^= 1 << bit;
        }
    }
    assert!(decode(&bytes).is_ok());
}

#[test]
fn every_cut_and_every_addition_is_noticed() {
    let mut bytes = contents();
    for len in 0..bytes.len() {
        assert!(matches!(decode(&bytes[..len]), Err(FileError::Magic | FileError::Length { .. })), "{len}");
    }
    bytes.push(0);
    assert!(matches!(decode(&bytes), Err(FileError::Length { .. })));
}

#[test]
fn another_version_another_kind_and_a_huge_file_are_told_apart() {
    let good = contents();
    let mut bytes = good.clone();
    bytes[8..12].copy_from_slice(&(VERSION + 1).to_le_bytes());
    assert!(matches!(decode(&bytes), Err(FileError::Version(version)) if version == VERSION + 1));
    assert!(matches!(decode(b"\x7fELF and more than a header"), Err(FileError::Magic)));
    assert!(matches!(decode(b""), Err(FileError::Magic)));

    let huge = tempfile::tempfile().unwrap();
    huge.write_all_at(&good, 0).unwrap();
    huge.set_len(1 << 40).unwrap();
    assert!(matches!(file::read(&huge), Err(FileError::Length { .. })));
    huge.set_len((HEADER + MAX_STATE) as u64).unwrap();
    assert!(matches!(file::read(&huge), Err(FileError::Length { .. })));
}

#[test]
fn a_right_checksum_does_not_make_a_state() {
    let rest = &contents()[HEADER..];
    // Cut off within a structure, with something after the end, nothing at all, and a list longer than all memory.
    let longer = [rest, &[0]].concat();
    for body in [&rest[..rest.len() - 1], &longer, &[], &[0xff; 64]] {
        assert!(matches!(file::parse(body), Err(FileError::Malformed)), "{} bytes", body.len());
    }
}

#[test]
fn a_configuration_for_another_vm_is_refused_by_its_field() {
    let state = state();
    assert!(state.check(state.shape).is_ok());
    let text = |shape| state.check(shape).unwrap_err().to_string();
    let shape = state.shape;
    assert!(text(Shape { memory_mib: 64, ..shape }).contains("has 5 memory_mib, the VM's configuration 64"));
    assert!(text(Shape { hotplug_mib: 9, ..shape }).contains("0 hotplug_mib, the VM's configuration 9"));
    assert!(text(Shape { nics: 1, ..shape }).contains("2 nics, the VM's configuration 1"));
    assert!(text(Shape { vsock: false, ..shape }).contains("1 vsock listeners, the VM's configuration 0"));
    assert!(text(Shape { console: true, ..shape }).contains("0 consoles, the VM's configuration 1"));
    let shape = Shape { vcpus: 1, ..shape };
    let error = State { shape, ..self::state() }.check(shape).unwrap_err().to_string();
    assert!(error.contains("has 0 CPUs, its shape says 1"), "{error}");
}

#[test]
fn another_cpu_or_clock_is_refused_by_what_differs() {
    let host = Host { cpuid: vec![cpuid(0, 7), cpuid(7, 1)], tsc_khz: Some(2_000_000) };
    let error = |here: Host| host.check(&here).unwrap_err().to_string();
    assert!(host.check(&host.clone()).is_ok());
    assert!(host.check(&Host { tsc_khz: Some(2_000_400), ..host.clone() }).is_ok(), "another calibration");
    assert!(host.check(&Host { tsc_khz: None, ..host.clone() }).is_ok());
    assert!(error(Host { tsc_khz: Some(2_001_000), ..host.clone() }).contains("2001000 kHz"));
    assert!(error(Host { cpuid: vec![cpuid(0, 7), cpuid(7, 2)], ..host.clone() }).contains("leaf 0x7.0"));
    assert!(error(Host { cpuid: vec![cpuid(0, 7)], ..host.clone() }).contains("leaf 0x7.0"));
    let more = [host.cpuid.clone(), vec![cpuid(8, 0)]].concat();
    assert!(error(Host { cpuid: more, ..host.clone() }).contains("leaf 0x8.0"));
}

#[test]
fn a_memory_file_holds_what_was_touched_and_maps_back() {
    let memory = guest_memory().memory();
    let page = |index: u64| GuestAddress(index * 4096);
    memory.write_obj(1u8, page(3)).unwrap();
    // Between these two is nothing worth a hole.
    memory.write_obj(1u8, page(8)).unwrap();
    memory.write_slice(&[2; 8192], GuestAddress(page(0x20_0000 / 4096).0 - 4096)).unwrap();
    memory.write_obj(3u8, GuestAddress(0x110_0000 - 1)).unwrap();
    let file = tempfile::tempfile().unwrap();
    assert_eq!(memory::write(&file, &memory, &[5; 16]).unwrap(), 9 * 4096);

    let bytes = 0x50_0000;
    assert_eq!(file.metadata().unwrap().len(), bytes + 16);
    assert!(file.metadata().unwrap().blocks() * 512 < 64 << 10, "holes");
    assert!(memory::check(&file, bytes, &[5; 16]).is_ok());
    let ram = crate::virtio::mock::REGIONS.map(|(start, len)| (start.0, len as u64));
    let again = crate::memory::map(&ram, &file, &[]).unwrap().memory();
    for (start, len) in crate::virtio::mock::REGIONS {
        let read = |memory: &GuestMemoryMmap| {
            let mut bytes = vec![0; len];
            memory.read_slice(&mut bytes, start).unwrap();
            bytes
        };
        assert!(read(&memory) == read(&again), "region at {start:?}");
    }
}

#[test]
fn a_memory_file_of_another_size_or_snapshot_is_refused() {
    let file = tempfile::tempfile().unwrap();
    memory::write(&file, &guest_memory().memory(), &[5; 16]).unwrap();
    let bytes = 0x50_0000;
    assert!(matches!(memory::check(&file, bytes, &[6; 16]), Err(MemoryFileError::Id)));
    assert!(matches!(memory::check(&file, bytes + 4096, &[5; 16]), Err(MemoryFileError::Size { .. })));
    file.set_len(bytes).unwrap();
    assert!(matches!(memory::check(&file, bytes, &[5; 16]), Err(MemoryFileError::Size { .. })));
}

#[test]
fn files_with_something_in_them_are_not_written_to() {
    let empty = || tempfile::tempfile().unwrap();
    let full = empty();
    full.write_all_at(b"x", 0).unwrap();
    let memory = guest_memory().memory();
    assert!(matches!(write(&state(), &memory, &full, &empty()), Err(SnapshotError::NotEmpty("state"))));
    assert!(matches!(write(&state(), &memory, &empty(), &full), Err(SnapshotError::NotEmpty("memory"))));
    let null = File::open("/dev/null").unwrap();
    assert!(matches!(write(&state(), &memory, &empty(), &null), Err(SnapshotError::NotEmpty("memory"))));
}

#[test]
fn a_state_with_fewer_devices_is_refused() {
    let mut state = state();
    let mut machine = Machine::new(&guest_memory());
    state.transports.pop();
    let error = state.restore_devices(&machine.devices, &mut machine.transports).unwrap_err();
    assert!(matches!(error, SnapshotError::Contradiction { what: "virtio devices", .. }), "{error}");
}

#[test]
fn a_device_does_not_take_anothers_state() {
    let mut state = state();
    let mut machine = Machine::new(&guest_memory());
    state.transports.swap(0, 1);
    let error = state.restore_devices(&machine.devices, &mut machine.transports).unwrap_err();
    assert!(crate::describe(&error).contains("that of another device"), "{error}");
}

proptest! {
    #[test]
    fn nothing_in_a_state_file_harms_the_vmm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        hostile::run(&bytes);
    }
}
