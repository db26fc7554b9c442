//! A guest and a network that do anything to the network device.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| monohull_vmm::devices::net::hostile::run(bytes));
