//! A driver and a server that do anything to the device for host directories.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| monohull_vmm::devices::fs::hostile::run(bytes));
