//! An agent that answers its client with anything.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| monohull_runtime::fuzzing::agent(bytes));
