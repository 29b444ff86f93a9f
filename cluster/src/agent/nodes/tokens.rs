//! Tokens that let a host without a certificate join a run. Pure but for drawing secrets.
//!
//! A token is a small TOML file: where the head node listens, the run, the run's authority (public), and a secret. The head
//! node keeps only the secret's hash, how often it may still be used and until when; whoever has used a token goes on with
//! the certificate it got.
//!
//! Invariants
//! - **T1** a secret is compared by its SHA-256, so that neither the file here nor the time of a comparison tells it.
//! - **T2** a token that is used up or expired is refused with that word; one that nobody issued is refused as unknown.
use cohort_protocol::RunId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

/// What a host needs to join: the contents of a token file.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Token {
    /// The run, 16 hex digits.
    pub run: String,
    /// The secret, 64 hex digits.
    pub secret: String,
    /// The certificate of the run's authority, PEM.
    pub authority: String,
}

/// The secret is nobody's to see.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("run", &self.run).finish_non_exhaustive()
    }
}

impl Token {
    /// Writes a token down.
    pub(crate) fn new(run: RunId, secret: &[u8; 32], authority: String) -> Self {
        Self { run: format!("{:016x}", run.0), secret: hex(secret), authority }
    }

    /// Run and secret.
    ///
    /// # Errors
    /// What is wrong with which field.
    pub(crate) fn parse(&self) -> Result<(RunId, [u8; 32]), String> {
        let run = u64::from_str_radix(&self.run, 16).map_err(|_| format!("run = {:?} is no number of a run", self.run))?;
        let digits = self.secret.as_bytes();
        let wrong = || "secret is not 64 hex digits".to_owned();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(wrong());
        }
        let mut secret = [0; 32];
        for (byte, pair) in secret.iter_mut().zip(digits.chunks(2)) {
            let text = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(text, 16).map_err(|_| wrong())?;
        }
        Ok((RunId(run), secret))
    }
}

/// What is left of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Issued {
    /// Times it may still be used.
    uses: u32,
    /// Not after this, in seconds since 1970.
    until: u64,
}

/// The tokens of a run, by the SHA-256 of their secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Tokens(BTreeMap<String, Issued>);

impl Tokens {
    /// A new secret, good `uses` times and for `seconds` from `now` on.
    pub(crate) fn issue(&mut self, now: SystemTime, uses: u32, seconds: u64) -> std::io::Result<[u8; 32]> {
        let mut secret = [0; 32];
        std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut secret)?;
        let until = seconds_of(now).saturating_add(seconds);
        self.0.retain(|_, issued| issued.until >= seconds_of(now));
        self.0.insert(name(&secret), Issued { uses, until });
        Ok(secret)
    }

    /// Uses a secret once.
    ///
    /// # Errors
    /// Why not (T2).
    pub(crate) fn redeem(&mut self, now: SystemTime, secret: &[u8; 32]) -> Result<(), String> {
        let remedy = "get another by `cluster token RUN` on the head node";
        let Some(issued) = self.0.get_mut(&name(secret)) else {
            return Err(format!("the token is not known to this run; {remedy}"));
        };
        if issued.until < seconds_of(now) {
            return Err(format!("the token has expired; {remedy}"));
        }
        if issued.uses == 0 {
            return Err(format!("the token is used up; {remedy}"));
        }
        issued.uses -= 1;
        Ok(())
    }
}

fn name(secret: &[u8; 32]) -> String {
    hex(&Sha256::digest(secret))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn seconds_of(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_token_is_good_as_often_and_as_long_as_it_says() {
        let now = cohort_actors::wall::now();
        let mut tokens = Tokens::default();
        let secret = tokens.issue(now, 2, 60).unwrap();
        assert!(tokens.redeem(now, &[7; 32]).unwrap_err().contains("not known"));
        assert!(tokens.redeem(now + Duration::from_secs(62), &secret).unwrap_err().contains("expired"));
        tokens.redeem(now, &secret).unwrap();
        tokens.redeem(now + Duration::from_secs(59), &secret).unwrap();
        assert!(tokens.redeem(now, &secret).unwrap_err().contains("used up"));
        assert_ne!(secret, tokens.issue(now, 1, 60).unwrap());
        let kept = serde_json::to_string(&tokens).unwrap();
        assert!(!kept.contains(&hex(&secret)), "only its hash is kept");
        let again: Tokens = serde_json::from_str(&kept).unwrap();
        assert_eq!(again, tokens);
        tokens.issue(now + Duration::from_secs(100), 1, 60).unwrap();
        assert_eq!(tokens.0.len(), 1, "expired ones are forgotten");
    }

    #[test]
    fn a_token_file_says_what_it_holds_or_what_is_wrong() {
        let token = Token::new(RunId(0xabc), &[0x5a; 32], "PEM".into());
        let text = toml::to_string(&token).unwrap();
        let read: Token = toml::from_str(&text).unwrap();
        assert_eq!(read.parse().unwrap(), (RunId(0xabc), [0x5a; 32]));
        let spoilt = [Token { run: "x".into(), ..token.clone() }, Token { secret: "5a".into(), ..token }];
        for (token, named) in spoilt.iter().zip(["run = \"x\"", "64 hex digits"]) {
            assert!(token.parse().unwrap_err().contains(named));
        }
    }
}
