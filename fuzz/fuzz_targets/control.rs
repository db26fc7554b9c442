//! An owner that asks its VMM for anything.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| monohull_vmm::fuzzing::control(bytes));
