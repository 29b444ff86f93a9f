//! How a host gets its place and keeps it: a token is shown once, for a certificate (J1 of `join`).
use super::children;
use super::head::HEAD;
use super::join::JoinOptions;
use super::join_error::{JoinError, system};
use crate::ledger::RunPaths;
use crate::ledger::place::write_atomically;
use cohort_actors::certs::{Identity, SigningKey};
use cohort_actors::transport::reach::Reach;
use cohort_protocol::WorkerId;
use cohort_protocol::messages::handshake::Enrol;
use cohort_protocol::version::{PROTOCOL, PROTOCOL_MIN};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// For the head node to answer a token.
const ENROL: Duration = Duration::from_secs(10);

/// What a host remembers of its place: `host.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Membership {
    /// The run.
    pub(super) run: u64,
    /// The host's place in it.
    pub(super) node: WorkerId,
    /// The hosts that keep the run, where it has such.
    #[serde(default)]
    pub(super) keepers: Vec<SocketAddr>,
}

impl Membership {
    /// The place that the directory knows, or a new one for the token.
    pub(super) async fn take(options: &JoinOptions, paths: &RunPaths, reach: &Reach) -> Result<Self, JoinError> {
        let file = file(paths);
        let token = options.token.as_ref().map(|token| Ok::<_, JoinError>((token, token.parse().map_err(JoinError::Token)?)));
        let token = token.transpose()?;
        if let Ok(bytes) = std::fs::read(&file) {
            let damaged = |e| JoinError::System { what: "read host.json", source: std::io::Error::other(e) };
            let known: Self = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
            return match token {
                Some((_, (run, _))) if run.0 != known.run => {
                    Err(JoinError::OtherRun { dir: options.dir.clone(), joined: known.run, token: run.0 })
                }
                _ => Ok(known),
            };
        }
        let Some((token, (run, secret))) = token else { return Err(JoinError::NoToken { dir: options.dir.clone() }) };
        let key = SigningKey::generate()?;
        let dialer = reach.stranger(HEAD, options.head, run, &token.authority)?;
        let (host, public_key) = (options.host.clone(), key.public());
        let request = Enrol { protocol_min: PROTOCOL_MIN, protocol_max: PROTOCOL, run, secret, host, public_key };
        let enrolled = cohort_actors::enrol(&dialer, request, ENROL).await?;
        let identity = Identity::assemble(run, enrolled.node, &token.authority, enrolled.certificate, &key)?;
        identity.save(&children::certificates(paths))?;
        let known = Self { run: run.0, node: enrolled.node, keepers: Vec::new() };
        known.write(paths)?;
        Ok(known)
    }

    /// Whom to ask for the head node from now on, also after a restart.
    pub(super) fn kept_by(&mut self, paths: &RunPaths, keepers: &[SocketAddr]) -> Result<(), JoinError> {
        if self.keepers == keepers {
            return Ok(());
        }
        self.keepers = keepers.to_vec();
        self.write(paths)
    }

    fn write(&self, paths: &RunPaths) -> Result<(), JoinError> {
        let bytes = serde_json::to_vec(self).map_err(|e| system("write host.json")(std::io::Error::other(e)))?;
        Ok(write_atomically(&file(paths), &bytes)?)
    }
}

fn file(paths: &RunPaths) -> PathBuf {
    paths.root().join("host.json")
}
