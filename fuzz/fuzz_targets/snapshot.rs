//! A state file with anything in it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| monohull_vmm::snapshot::hostile::run(bytes));
