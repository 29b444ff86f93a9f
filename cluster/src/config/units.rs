//! Lengths of time and amounts of memory as people write them: `"10s"`, `"64MiB"`. A bare number is refused: its unit
//! would be a guess.
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// A length of time: `"250ms"`, `"10s"`, `"5m"`, `"1h"`, `"1h30m"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// An amount of memory: `"512B"`, `"64KiB"`, `"64MiB"`, `"2GiB"`, `"1MB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

const SPAN_UNITS: [(&str, u64); 5] =
    [("ms", 1_000_000), ("h", 3_600_000_000_000), ("m", 60_000_000_000), ("s", 1_000_000_000), ("us", 1_000)];
const BYTE_UNITS: [(&str, u64); 7] =
    [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("KB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000), ("B", 1)];

/// A number at the start of `text`, its unit, and the rest.
fn part<'a>(text: &'a str, units: &[(&str, u64)]) -> Option<(u64, &'a str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, rest) = text.split_at(digits);
    let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(letters);
    let scale = units.iter().find(|(name, _)| *name == unit)?.1;
    match number.parse::<u64>() {
        Ok(whole) => Some((whole.checked_mul(scale)?, rest)),
        Err(_) => {
            let value = number.parse::<f64>().ok()? * scale as f64;
            (value.is_finite() && value < u64::MAX as f64).then_some((value.round() as u64, rest))
        }
    }
}

impl Span {
    /// Reads `"1h30m"`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut rest = text.trim();
        let mut nanos = 0u64;
        while !rest.is_empty() {
            let (value, after) = part(rest, &SPAN_UNITS)?;
            nanos = nanos.checked_add(value)?;
            rest = after.trim_start();
        }
        (!text.trim().is_empty()).then_some(Self(Duration::from_nanos(nanos)))
    }
}

impl Bytes {
    /// Reads `"64MiB"`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match part(text.trim(), &BYTE_UNITS)? {
            (value, "") => Some(Self(value)),
            _ => None,
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        let (unit, scale) = [("h", 3_600_000_000_000), ("m", 60_000_000_000), ("s", 1_000_000_000), ("ms", 1_000_000)]
            .into_iter()
            .find(|&(_, scale)| nanos >= scale && nanos.is_multiple_of(scale))
            .unwrap_or(("us", 1_000));
        if nanos == 0 { f.write_str("0s") } else { write!(f, "{}{unit}", nanos / scale) }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, scale) = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]
            .into_iter()
            .find(|&(_, scale)| self.0 >= scale && self.0.is_multiple_of(scale))
            .unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / scale)
    }
}

macro_rules! written_as_string {
    ($name:ident, $expecting:literal, $pattern:literal) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl de::Visitor<'_> for Text {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        $name::parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
                    }
                }
                deserializer.deserialize_any(Text)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "x-kind": $expecting })
            }
        }
    };
}

written_as_string!(Span, "a length of time with its unit, as \"10s\"", r"^([0-9.]+(us|ms|s|m|h))+$");
written_as_string!(Bytes, "an amount of memory with its unit, as \"64MiB\"", r"^[0-9.]+(B|KiB|MiB|GiB|KB|MB|GB)$");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_people_write() {
        assert_eq!(Span::parse("1h30m").map(|s| s.0.as_secs()), Some(5400));
        assert_eq!(Span::parse("0.5s").map(|s| s.0.as_millis()), Some(500));
        assert_eq!(Bytes::parse("64MiB"), Some(Bytes(64 << 20)));
        for bad in ["", "10", "s", "10 parsecs", "-3s", "1..2s", "99999999999h"] {
            assert_eq!(Span::parse(bad), None, "{bad}");
        }
        for bad in ["", "10", "MiB", "1MiB2", "99999999999GiB"] {
            assert_eq!(Bytes::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn display_reads_back(micros in 0..u64::MAX / 1_000_000, bytes: u64) {
            let span = Span(Duration::from_micros(micros));
            prop_assert_eq!(Span::parse(&span.to_string()), Some(span));
            prop_assert_eq!(Bytes::parse(&Bytes(bytes).to_string()), Some(Bytes(bytes)));
        }
    }
}
