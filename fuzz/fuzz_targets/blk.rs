//! A driver that does anything to the image disk.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| monohull_vmm::devices::blk::hostile::run(bytes));
