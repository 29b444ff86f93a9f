//! JSON lines in: every error names the file and the line.
use super::{CliError, Exit};
use serde::de::DeserializeOwned;
use std::fmt::Display;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// Longest line that is read, bytes: an exported step of long dialogues fits.
const MAX_LINE: u64 = 1 << 30;

/// Where a row stands.
#[derive(Debug, Clone)]
pub(super) struct Place {
    file: String,
    line: usize,
}

impl Place {
    /// A data error at this row.
    pub(super) fn error(&self, why: impl Display) -> CliError {
        CliError::new(Exit::Data, format!("{}:{}: {why}", self.file, self.line))
    }
}

/// Reads the rows of a file, `-` for stdin; empty lines are skipped, a file without rows is refused.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<(Place, T)>, CliError> {
    let file = if path == Path::new("-") { "(stdin)".to_owned() } else { path.display().to_string() };
    let input: Box<dyn Read> = match file.as_str() {
        "(stdin)" => Box::new(std::io::stdin()),
        _ => Box::new(std::fs::File::open(path).map_err(|e| CliError::new(Exit::Data, format!("cannot open {file}: {e}")))?),
    };
    let mut input = BufReader::new(input);
    let (mut rows, mut line, mut text) = (Vec::new(), 0, Vec::new());
    loop {
        text.clear();
        line += 1;
        let place = Place { file: file.clone(), line };
        let read = input.by_ref().take(MAX_LINE).read_until(b'\n', &mut text).map_err(|e| place.error(e))?;
        if read == 0 {
            break;
        }
        if read as u64 == MAX_LINE {
            return Err(place.error(format!("the line is longer than {MAX_LINE} bytes")));
        }
        if text.trim_ascii().is_empty() {
            continue;
        }
        let row = serde_json::from_slice(&text).map_err(|e| place.error(format!("not a row that can be read: {e}")))?;
        rows.push((place, row));
    }
    if rows.is_empty() {
        return Err(CliError::new(Exit::Data, format!("{file} has no rows; one JSON object a line is wanted")));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn rows_know_their_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        std::fs::write(&path, "{\"a\":1}\n\n{\"a\":2}\r\n{\"a\":").unwrap();
        let error = read::<Value>(&path).unwrap_err();
        assert!(error.message.contains("rows.jsonl:4: not a row"), "{error}");
        assert_eq!(error.exit, Exit::Data);
        std::fs::write(&path, "{\"a\":1}\n\n{\"a\":2}").unwrap();
        let rows = read::<Value>(&path).unwrap();
        assert_eq!(rows.iter().map(|(p, v)| (p.line, v["a"].as_i64())).collect::<Vec<_>>(), [(1, Some(1)), (3, Some(2))]);
        std::fs::write(&path, "\n \n").unwrap();
        assert!(read::<Value>(&path).unwrap_err().message.contains("has no rows"));
        std::fs::write(&path, b"\"\xff\"\n").unwrap();
        assert!(read::<Value>(&path).unwrap_err().message.contains("rows.jsonl:1:"));
    }
}
