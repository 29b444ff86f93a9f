//! The only file that knows bincode (pinned to 2.0.1, see `deny.toml`). Bulk arrays are byte columns, so that
//! replacing the codec is this file's work alone.
//!
//! What is read knows the body that it is read from (bincode's context): [`Blob`]s stay a part of it.
use bincode::{
    BorrowDecode, Decode, Encode,
    config::{Configuration, Fixint, Limit, LittleEndian},
    de::{BorrowDecoder, Decoder, read::Reader},
    enc::{Encoder, write::Writer},
    error::{DecodeError, EncodeError},
};
use bytes::Bytes;
use thiserror::Error;

/// Why bytes were refused. All are the peer's or the disk's fault: drop the connection or the record, never retry.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum CodecError {
    /// The body claims more than the limit of its kind.
    #[error("frame of {len} bytes is over the limit of {limit}")]
    TooLong {
        /// Claimed length.
        len: u64,
        /// Allowed length.
        limit: u64,
    },
    /// Bytes were left over after the last field.
    #[error("{left} trailing bytes after a {what}")]
    Trailing {
        /// The type read.
        what: &'static str,
        /// Bytes not read.
        left: usize,
    },
    /// The body ended early or a field was not of its type.
    #[error("malformed {what}: {why}")]
    Malformed {
        /// The type read.
        what: &'static str,
        /// The decoder's reason.
        why: String,
    },
    /// A tag nobody of this version knows.
    #[error("unknown {direction} tag {tag}")]
    UnknownTag {
        /// The direction's name.
        direction: &'static str,
        /// The tag found.
        tag: u8,
    },
    /// The frame belongs to another direction than the one expected.
    #[error("frame of direction {got} where {want} was expected")]
    WrongDirection {
        /// Direction byte found.
        got: u8,
        /// Direction byte expected.
        want: u8,
    },
}

/// Bytes that any message may take; a body of the largest size and the containers around its columns.
const LARGEST: usize = 2 * crate::limits::MAX_BULK_BODY;
type Cfg<const LIMIT: usize> = Configuration<LittleEndian, Fixint, Limit<LIMIT>>;

fn config<const LIMIT: usize>() -> Cfg<LIMIT> {
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<LIMIT>()
}

/// What [`encode`] can write.
pub trait Writable: Encode {}
impl<T: Encode> Writable for T {}

/// What [`decode`] can read.
pub trait Readable: Decode<Bytes> {}
impl<T: Decode<Bytes>> Readable for T {}

/// A message's body.
///
/// Errors: [`CodecError::Malformed`] when it would be over the allocation limit.
pub fn encode<T: Encode>(value: &T) -> Result<Vec<u8>, CodecError> {
    bincode::encode_to_vec(value, config::<LARGEST>())
        .map_err(|e| CodecError::Malformed { what: std::any::type_name::<T>(), why: e.to_string() })
}

/// Reads one value that fills `body` exactly. What the decoder may allocate is bounded by the length of the body: at most
/// 16 to 256 times as much (a value in memory takes up to 6 times its bytes), so that a few bytes cannot claim megabytes.
///
/// Errors: [`CodecError::Malformed`] for short or wrong bytes, [`CodecError::Trailing`] for left-over ones.
pub fn decode<T: Decode<Bytes>>(body: &[u8]) -> Result<T, CodecError> {
    decode_of(body, Bytes::new())
}

/// As [`decode`]; [`Blob`]s share the body instead of being copied out of it.
///
/// Errors: as [`decode`].
pub fn decode_shared<T: Decode<Bytes>>(body: &Bytes) -> Result<T, CodecError> {
    decode_of(body, body.clone())
}

fn decode_of<T: Decode<Bytes>>(body: &[u8], whole: Bytes) -> Result<T, CodecError> {
    match body.len() {
        0x0000..=0x0fff => decode_within::<T, 0x1_0000>(body, whole),
        0x1000..=0xffff => decode_within::<T, 0x10_0000>(body, whole),
        0x1_0000..=0xf_ffff => decode_within::<T, 0x100_0000>(body, whole),
        _ => decode_within::<T, LARGEST>(body, whole),
    }
}

fn decode_within<T: Decode<Bytes>, const LIMIT: usize>(body: &[u8], whole: Bytes) -> Result<T, CodecError> {
    let what = std::any::type_name::<T>();
    let (value, read) = bincode::decode_from_slice_with_context(body, config::<LIMIT>(), whole)
        .map_err(|e: DecodeError| CodecError::Malformed { what, why: e.to_string() })?;
    if read != body.len() {
        return Err(CodecError::Trailing { what, left: body.len() - read });
    }
    Ok(value)
}

/// A bulk array of 4-byte numbers that travels as its little-endian bytes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Column<T>(pub Vec<T>);

/// A 4-byte number with one byte image.
pub trait Word: Copy {
    /// Little-endian image.
    fn to_le(self) -> [u8; 4];
    /// From its little-endian image.
    fn from_le(bytes: [u8; 4]) -> Self;
}

impl Word for u32 {
    fn to_le(self) -> [u8; 4] {
        self.to_le_bytes()
    }
    fn from_le(bytes: [u8; 4]) -> Self {
        Self::from_le_bytes(bytes)
    }
}

impl Word for f32 {
    fn to_le(self) -> [u8; 4] {
        self.to_le_bytes()
    }
    fn from_le(bytes: [u8; 4]) -> Self {
        Self::from_le_bytes(bytes)
    }
}

impl<T> From<Vec<T>> for Column<T> {
    fn from(values: Vec<T>) -> Self {
        Self(values)
    }
}

impl<T> std::ops::Deref for Column<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Word> Encode for Column<T> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        let mut bytes = Vec::with_capacity(self.0.len() * 4);
        for &word in &self.0 {
            bytes.extend_from_slice(&word.to_le());
        }
        bytes.encode(encoder)
    }
}

impl<C, T: Word> Decode<C> for Column<T> {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let bytes: Vec<u8> = Decode::decode(decoder)?;
        let (words, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(DecodeError::OtherString(format!("a column of {} bytes is not whole 4-byte words", bytes.len())));
        }
        Ok(Self(words.iter().map(|&w| T::from_le(w)).collect()))
    }
}

impl<'de, C, T: Word> BorrowDecode<'de, C> for Column<T> {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Self::decode(decoder)
    }
}

/// Bytes that travel as a `Vec<u8>` does and, once read, are a part of the body that they came in. They keep that whole in memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Blob(pub Bytes);

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl std::ops::Deref for Blob {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Encode for Blob {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        (self.0.len() as u64).encode(encoder)?;
        encoder.writer().write(&self.0)
    }
}

impl Decode<Bytes> for Blob {
    fn decode<D: Decoder<Context = Bytes>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let claimed = u64::decode(decoder)?;
        let len = usize::try_from(claimed).map_err(|_| DecodeError::OutsideUsizeRange(claimed))?;
        decoder.claim_container_read::<u8>(len)?;
        let whole = decoder.context().clone();
        let bytes = decoder.reader().peek_read(len).ok_or(DecodeError::UnexpectedEnd { additional: len })?;
        let inside = whole.as_ptr_range();
        let shares = bytes.as_ptr_range();
        let blob = if inside.start <= shares.start && shares.end <= inside.end {
            whole.slice_ref(bytes)
        } else {
            Bytes::copy_from_slice(bytes)
        };
        decoder.reader().consume(len);
        Ok(Self(blob))
    }
}

impl<'de> BorrowDecode<'de, Bytes> for Blob {
    fn borrow_decode<D: BorrowDecoder<'de, Context = Bytes>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Self::decode(decoder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn columns_keep_every_bit(bits in proptest::collection::vec(any::<u32>(), 0..300)) {
            let column = Column(bits.iter().map(|&b| f32::from_bits(b)).collect::<Vec<_>>());
            let back: Column<f32> = decode(&encode(&column).unwrap()).unwrap();
            prop_assert_eq!(back.0.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), bits);
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<crate::TrajectoryBatch>(&bytes);
            let _ = decode::<crate::GroupLease>(&bytes);
        }
    }

    #[test]
    fn a_blob_is_a_part_of_its_body() {
        let sent = (7u32, Blob::from(vec![1, 2, 3]), Blob::default());
        let body = Bytes::from(encode(&sent).unwrap());
        assert_eq!(body, encode(&(7u32, vec![1u8, 2, 3], Vec::<u8>::new())).unwrap(), "as a vector travels");
        let shared: (u32, Blob, Blob) = decode_shared(&body).unwrap();
        assert_eq!(shared, sent);
        assert_eq!(shared.1.as_ptr(), body[12..].as_ptr(), "not copied");
        let copied: (u32, Blob, Blob) = decode(&body).unwrap();
        assert_eq!(copied, sent);
        assert_ne!(copied.1.as_ptr(), body[12..].as_ptr());
        assert!(matches!(decode_shared::<(u32, Blob)>(&body.slice(..14)), Err(CodecError::Malformed { .. })));
    }

    #[test]
    fn refuses_trailing_bytes() {
        let mut body = encode(&7u32).unwrap();
        body.push(0);
        assert!(matches!(decode::<u32>(&body), Err(CodecError::Trailing { left: 1, .. })));
    }

    #[test]
    fn a_claimed_length_allocates_nothing() {
        let mut body = u64::MAX.to_le_bytes().to_vec();
        body.extend_from_slice(&[0; 16]);
        assert!(matches!(decode::<Vec<u8>>(&body), Err(CodecError::Malformed { .. })));
    }
}
