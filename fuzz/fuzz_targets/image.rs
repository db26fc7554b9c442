//! A container image with anything in it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| monohull_runtime::fuzzing::image(bytes));
