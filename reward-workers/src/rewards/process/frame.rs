//! Frames on a plug-in's standard input and output: `len: u32 LE | JSON`, `len` counting the JSON's bytes.
//!
//! Four bytes of printed text read as a length of at least 151 MB, over the limit of 64 MiB: text on the wrong stream is
//! recognised by its first bytes and shown to the user.
use crate::exchange::excerpt;
use serde_json::Value;
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// Longest JSON of a frame, in bytes, both ways. Checked before anything is allocated.
pub const MAX_FRAME: usize = 64 << 20;

/// Most values of a frame that is read: parsed, each takes some fifty times its shortest text.
pub const MAX_VALUES: usize = 1 << 20;

/// For the rest of a text that stands where a frame should: it is there, or is not shown.
const SHOWN: Duration = Duration::from_millis(100);

/// Why a frame could not be read or written.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The stream ended before a frame began.
    #[error("it closed its standard output")]
    Closed,
    /// The stream ended inside a frame.
    #[error("it ended in the middle of a frame")]
    Cut,
    /// The first bytes are no length.
    #[error(
        "it wrote {0:?} where a frame was expected: something prints to the real standard output before the SDK takes \
         it over; import cohort_reward first and do not write to file descriptor 1"
    )]
    NotAFrame(String),
    /// The JSON is none.
    #[error("{0}")]
    NotJson(String),
    /// The JSON would take too much memory.
    #[error("its answer has about {0} values, at most {MAX_VALUES} are read: answer with less metadata")]
    TooMany(usize),
    /// A frame of ours would be too long.
    #[error("a group of {0} bytes is over the limit of {MAX_FRAME} bytes a frame: use smaller groups")]
    TooLong(usize),
    /// The system's own error.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Writes one frame.
pub async fn write<W: AsyncWrite + Unpin>(to: &mut W, message: &Value) -> Result<(), FrameError> {
    let body = message.to_string().into_bytes();
    let len = u32::try_from(body.len()).ok().filter(|len| *len as usize <= MAX_FRAME).ok_or(FrameError::TooLong(body.len()))?;
    to.write_all(&len.to_le_bytes()).await?;
    to.write_all(&body).await?;
    Ok(to.flush().await?)
}

/// Reads one frame. Not cancel-safe: after a cancelled read the stream is of no more use.
pub async fn read<R: AsyncRead + Unpin>(from: &mut R) -> Result<Value, FrameError> {
    let mut head = [0u8; 4];
    let mut have = 0;
    while have < head.len() {
        match from.read(&mut head[have..]).await? {
            0 if have == 0 => return Err(FrameError::Closed),
            0 => return Err(FrameError::NotAFrame(excerpt(&head[..have]))),
            n => have += n,
        }
    }
    let len = u32::from_le_bytes(head) as usize;
    if len > MAX_FRAME {
        let mut text = head.to_vec();
        let mut more = [0u8; 96];
        if let Ok(Ok(n)) = timeout(SHOWN, from.read(&mut more)).await {
            text.extend_from_slice(&more[..n]);
        }
        return Err(FrameError::NotAFrame(excerpt(&text)));
    }
    let mut body = Vec::new();
    // Grows as bytes arrive: a claimed length allocates nothing.
    let got = from.take(len as u64).read_to_end(&mut body).await?;
    if got < len {
        return Err(FrameError::Cut);
    }
    // Every value but the first follows one of these; text that has them counts too.
    let values = body.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
    if values > MAX_VALUES {
        return Err(FrameError::TooMany(values));
    }
    crate::exchange::parse(&body).map_err(FrameError::NotJson)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
    }

    #[test]
    fn frames_round_trip() {
        let message = json!({"type": "score", "text": "zwölf €\n"});
        let mut bytes = Vec::new();
        block_on(write(&mut bytes, &message)).unwrap();
        assert_eq!(bytes[..4], ((bytes.len() - 4) as u32).to_le_bytes());
        assert_eq!(block_on(read(&mut bytes.as_slice())).unwrap(), message);
    }

    #[test]
    fn more_values_than_memory_should_hold_are_refused_before_they_are_parsed() {
        let framed = |body: Vec<u8>| [u32::try_from(body.len()).unwrap().to_le_bytes().to_vec(), body].concat();
        let list = |values: usize| framed([b"[".to_vec(), b"1,".repeat(values - 1), b"1]".to_vec()].concat());
        assert_eq!(block_on(read(&mut list(1000).as_slice())).unwrap().as_array().unwrap().len(), 1000);
        let error = block_on(read(&mut list(MAX_VALUES + 1).as_slice())).unwrap_err();
        assert!(matches!(error, FrameError::TooMany(values) if values == MAX_VALUES + 1), "{error}");
    }

    #[test]
    fn text_and_cuts_are_told_apart() {
        let fail = |bytes: &[u8]| block_on(read(&mut &bytes[..])).unwrap_err().to_string();
        assert!(fail(b"hello from print\n").contains("hello from print"));
        assert!(fail(b"\n\n\n\n").contains("import cohort_reward first"));
        assert!(fail(b"ok").contains("\"ok\""));
        assert_eq!(fail(b""), "it closed its standard output");
        assert_eq!(fail(&[9, 0, 0, 0, b'{']), "it ended in the middle of a frame");
        assert!(fail(&[3, 0, 0, 0, b'{', b'x', b'}']).contains("not JSON"));
        assert!(fail(&u32::MAX.to_le_bytes()).contains("where a frame was expected"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = block_on(read(&mut bytes.as_slice()));
        }
    }
}
