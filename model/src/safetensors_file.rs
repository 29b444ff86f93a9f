//! The safetensors format: 8 bytes header length, a JSON header, raw little-endian data.
//!
//! Invariant: lengths, offsets, shapes and dtypes of the whole header are checked against the file's size before memory
//! is taken for any tensor, and a tensor's memory is at most its bytes in the file times two (bf16 to f32).
use crate::{ModelError, Tensor, WeightSet};
use half::{bf16, f16};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Longest header that is read: the format's own cap.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes converted at a time.
const CHUNK: usize = 1 << 20;

/// Number format that weights are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaveDtype {
    /// 4 bytes a value: what is in memory.
    F32,
    /// 2 bytes a value, rounded to nearest even.
    Bf16,
}

/// One tensor's entry in a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The dtype's name: `F32`, `BF16`, `F16`, ...
    pub dtype: String,
    /// Shape, row-major.
    pub shape: Vec<usize>,
    /// Where its bytes start in the file.
    pub start: u64,
    /// How many there are.
    pub len: u64,
}

/// A checked header: entries by name.
pub type Header = BTreeMap<String, Entry>;

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Reads and checks a header. `place` names the file in errors.
pub fn read_header<R: Read + Seek>(file: &mut R, place: &str) -> Result<Header, ModelError> {
    let corrupt = |problem: String| ModelError::corrupt(place, problem);
    let io = |e: std::io::Error| ModelError::corrupt(place, e.to_string());
    let size = file.seek(SeekFrom::End(0)).map_err(io)?;
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    if size < 8 {
        return Err(corrupt(format!("{size} bytes are too few for a safetensors file")));
    }
    let mut len = [0u8; 8];
    file.read_exact(&mut len).map_err(io)?;
    let len = u64::from_le_bytes(len);
    if len > MAX_HEADER || len > size - 8 {
        return Err(corrupt(format!("its header claims {len} bytes, the file has {size}")));
    }
    let mut json = vec![0u8; to_usize(len, place)?];
    file.read_exact(&mut json).map_err(io)?;
    let raw: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&json).map_err(|e| corrupt(format!("its header is not JSON: {e}")))?;
    let (data_start, data_len) = (8 + len, size - 8 - len);
    let mut header = Header::new();
    for (name, value) in raw {
        if name == "__metadata__" {
            continue;
        }
        let raw: RawEntry = serde_json::from_value(value).map_err(|e| corrupt(format!("entry {name}: {e}")))?;
        header.insert(name.clone(), check_entry(&name, raw, data_start, data_len, place)?);
    }
    Ok(header)
}

fn check_entry(name: &str, raw: RawEntry, data_start: u64, data_len: u64, place: &str) -> Result<Entry, ModelError> {
    let corrupt = |problem: String| ModelError::corrupt(place, format!("tensor {name}: {problem}"));
    let (start, end) = raw.data_offsets;
    if start > end || end > data_len {
        return Err(corrupt(format!("offsets {start}..{end} lie outside the {data_len} bytes of data")));
    }
    let elements = raw.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
    let bits: u64 = match raw.dtype.as_str() {
        "F64" | "I64" | "U64" | "C64" => 64,
        "F32" | "I32" | "U32" => 32,
        "F16" | "BF16" | "I16" | "U16" => 16,
        "F8_E4M3" | "F8_E5M2" | "F8_E8M0" | "I8" | "U8" | "BOOL" => 8,
        other => {
            let remedy = "F32, BF16 and F16 are read".to_owned();
            return Err(ModelError::Dtype { place: place.into(), tensor: name.into(), dtype: other.into(), remedy });
        }
    };
    let bytes = elements.and_then(|n| n.checked_mul(bits / 8));
    if bytes != Some(end - start) {
        return Err(corrupt(format!("shape {:?} in {} does not fill its {} bytes", raw.shape, raw.dtype, end - start)));
    }
    let shape = raw.shape.iter().map(|d| to_usize(*d, place)).collect::<Result<_, _>>()?;
    Ok(Entry { dtype: raw.dtype, shape, start: data_start + start, len: end - start })
}

/// Reads one tensor's values as f32.
pub fn read_tensor<R: Read + Seek>(file: &mut R, name: &str, entry: &Entry, place: &str) -> Result<Tensor, ModelError> {
    let io = |e: std::io::Error| ModelError::corrupt(place, format!("tensor {name}: {e}"));
    let width = match entry.dtype.as_str() {
        "F32" => 4,
        "F16" | "BF16" => 2,
        other => {
            let remedy = "F32, BF16 and F16 are read; convert the file".to_owned();
            return Err(ModelError::Dtype { place: place.into(), tensor: name.into(), dtype: other.into(), remedy });
        }
    };
    let len = to_usize(entry.len, place)?;
    let mut data = Vec::with_capacity(len / width);
    let mut buffer = vec![0u8; CHUNK.min(len)];
    file.seek(SeekFrom::Start(entry.start)).map_err(io)?;
    let mut left = len;
    while left > 0 {
        let chunk = &mut buffer[..left.min(CHUNK)];
        file.read_exact(chunk).map_err(io)?;
        left -= chunk.len();
        match entry.dtype.as_str() {
            "F32" => data.extend(chunk.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))),
            "BF16" => data.extend(chunk.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
            _ => data.extend(chunk.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
        }
    }
    Ok(Tensor { shape: entry.shape.clone(), data })
}

/// Every tensor of a file as f32.
pub fn read_file(path: &Path) -> Result<WeightSet, ModelError> {
    let place = path.display().to_string();
    let mut file = File::open(path).map_err(ModelError::io("open", path))?;
    let header = read_header(&mut file, &place)?;
    let tensors = header.iter().map(|(name, entry)| Ok((name.clone(), read_tensor(&mut file, name, entry, &place)?)));
    Ok(WeightSet(tensors.collect::<Result<_, ModelError>>()?))
}

/// Writes a file in name order and syncs it to the disk.
pub fn write_file(path: &Path, weights: &WeightSet, dtype: SaveDtype) -> Result<(), ModelError> {
    #[derive(Serialize)]
    struct Out<'a> {
        dtype: &'a str,
        shape: &'a [usize],
        data_offsets: (u64, u64),
    }
    let (name_of, width) = match dtype {
        SaveDtype::F32 => ("F32", 4),
        SaveDtype::Bf16 => ("BF16", 2),
    };
    let mut header = serde_json::Map::new();
    // transformers refuses a file whose metadata does not name the framework.
    header.insert("__metadata__".into(), serde_json::json!({ "format": "pt" }));
    let mut at = 0u64;
    for (name, tensor) in &weights.0 {
        let end = at + tensor.data.len() as u64 * width;
        let entry = Out { dtype: name_of, shape: &tensor.shape, data_offsets: (at, end) };
        let entry = serde_json::to_value(entry).map_err(|e| ModelError::corrupt(path.display().to_string(), e.to_string()))?;
        header.insert(name.clone(), entry);
        at = end;
    }
    let mut json = serde_json::Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');

    let write = || -> std::io::Result<()> {
        let mut out = BufWriter::with_capacity(CHUNK, File::create(path)?);
        out.write_all(&(json.len() as u64).to_le_bytes())?;
        out.write_all(&json)?;
        let mut bytes = Vec::with_capacity(CHUNK);
        for values in weights.0.values().flat_map(|t| t.data.chunks(CHUNK / 4)) {
            bytes.clear();
            match dtype {
                SaveDtype::F32 => values.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes())),
                SaveDtype::Bf16 => values.iter().for_each(|v| bytes.extend_from_slice(&bf16::from_f32(*v).to_le_bytes())),
            }
            out.write_all(&bytes)?;
        }
        out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
    };
    write().map_err(ModelError::io("write", path))
}

fn to_usize(n: u64, place: &str) -> Result<usize, ModelError> {
    usize::try_from(n).map_err(|_| ModelError::corrupt(place, format!("{n} is more than this machine can address")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn sample() -> WeightSet {
        let t = |shape: &[usize], from: f32| Tensor {
            shape: shape.to_vec(),
            data: (0..shape.iter().product::<usize>()).map(|i| from + i as f32 * 0.37).collect(),
        };
        WeightSet([("a".into(), t(&[2, 3], -1.0)), ("b.weight".into(), t(&[5], 100.0)), ("z".into(), t(&[1, 1], 0.1))].into())
    }

    fn bytes(dtype: SaveDtype) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        write_file(&path, &sample(), dtype).unwrap();
        std::fs::read(path).unwrap()
    }

    fn read(bytes: &[u8]) -> Result<WeightSet, ModelError> {
        let mut file = Cursor::new(bytes);
        let header = read_header(&mut file, "test")?;
        let tensors = header.iter().map(|(n, e)| Ok((n.clone(), read_tensor(&mut file, n, e, "test")?)));
        Ok(WeightSet(tensors.collect::<Result<_, ModelError>>()?))
    }

    #[test]
    fn f32_round_trips_and_bf16_rounds() {
        assert_eq!(read(&bytes(SaveDtype::F32)).unwrap(), sample());
        let rounded = read(&bytes(SaveDtype::Bf16)).unwrap();
        for (name, tensor) in &sample().0 {
            for (exact, got) in tensor.data.iter().zip(&rounded.0[name].data) {
                assert_eq!(*got, bf16::from_f32(*exact).to_f32());
            }
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        let whole = bytes(SaveDtype::F32);
        for len in 0..whole.len() {
            assert!(read(&whole[..len]).is_err(), "{len} of {} bytes", whole.len());
        }
    }

    #[test]
    fn a_header_that_claims_too_much_is_refused_before_memory_is_taken() {
        let json = br#"{"a":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,8]}}"#;
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend(json);
        file.extend([0; 8]);
        assert!(read(&file).unwrap_err().to_string().contains("does not fill"));
        let mut long = u64::MAX.to_le_bytes().to_vec();
        long.extend([0; 64]);
        assert!(read(&long).unwrap_err().to_string().contains("claims"));
    }

    proptest! {
        #[test]
        fn no_damage_makes_it_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
            let mut file = bytes(SaveDtype::F32);
            for (at, byte) in flips {
                let at = at.index(file.len());
                file[at] = byte;
            }
            // Flipped data bytes give other values, flipped headers errors; neither a panic nor a huge allocation.
            let _ = read(&file);
        }
    }
}
