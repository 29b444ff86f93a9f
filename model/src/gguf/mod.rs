//! GGUF files: a typed key/value header, tensor entries, aligned data.
//!
//! Invariant: every count, length, offset and shape is checked against the file's size before memory is taken for it;
//! the header is read by this module, and only whole, checked blocks are handed to the dequantizer.
mod decoder;
mod vocabulary;

pub(crate) use decoder::{check, spec, weights};
pub(crate) use vocabulary::vocabulary;

use crate::ModelError;
use candle_core::quantized::GgmlDType;
use std::collections::BTreeMap;
use std::io::{BufReader, Read, Seek, SeekFrom};

/// Longest header that is read; the largest vocabularies take a tenth of it.
const MAX_HEADER: u64 = 128 << 20;
const DEFAULT_ALIGNMENT: u64 = 32;

/// One value of the header.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any integer type.
    Int(i128),
    /// Either float type.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    Text(String),
    /// An array of integers or truth values.
    Ints(Vec<i64>),
    /// An array of floats.
    Floats(Vec<f32>),
    /// An array of texts.
    Texts(Vec<String>),
}

/// A tensor's entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// How its values are packed.
    pub dtype: GgmlDType,
    /// Shape, row-major (`[out, in]`).
    pub shape: Vec<usize>,
    /// Where its bytes start in the file.
    pub start: u64,
    /// How many there are.
    pub len: usize,
}

/// A checked header.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Header {
    /// Settings by key.
    pub metadata: BTreeMap<String, Value>,
    /// Tensors by GGUF name.
    pub tensors: BTreeMap<String, Entry>,
}

impl Header {
    /// An integer setting that must be there and fit a `usize`.
    fn size(&self, key: &str, place: &str) -> Result<usize, ModelError> {
        self.optional_size(key, place)?.ok_or_else(|| missing(key, place))
    }

    fn optional_size(&self, key: &str, place: &str) -> Result<Option<usize>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Int(n)) if usize::try_from(*n).is_ok() => Ok(usize::try_from(*n).ok()),
            Some(other) => Err(wrong(key, other, "a whole number >= 0", place)),
        }
    }

    fn optional_float(&self, key: &str, place: &str) -> Result<Option<f64>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(x)) => Ok(Some(*x)),
            Some(other) => Err(wrong(key, other, "a number", place)),
        }
    }

    /// A text setting, where there is one.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// A token id, where there is one.
    pub(crate) fn token(&self, key: &str) -> Option<u32> {
        match self.metadata.get(key) {
            Some(Value::Int(n)) => u32::try_from(*n).ok(),
            _ => None,
        }
    }
}

fn missing(key: &str, place: &str) -> ModelError {
    let remedy = "convert the model again with a current converter".to_owned();
    ModelError::Missing { place: place.into(), what: format!("setting {key}"), remedy }
}

fn wrong(key: &str, value: &Value, want: &str, place: &str) -> ModelError {
    let shown: String = format!("{value:?}").chars().take(60).collect();
    ModelError::Value { place: place.into(), key: key.into(), value: shown, problem: format!("must be {want}") }
}

/// Reads and checks a header. `place` names the file in errors.
pub fn read_header<R: Read + Seek>(file: &mut R, place: &str) -> Result<Header, ModelError> {
    let io = |e: std::io::Error| ModelError::corrupt(place, e.to_string());
    let size = file.seek(SeekFrom::End(0)).map_err(io)?;
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    let mut r = Reader { inner: BufReader::new(file), at: 0, end: size.min(MAX_HEADER), place };
    if &r.array::<4>()? != b"GGUF" {
        return Err(r.corrupt("it does not start with GGUF"));
    }
    let version = r.u32()?;
    if !(2..=3).contains(&version) {
        let problem = "versions 2 and 3 (little-endian) are read; convert it again with a current converter".to_owned();
        return Err(ModelError::Value { place: place.into(), key: "GGUF version".into(), value: version.to_string(), problem });
    }
    let (tensors, settings) = (r.u64()?, r.u64()?);
    r.fits(tensors, 8 + 4 + 4 + 8, "tensors")?;
    r.fits(settings, 8 + 4 + 1, "settings")?;
    let mut header = Header::default();
    for _ in 0..settings {
        let key = r.text()?;
        let kind = r.u32()?;
        let value = r.value(kind)?;
        if header.metadata.insert(key.clone(), value).is_some() {
            return Err(r.corrupt(format!("setting {key} is there twice")));
        }
    }
    let mut entries = Vec::new();
    for _ in 0..tensors {
        entries.push(r.tensor()?);
    }
    let alignment = match header.metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Value::Int(n)) if (1..=1 << 20).contains(n) && n.count_ones() == 1 => u64::try_from(*n).unwrap_or(DEFAULT_ALIGNMENT),
        Some(other) => return Err(wrong("general.alignment", other, "a power of two up to 2^20", place)),
    };
    let data_start = r.at.next_multiple_of(alignment);
    for (name, mut entry) in entries {
        let start = data_start.checked_add(entry.start);
        let end = start.and_then(|s| s.checked_add(entry.len as u64));
        let (Some(start), Some(end)) = (start, end) else { return Err(r.corrupt(format!("tensor {name}: offset overflows"))) };
        if end > size {
            return Err(r.corrupt(format!("tensor {name} ends at byte {end}, the file has {size}")));
        }
        entry.start = start;
        if header.tensors.insert(name.clone(), entry).is_some() {
            return Err(r.corrupt(format!("tensor {name} is there twice")));
        }
    }
    Ok(header)
}

/// A reader that knows how much is left.
struct Reader<'a, R> {
    inner: BufReader<&'a mut R>,
    at: u64,
    end: u64,
    place: &'a str,
}

impl<R: Read> Reader<'_, R> {
    fn corrupt(&self, problem: impl Into<String>) -> ModelError {
        ModelError::corrupt(self.place, problem.into())
    }

    /// Refuses a count of things whose smallest forms do not fit what is left.
    fn fits(&self, count: u64, each: u64, what: &str) -> Result<usize, ModelError> {
        let left = self.end - self.at;
        if count.checked_mul(each).is_none_or(|bytes| bytes > left) {
            return Err(self.corrupt(format!("its header claims {count} {what} at byte {}, {left} bytes are left", self.at)));
        }
        usize::try_from(count).map_err(|_| self.corrupt(format!("{count} {what}")))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), ModelError> {
        self.fits(buffer.len() as u64, 1, "bytes")?;
        self.inner.read_exact(buffer).map_err(|e| self.corrupt(e.to_string()))?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ModelError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, ModelError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, ModelError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<String, ModelError> {
        let len = self.u64()?;
        let mut bytes = vec![0; self.fits(len, 1, "bytes of text")?];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|e| self.corrupt(format!("text before byte {} is not UTF-8: {e}", self.at)))
    }

    fn value(&mut self, kind: u32) -> Result<Value, ModelError> {
        Ok(match kind {
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            7 => match self.array::<1>()?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => return Err(self.corrupt(format!("truth value {other} before byte {}", self.at))),
            },
            8 => Value::Text(self.text()?),
            9 => return self.values(),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => Value::Int(self.int(kind)?),
        })
    }

    fn int(&mut self, kind: u32) -> Result<i128, ModelError> {
        Ok(match kind {
            0 | 7 => i128::from(self.array::<1>()?[0]),
            1 => i128::from(i8::from_le_bytes(self.array()?)),
            2 => i128::from(u16::from_le_bytes(self.array()?)),
            3 => i128::from(i16::from_le_bytes(self.array()?)),
            4 => i128::from(self.u32()?),
            5 => i128::from(i32::from_le_bytes(self.array()?)),
            10 => i128::from(self.u64()?),
            11 => i128::from(i64::from_le_bytes(self.array()?)),
            other => return Err(self.corrupt(format!("value of unknown type {other} before byte {}", self.at))),
        })
    }

    fn values(&mut self) -> Result<Value, ModelError> {
        let kind = self.u32()?;
        let count = self.u64()?;
        match kind {
            6 => {
                let count = self.fits(count, 4, "numbers")?;
                Ok(Value::Floats((0..count).map(|_| Ok(f32::from_le_bytes(self.array()?))).collect::<Result<_, ModelError>>()?))
            }
            8 => {
                let count = self.fits(count, 8, "texts")?;
                Ok(Value::Texts((0..count).map(|_| self.text()).collect::<Result<_, _>>()?))
            }
            0..=5 | 7 | 10 | 11 => {
                let width = [1, 1, 2, 2, 4, 4, 0, 1, 0, 0, 8, 8][kind as usize];
                let count = self.fits(count, width, "numbers")?;
                let int = |r: &mut Self| {
                    let n = r.int(kind)?;
                    i64::try_from(n).map_err(|_| r.corrupt(format!("{n} is more than 63 bits")))
                };
                Ok(Value::Ints((0..count).map(|_| int(self)).collect::<Result<_, _>>()?))
            }
            other => Err(self.corrupt(format!("array of type {other} before byte {}", self.at))),
        }
    }

    /// A tensor's entry, its start still relative to the data.
    fn tensor(&mut self) -> Result<(String, Entry), ModelError> {
        let name = self.text()?;
        let dims = self.u32()?;
        if dims == 0 || dims > 4 {
            return Err(self.corrupt(format!("tensor {name} has {dims} dimensions")));
        }
        let mut shape = Vec::with_capacity(4);
        for _ in 0..dims {
            let dim = self.u64()?;
            shape.push(usize::try_from(dim).map_err(|_| self.corrupt(format!("tensor {name}: dimension {dim}")))?);
        }
        shape.reverse();
        let code = self.u32()?;
        let Some(dtype) = ggml_dtype(code) else {
            return Err(ModelError::Dtype {
                place: self.place.to_owned(),
                tensor: name,
                dtype: format!("GGML type {code}"),
                remedy: "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K are read; take another quantization"
                    .into(),
            });
        };
        let start = self.u64()?;
        let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let row = shape.last().copied().unwrap_or(0);
        let len = elements
            .filter(|_| row % dtype.block_size() == 0)
            .and_then(|n| (n / dtype.block_size()).checked_mul(dtype.type_size()));
        let Some(len) = len else {
            return Err(self.corrupt(format!("tensor {name}: shape {shape:?} cannot be packed as {dtype:?}")));
        };
        Ok((name, Entry { dtype, shape, start, len }))
    }
}

const fn ggml_dtype(code: u32) -> Option<GgmlDType> {
    Some(match code {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}
