//! A frame: `len: u32 LE | direction: u8 | tag: u8 | body`, `len` counting direction, tag and body.
use crate::codec::CodecError;
use bytes::Bytes;

/// Bytes before the direction byte.
pub const LEN_BYTES: usize = 4;
/// Direction and tag.
pub const HEADER_BYTES: usize = 2;

/// A message on its way: which table its tag belongs to, the tag, the encoded body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Which message table ([`crate::messages::Direction`] as a byte).
    pub direction: u8,
    /// Which message of it.
    pub tag: u8,
    /// Encoded by [`crate::codec::encode`]. A copy of the frame shares it.
    pub body: Bytes,
}

impl Frame {
    /// Its bytes with the length in front.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let len = self.body.len() + HEADER_BYTES;
        let mut out = Vec::with_capacity(LEN_BYTES + len);
        out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
        out.push(self.direction);
        out.push(self.tag);
        out.extend_from_slice(&self.body);
        out
    }

    /// Checks a length prefix against a limit, before anything is allocated for it.
    pub fn check_len(prefix: [u8; LEN_BYTES], limit: usize) -> Result<usize, CodecError> {
        let len = u32::from_le_bytes(prefix) as usize;
        if len > limit + HEADER_BYTES {
            return Err(CodecError::TooLong { len: len as u64, limit: limit as u64 });
        }
        if len < HEADER_BYTES {
            return Err(CodecError::Malformed { what: "frame", why: format!("length {len} is shorter than its header") });
        }
        Ok(len)
    }

    /// A frame from what follows the length prefix.
    pub fn from_payload(payload: &[u8]) -> Result<Self, CodecError> {
        match payload {
            [direction, tag, body @ ..] => Ok(Self { direction: *direction, tag: *tag, body: Bytes::copy_from_slice(body) }),
            _ => Err(CodecError::Malformed { what: "frame", why: format!("{} bytes", payload.len()) }),
        }
    }

    /// Payload bytes that count towards a stream's traffic.
    #[must_use]
    pub fn wire_len(&self) -> u64 {
        (LEN_BYTES + HEADER_BYTES + self.body.len()) as u64
    }
}
