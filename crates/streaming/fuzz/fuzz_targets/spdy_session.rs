#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| holdfast_streaming::fuzzing::spdy_session(input));
