#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rkube_fuzz::registry_answers(bytes));
