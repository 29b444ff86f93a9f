//! The keeper's side of its host's coordinator: an abstract Unix socket for processes of the same user. See `kept` for the
//! frames.
use super::keeper::Keeper;
use cohort_protocol::keeping::{LedgerAnswer, LedgerCommand};
use cohort_protocol::{codec, limits};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::{JoinHandle, JoinSet};

/// Bytes of a command or an answer.
pub(super) const LONGEST: usize = limits::MAX_BULK_BODY;
/// For most keepers to have it; the run stands still meanwhile, as it would without its disk.
const WITHIN: Duration = Duration::from_secs(20);

/// What came of a command, or why nothing is known to have.
pub(super) type Answer = Result<LedgerAnswer, String>;

/// Answers coordinators until it is aborted.
///
/// # Errors
/// The system refuses the socket.
pub fn serve(name: &str, keeper: Keeper) -> io::Result<JoinHandle<()>> {
    let listener = std::os::unix::net::UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    Ok(tokio::spawn(async move {
        let mut coordinators = JoinSet::new();
        loop {
            while coordinators.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, _)) => drop(coordinators.spawn(attend(stream, keeper.clone()))),
                // Out of descriptors: those that are open come first.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }))
}

/// One coordinator, until it leaves. Its commands are taken in order, one at a time.
async fn attend(mut stream: UnixStream, keeper: Keeper) {
    if !stream.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw()) {
        return;
    }
    if let Err(error) = converse(&mut stream, &keeper).await {
        tracing::debug!(target: "cohort::keeper", %error, "coordinator_left");
    }
}

async fn converse(stream: &mut UnixStream, keeper: &Keeper) -> io::Result<()> {
    loop {
        let len = stream.read_u32_le().await? as usize;
        if len > LONGEST {
            return Err(io::Error::other(format!("a command of {len} bytes")));
        }
        let mut command = vec![0; len];
        stream.read_exact(&mut command).await?;
        let command: LedgerCommand = codec::decode(&command).map_err(io::Error::other)?;
        let answer: Answer = keeper.write(&command, WITHIN).await.map_err(|error| error.to_string());
        let answer = codec::encode(&answer).map_err(io::Error::other)?;
        stream.write_u32_le(u32::try_from(answer.len()).map_err(io::Error::other)?).await?;
        stream.write_all(&answer).await?;
    }
}
