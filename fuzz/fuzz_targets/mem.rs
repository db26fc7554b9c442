//! A driver that does anything to the memory device.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| monohull_vmm::devices::mem::hostile::run(bytes));
