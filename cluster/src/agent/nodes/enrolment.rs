//! How a host without a certificate gets a place: its token is redeemed, its key certified.
//!
//! Invariants
//! - **E1** a use of a token is on the disk before the certificate leaves; places are never given twice.
//! - **E2** nor by two of the hosts that keep a run: each has places of its own to give ([`Seats`]).
use super::tokens::{Token, Tokens};
use crate::ledger::place::write_atomically;
use cohort_actors::certs::{self, RunAuthority};
use cohort_actors::wall;
use cohort_protocol::messages::handshake::{Enrol, Enrolled};
use cohort_protocol::{Role, RunId, WorkerId, version};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// The places that a head node gives: of `every` so many, one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seats {
    first: u16,
    every: u16,
}

impl Seats {
    /// Those of keeper `number` of so many; a head node without others has all places.
    pub(crate) fn of(number: u64, keepers: usize) -> Self {
        let every = u16::try_from(keepers.max(1)).unwrap_or(u16::MAX);
        Self { first: 1 + u16::try_from(number % u64::from(every)).unwrap_or(0), every }
    }

    /// The first of them from `place` on.
    fn at_or_after(self, place: u16) -> Option<u16> {
        let short = place.saturating_sub(self.first).checked_next_multiple_of(self.every)?;
        self.first.checked_add(short)
    }
}

/// What is kept about hosts over restarts of the head node's agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Book {
    /// The next place.
    next: u16,
    tokens: Tokens,
    /// Places that were taken away, as earlier builds noted it.
    #[serde(default, skip_serializing)]
    dismissed: BTreeSet<u16>,
}

const FULL: &str = "there are no places left";

/// Tokens, places and certificates.
#[derive(Debug)]
pub(crate) struct Enrolment {
    run: RunId,
    path: PathBuf,
    authority: Arc<RunAuthority>,
    seats: Seats,
    book: Mutex<Book>,
}

impl Enrolment {
    /// Goes on with what `path` holds, if it is there.
    ///
    /// # Errors
    /// The file cannot be read, or is none of ours.
    pub(crate) fn open(run: RunId, path: PathBuf, authority: Arc<RunAuthority>, seats: Seats) -> std::io::Result<Self> {
        let book = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| std::io::Error::other(format!("{}: {e}; delete it to void all tokens", path.display())))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Book { next: 1, tokens: Tokens::default(), dismissed: BTreeSet::new() }
            }
            Err(error) => return Err(error),
        };
        let dismissed = book.dismissed.clone();
        let enrolment = Self { run, path, authority, seats, book: Mutex::new(book) };
        dismissed.into_iter().try_for_each(|host| enrolment.dismiss(host)).map_err(std::io::Error::other)?;
        Ok(enrolment)
    }

    /// A new token.
    ///
    /// # Errors
    /// The disk, or the system's source of random numbers.
    pub(crate) fn issue(&self, uses: u32, seconds: u64) -> Result<Token, String> {
        self.issue_at(wall::now(), uses, seconds)
    }

    fn issue_at(&self, now: SystemTime, uses: u32, seconds: u64) -> Result<Token, String> {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let secret = book.tokens.issue(now, uses, seconds).map_err(|e| e.to_string())?;
        self.keep(&book)?;
        Ok(Token::new(self.run, &secret, self.authority.pem()))
    }

    /// A host was let go: what was certified for it opens no door any more.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn dismiss(&self, host: u16) -> Result<(), String> {
        certs::revoke(self.certs(), host).map(drop).map_err(|e| e.to_string())
    }

    /// Hosts that were let go, here or, where several hosts keep the run, at another keeper.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn dismissed(&self) -> Result<BTreeSet<u16>, String> {
        certs::revoked(self.certs()).map_err(|e| e.to_string())
    }

    /// Where certificates are.
    fn certs(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    /// Gives a host its place.
    ///
    /// # Errors
    /// The reason for the host's user.
    pub(crate) fn enrol(&self, request: &Enrol) -> Result<Enrolled, String> {
        self.enrol_at(wall::now(), request)
    }

    fn enrol_at(&self, now: SystemTime, request: &Enrol) -> Result<Enrolled, String> {
        let protocol = version::negotiate(request.protocol_min, request.protocol_max).ok_or_else(|| {
            format!(
                "no common protocol version: {} speaks {} to {}, this build {} to {}",
                request.host,
                request.protocol_min,
                request.protocol_max,
                version::PROTOCOL_MIN,
                version::PROTOCOL
            )
        })?;
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let place = self.seats.at_or_after(book.next).ok_or(FULL)?;
        let node = WorkerId { role: Role::Node, index: place };
        // A key that is none costs no use of the token.
        let certificate = self.authority.certify(node, &request.public_key).map_err(|e| e.to_string())?;
        book.tokens.redeem(now, &request.secret)?;
        book.next = place.checked_add(1).ok_or(FULL)?;
        self.keep(&book)?;
        Ok(Enrolled { protocol, node, certificate })
    }

    fn keep(&self, book: &Book) -> Result<(), String> {
        let bytes = serde_json::to_vec(book).map_err(|e| e.to_string())?;
        write_atomically(&self.path, &bytes).map_err(|e| e.to_string())?;
        std::fs::set_permissions(&self.path, Permissions::from_mode(0o600)).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cohort_actors::certs::SigningKey;
    use std::time::Duration;

    #[test]
    fn a_token_gives_one_place_and_a_restart_remembers_it() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(RunAuthority::open_or_create(&dir.path().join("certs"), RunId(5)).unwrap());
        let open = || Enrolment::open(RunId(5), dir.path().join("hosts.json"), authority.clone(), Seats::of(0, 1)).unwrap();
        let enrolment = open();
        let token = enrolment.issue(1, 60).unwrap();
        let (_, secret) = token.parse().unwrap();
        let key = SigningKey::generate().unwrap();
        let request = Enrol {
            protocol_min: version::PROTOCOL_MIN,
            protocol_max: version::PROTOCOL,
            run: RunId(5),
            secret,
            host: "gpu-2".into(),
            public_key: vec![1, 2, 3],
        };
        assert!(enrolment.enrol(&request).unwrap_err().contains("public key"), "and the token is still good");
        let request = Enrol { public_key: key.public(), ..request };
        let old = Enrol { protocol_min: 900, protocol_max: 901, ..request.clone() };
        assert!(enrolment.enrol(&old).unwrap_err().contains("no common protocol"));
        let enrolled = enrolment.enrol(&request).unwrap();
        assert_eq!(enrolled.node, WorkerId { role: Role::Node, index: 1 });
        let enrolment = open();
        assert!(enrolment.enrol(&request).unwrap_err().contains("used up"));
        let (_, secret) = enrolment.issue(2, 60).unwrap().parse().unwrap();
        let again = Enrol { secret, ..request };
        enrolment.dismiss(1).unwrap();
        assert_eq!(open().dismissed().unwrap(), BTreeSet::from([1]));
        assert_eq!([1, 2].map(|_| enrolment.enrol(&again).unwrap().node.index), [2, 3]);
    }

    #[test]
    fn hosts_that_an_earlier_build_let_go_stay_away() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(RunAuthority::open_or_create(&dir.path().join("certs"), RunId(5)).unwrap());
        let path = dir.path().join("certs").join("hosts.json");
        std::fs::write(&path, r#"{"next":4,"tokens":{},"dismissed":[1,3]}"#).unwrap();
        let open = || Enrolment::open(RunId(5), path.clone(), authority.clone(), Seats::of(0, 1)).unwrap();
        assert_eq!(open().dismissed().unwrap(), BTreeSet::from([1, 3]));
        open().issue(1, 60).unwrap();
        assert!(!std::fs::read_to_string(&path).unwrap().contains("dismissed"), "it stands in one place");
        assert_eq!(open().dismissed().unwrap(), BTreeSet::from([1, 3]));
    }

    #[test]
    fn no_two_keepers_ever_give_the_same_place() {
        for keepers in [1, 3, 5, 7] {
            let mut given = BTreeSet::new();
            for number in 0..keepers as u64 {
                let seats = Seats::of(number, keepers);
                let mut next = 1;
                while let Some(place) = seats.at_or_after(next) {
                    assert!(place >= next && place > 0 && given.insert(place), "{place} by {number} of {keepers}");
                    let Some(after) = place.checked_add(1) else { break };
                    next = after;
                }
            }
            assert_eq!(given.len(), usize::from(u16::MAX), "and every place is somebody's to give");
        }
        assert_eq!(Seats::of(1, 3).at_or_after(40), Some(41), "a run that was begun by one head node goes on behind it");
    }

    #[test]
    fn a_clock_that_is_set_ends_a_token_or_keeps_it_and_gives_no_use_of_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(RunAuthority::open_or_create(&dir.path().join("certs"), RunId(5)).unwrap());
        let enrolment = Enrolment::open(RunId(5), dir.path().join("hosts.json"), authority, Seats::of(0, 1)).unwrap();
        let (now, hour) = (wall::now(), Duration::from_secs(3600));
        let (_, secret) = enrolment.issue_at(now, 1, 3600).unwrap().parse().unwrap();
        let request = Enrol {
            protocol_min: version::PROTOCOL_MIN,
            protocol_max: version::PROTOCOL,
            run: RunId(5),
            secret,
            host: "gpu-2".into(),
            public_key: SigningKey::generate().unwrap().public(),
        };
        // Forward beyond its end: a token is of the time of day. Back before its beginning: it is good.
        assert!(enrolment.enrol_at(now + 5 * hour, &request).unwrap_err().contains("expired"));
        assert_eq!(enrolment.enrol_at(now - 5 * hour, &request).unwrap().node.index, 1);
        for at in [now, now - 5 * hour] {
            assert!(enrolment.enrol_at(at, &request).unwrap_err().contains("used up"));
        }
    }
}
