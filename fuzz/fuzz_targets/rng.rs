//! A driver that does anything to the entropy device.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| monohull_vmm::devices::rng::hostile::run(bytes));
