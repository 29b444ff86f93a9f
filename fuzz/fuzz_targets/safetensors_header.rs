//! The header of a safetensors file, and every tensor that it names.
#![no_main]
use cohort_model::safetensors_file;
use libfuzzer_sys::fuzz_target;
use std::io::Cursor;

fuzz_target!(|data: &[u8]| {
    let mut file = Cursor::new(data);
    let Ok(header) = safetensors_file::read_header(&mut file, "fuzz") else { return };
    for (name, entry) in &header {
        if let Ok(tensor) = safetensors_file::read_tensor(&mut file, name, entry, "fuzz") {
            assert!(tensor.data.len() <= data.len());
        }
    }
});
