//! A driver that does anything to the registers of a device.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| monohull_vmm::virtio::mmio::hostile::run(bytes));
