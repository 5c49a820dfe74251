#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| holdfast_streaming::fuzzing::websocket_frames(input));
