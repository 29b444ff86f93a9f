//! The bytes on a TCP connection: records of a header and at most 16 KiB. `docs/wire.md` has the table.
use bytes::{Buf, Bytes, BytesMut};
use cohort_protocol::CodecError;

/// Kind, stream, value.
pub(super) const HEADER: usize = 9;
/// Bytes of a stream in one record: what fits a TLS record beside its header.
pub(super) const MAX_DATA: usize = (16 << 10) - HEADER;
/// Bytes of a reason.
const MAX_REASON: usize = 1 << 10;

/// What one end tells the other. Stream 0 is the control stream; others are bulk frames, numbered from 1 by their sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    /// Bytes of a stream; `last`: there are no more.
    Data {
        /// Numbered by who sends this.
        stream: u32,
        /// Its end.
        last: bool,
        /// The bytes.
        bytes: Bytes,
    },
    /// More bytes may be sent on a stream.
    Credit {
        /// Numbered by who receives this.
        stream: u32,
        /// How many.
        bytes: u32,
    },
    /// The answer to a bulk frame: taken over, or dropped.
    Answer {
        /// Numbered by who receives this.
        stream: u32,
        /// Taken over.
        accepted: bool,
    },
    /// The sender gave a bulk frame up that had begun; the receiver still answers.
    Abandoned {
        /// Numbered by who sends this.
        stream: u32,
    },
    /// A sign of life.
    Alive,
    /// The end of the connection.
    Close {
        /// As in QUIC.
        code: u32,
        /// Text.
        reason: String,
    },
}

const DATA: u8 = 1;
const LAST: u8 = 2;
const CREDIT: u8 = 3;
const ACCEPTED: u8 = 4;
const NOT_ACCEPTED: u8 = 5;
const ABANDONED: u8 = 6;
const ALIVE: u8 = 7;
const CLOSE: u8 = 8;

/// Writes the header of a data record; its bytes follow.
pub(super) fn put_data_header(stream: u32, last: bool, len: usize, out: &mut Vec<u8>) {
    put(if last { LAST } else { DATA }, stream, u32::try_from(len).unwrap_or(u32::MAX), out);
}

fn put(kind: u8, stream: u32, value: u32, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(&stream.to_le_bytes());
    out.extend_from_slice(&value.to_le_bytes());
}

impl Record {
    /// Appends the record's bytes.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Data { stream, last, bytes } => {
                put_data_header(*stream, *last, bytes.len(), out);
                out.extend_from_slice(bytes);
            }
            Self::Credit { stream, bytes } => put(CREDIT, *stream, *bytes, out),
            Self::Answer { stream, accepted } => put(if *accepted { ACCEPTED } else { NOT_ACCEPTED }, *stream, 0, out),
            Self::Abandoned { stream } => put(ABANDONED, *stream, 0, out),
            Self::Alive => put(ALIVE, 0, 0, out),
            Self::Close { code, reason } => {
                let reason = &reason.as_bytes()[..reason.len().min(MAX_REASON)];
                put(CLOSE, *code, u32::try_from(reason.len()).unwrap_or(u32::MAX), out);
                out.extend_from_slice(reason);
            }
        }
    }

    /// The next record that is there as a whole; the length is checked before its bytes are waited for.
    pub(super) fn take(buffer: &mut BytesMut) -> Result<Option<Self>, CodecError> {
        let Some(header) = buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let [kind, a, b, c, d, e, f, g, h] = *header;
        let (stream, value) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        let limit = match kind {
            DATA | LAST => MAX_DATA,
            CLOSE => MAX_REASON,
            CREDIT | ACCEPTED | NOT_ACCEPTED | ABANDONED | ALIVE => 0,
            _ => return Err(CodecError::Malformed { what: "record", why: format!("there is no kind {kind}") }),
        };
        let len = if limit == 0 { 0 } else { value as usize };
        if len > limit {
            return Err(CodecError::TooLong { len: len as u64, limit: limit as u64 });
        }
        if buffer.len() < HEADER + len {
            return Ok(None);
        }
        buffer.advance(HEADER);
        let bytes = buffer.split_to(len);
        Ok(Some(match kind {
            DATA | LAST => Self::Data { stream, last: kind == LAST, bytes: bytes.freeze() },
            CREDIT => Self::Credit { stream, bytes: value },
            ACCEPTED | NOT_ACCEPTED => Self::Answer { stream, accepted: kind == ACCEPTED },
            ABANDONED => Self::Abandoned { stream },
            ALIVE => Self::Alive,
            _ => Self::Close { code: stream, reason: String::from_utf8_lossy(&bytes).into_owned() },
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn records() -> impl Strategy<Value = Record> {
        let bytes = proptest::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
        prop_oneof![
            (any::<u32>(), any::<bool>(), bytes).prop_map(|(stream, last, bytes)| Record::Data { stream, last, bytes }),
            (any::<u32>(), any::<u32>()).prop_map(|(stream, bytes)| Record::Credit { stream, bytes }),
            (any::<u32>(), any::<bool>()).prop_map(|(stream, accepted)| Record::Answer { stream, accepted }),
            any::<u32>().prop_map(|stream| Record::Abandoned { stream }),
            Just(Record::Alive),
            (any::<u32>(), "[a-z ]{0,80}").prop_map(|(code, reason)| Record::Close { code, reason }),
        ]
    }

    proptest! {
        #[test]
        fn records_pass_whole_however_they_are_cut(sent in proptest::collection::vec(records(), 0..20), cut in 1usize..50) {
            let mut bytes = Vec::new();
            sent.iter().for_each(|record| record.put(&mut bytes));
            let (mut buffer, mut got) = (BytesMut::new(), Vec::new());
            for piece in bytes.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(record) = Record::take(&mut buffer).unwrap() {
                    got.push(record);
                }
            }
            prop_assert_eq!(got, sent);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = Record::take(&mut buffer) {}
        }
    }

    #[test]
    fn a_claimed_length_is_refused_before_its_bytes() {
        let mut bytes = Vec::new();
        put_data_header(1, false, MAX_DATA + 1, &mut bytes);
        let error = Record::take(&mut BytesMut::from(&bytes[..])).unwrap_err();
        assert!(matches!(error, CodecError::TooLong { .. }), "{error}");
    }
}
