//! The coordinator's side of a ledger that keepers write: commands to the keeper of its host over a Unix socket, reads from the copy
//! on its own disk.
//!
//! A frame is `len: u32 LE | bytes`: a [`LedgerCommand`] one way, what came of it or a sentence the other.
use super::command::record;
use super::desk::{Answer, LONGEST};
use crate::ledger::accounts::Accounts;
use crate::ledger::entry::Entry;
use crate::ledger::error::LedgerError;
use crate::ledger::place::RunPaths;
use crate::ledger::reader::Reader;
use crate::ledger::schema::TABLES;
use cohort_protocol::keeping::{LedgerAnswer, LedgerCommand};
use cohort_protocol::{Epoch, codec};
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

/// For an answer: longer than a keeper waits for the others.
const PATIENCE: Duration = Duration::from_secs(30);

/// The ledger of a coordinator whose host is a keeper.
#[derive(Debug)]
pub struct KeptLedger {
    reader: Reader,
    desk: UnixStream,
    epoch: Epoch,
}

impl KeptLedger {
    /// Connects to the keeper of this host by the name of its socket. Blocks.
    ///
    /// # Errors
    /// [`LedgerError::NotKept`], and those of [`Reader::open`].
    pub fn connect(paths: &RunPaths, socket: &str) -> Result<Self, LedgerError> {
        let connect = || -> io::Result<UnixStream> {
            let desk = UnixStream::connect_addr(&SocketAddr::from_abstract_name(socket)?)?;
            desk.set_read_timeout(Some(PATIENCE))?;
            desk.set_write_timeout(Some(PATIENCE))?;
            Ok(desk)
        };
        let desk = connect().map_err(|error| LedgerError::NotKept { why: format!("it cannot be reached: {error}") })?;
        Ok(Self { reader: Reader::open(paths)?, desk, epoch: Epoch(0) })
    }

    fn tell(&mut self, command: &LedgerCommand) -> Result<LedgerAnswer, LedgerError> {
        let not_kept = |why: String| LedgerError::NotKept { why };
        let answer = self.exchange(command).map_err(|error| not_kept(error.to_string()))?;
        match answer.map_err(not_kept)? {
            LedgerAnswer::Overtaken { now } => Err(LedgerError::Overtaken { epoch: self.epoch, now }),
            LedgerAnswer::Doubled { table, key } => {
                let table = TABLES.iter().find(|t| t.name == table).map_or("ledger", |t| t.name);
                Err(LedgerError::Doubled { table, key })
            }
            LedgerAnswer::Unreadable(why) => Err(not_kept(why)),
            answer => Ok(answer),
        }
    }

    fn exchange(&mut self, command: &LedgerCommand) -> io::Result<Answer> {
        let command = codec::encode(command).map_err(io::Error::other)?;
        let len = u32::try_from(command.len()).map_err(io::Error::other)?;
        self.desk.write_all(&len.to_le_bytes())?;
        self.desk.write_all(&command)?;
        let mut len = [0; 4];
        self.desk.read_exact(&mut len)?;
        let len = u32::from_le_bytes(len) as usize;
        if len > LONGEST {
            return Err(io::Error::other(format!("an answer of {len} bytes")));
        }
        let mut answer = vec![0; len];
        self.desk.read_exact(&mut answer)?;
        codec::decode(&answer).map_err(io::Error::other)
    }
}

impl Accounts for KeptLedger {
    fn reader(&self) -> &Reader {
        &self.reader
    }

    fn begin_epoch(&mut self, at_ms: u64) -> Result<Epoch, LedgerError> {
        match self.tell(&LedgerCommand::Open { at_ms })? {
            LedgerAnswer::Opened(epoch) => {
                self.epoch = epoch;
                Ok(epoch)
            }
            other => Err(LedgerError::NotKept { why: format!("it answered {other:?} to a coordinator that begins") }),
        }
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<(), LedgerError> {
        match self.tell(&record(self.epoch, entries))? {
            LedgerAnswer::Recorded => Ok(()),
            other => Err(LedgerError::NotKept { why: format!("it answered {other:?} to facts") }),
        }
    }

    /// A keeper whose disk is full ends, and another one leads.
    fn lacks_room(&self, _error: &LedgerError) -> Option<PathBuf> {
        None
    }
}
