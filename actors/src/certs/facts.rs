//! What a certificate says of itself: whose it is, by whom, from when until when. For messages alone: the TLS library decides
//! about certificates, and a text that is none of ours gives nothing, whatever its bytes are.
use std::fmt;
use time::{Date, Month, OffsetDateTime};

/// Bytes of a name that are shown.
const LONGEST_NAME: usize = 120;
/// Object identifier of a common name, 2.5.4.3.
const COMMON_NAME: &[u8] = &[0x55, 4, 3];

const INTEGER: u8 = 0x02;
const OBJECT: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// The version, which stands first where it is not 1.
const VERSION: u8 = 0xa0;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Common name of its holder.
    pub subject: String,
    /// Common name of its authority.
    pub issuer: String,
    /// The first moment at which it is good.
    pub from: OffsetDateTime,
    /// The last one.
    pub until: OffsetDateTime,
}

impl Facts {
    /// Reads a certificate (RFC 5280, 4.1), DER.
    pub(crate) fn read(der: &[u8]) -> Option<Self> {
        let mut outer = Der(der);
        let mut certificate = Der(outer.take(SEQUENCE)?);
        let mut body = Der(certificate.take(SEQUENCE)?);
        if body.next_tag() == Some(VERSION) {
            body.take(VERSION)?;
        }
        body.take(INTEGER)?;
        body.take(SEQUENCE)?;
        let issuer = common_name(body.take(SEQUENCE)?)?;
        let mut validity = Der(body.take(SEQUENCE)?);
        let (from, until) = (validity.time()?, validity.time()?);
        let subject = common_name(body.take(SEQUENCE)?)?;
        Some(Self { subject, issuer, from, until })
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (by the {}, valid from {} until {})", self.subject, self.issuer, minute(self.from), minute(self.until))
    }
}

/// To the minute, for people.
pub(crate) fn minute(at: OffsetDateTime) -> String {
    let (date, hour, minute) = (at.date(), at.hour(), at.minute());
    format!("{:04}-{:02}-{:02} {hour:02}:{minute:02} UTC", date.year(), u8::from(date.month()), date.day())
}

/// What is left to read.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn next_tag(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The contents of the next value, which must have this tag.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        (self.next_tag()? == tag).then_some(())?;
        self.any().map(|(_, contents)| contents)
    }

    fn any(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let length = if first < 0x80 {
            usize::from(first)
        } else {
            // Long form: so many bytes of a length; no certificate of ours needs more than two.
            let (bytes, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
            rest = after;
            (bytes.len() <= 4).then(|| bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))?
        };
        let (contents, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, contents))
    }

    /// `YYMMDDHHMMSSZ`, of 1950 to 2049, or `YYYYMMDDHHMMSSZ`.
    fn time(&mut self) -> Option<OffsetDateTime> {
        let (tag, text) = self.any()?;
        let digits = text.strip_suffix(b"Z").filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
        let pair = |at: usize| digits.get(at..at + 2).map(|two| (two[0] - b'0') * 10 + (two[1] - b'0'));
        let (year, rest) = match (tag, digits.len()) {
            (UTC_TIME, 12) => {
                let two = i32::from(pair(0)?);
                (if two < 50 { 2000 + two } else { 1900 + two }, 2)
            }
            (GENERALIZED_TIME, 14) => (i32::from(pair(0)?) * 100 + i32::from(pair(2)?), 4),
            _ => return None,
        };
        let month = Month::try_from(pair(rest)?).ok()?;
        let date = Date::from_calendar_date(year, month, pair(rest + 2)?).ok()?;
        Some(date.with_hms(pair(rest + 4)?, pair(rest + 6)?, pair(rest + 8)?).ok()?.assume_utc())
    }
}

/// The common name within a distinguished one, fit to be shown.
fn common_name(name: &[u8]) -> Option<String> {
    let mut name = Der(name);
    while let Some(set) = name.take(SET) {
        let mut attribute = Der(Der(set).take(SEQUENCE)?);
        if attribute.take(OBJECT)? == COMMON_NAME {
            let (_, text) = attribute.any()?;
            let text = String::from_utf8_lossy(&text[..text.len().min(LONGEST_NAME)]);
            return Some(text.chars().map(|c| if c.is_control() { '?' } else { c }).collect());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::{RunAuthority, name_of};
    use cohort_protocol::{Role, RunId, WorkerId};
    use proptest::prelude::*;
    use std::time::{Duration, UNIX_EPOCH};

    const WORKER: WorkerId = WorkerId { role: Role::Rollout, index: 3 };

    fn certificate(from: u64, until: u64) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let authority = RunAuthority::open_or_create(dir.path(), RunId(0xfeed)).unwrap();
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let identity = authority.issue_for(&name_of(RunId(0xfeed), WORKER), WORKER, at(from), at(until)).unwrap();
        identity.chain()[0].to_vec()
    }

    #[test]
    fn a_certificate_says_whose_it_is_and_how_long() {
        // The second ends after 2049, where the form of times changes.
        for (from, until, last) in [(1_700_000_000, 1_702_592_000, "2023-12-14 22:13"), (0, 4_000_000_000, "2096-10-02 07:06")] {
            let facts = Facts::read(&certificate(from, until)).unwrap();
            assert_eq!(facts.subject, name_of(RunId(0xfeed), WORKER));
            assert_eq!(facts.issuer, "authority of run 000000000000feed");
            assert_eq!((facts.from.unix_timestamp(), facts.until.unix_timestamp()), (from as i64, until as i64));
            assert!(facts.to_string().ends_with(&format!("until {last} UTC)")), "{facts}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn bytes_of_a_peer_are_read_or_not_and_never_a_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            cut in any::<prop::sample::Index>(),
            noise in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            // What is read here does not depend on the signature: one certificate serves all cases.
            static GOOD: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
            let mut bytes = GOOD.get_or_init(|| certificate(1, 2)).clone();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let shown = [Facts::read(&bytes), Facts::read(&bytes[..cut.index(bytes.len())]), Facts::read(&noise)];
            for facts in shown.into_iter().flatten() {
                prop_assert!(!facts.to_string().contains('\n'));
            }
        }
    }
}
