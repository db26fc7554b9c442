//! A guest that asks the fs server for anything.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| monohull_fs::relay::hostile::run(bytes));
