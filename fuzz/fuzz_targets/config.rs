//! A first message to a VMM with anything in it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| monohull_vmm::fuzzing::config(bytes));
