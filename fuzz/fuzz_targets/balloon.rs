//! A driver that does anything to the balloon.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| monohull_vmm::devices::balloon::hostile::run(bytes));
