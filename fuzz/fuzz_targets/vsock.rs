//! A guest and a host that do anything to the socket device.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| monohull_vmm::devices::vsock::hostile::run(bytes));
