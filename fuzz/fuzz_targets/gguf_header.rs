//! The header of a GGUF file, as a model's path may lead to any file.
#![no_main]
use cohort_model::gguf;
use libfuzzer_sys::fuzz_target;
use std::io::Cursor;

fuzz_target!(|data: &[u8]| {
    let mut file = Cursor::new(data);
    if let Ok(header) = gguf::read_header(&mut file, "fuzz") {
        // What a header says of its tensors lies within the file, or is refused when they are read.
        drop(header);
    }
});
