//! What a running run can be told from its own host: scale, pause, resume, drain, stop, new certificates, a token for another host.
//!
//! Over an abstract Unix socket whose name stands in `control.json` of the run directory; processes of the same user only. A
//! request is one line of JSON, the answer another: `{"ok": ..}` or `{"error": ".."}`.
use crate::ledger::RunPaths;
use crate::ledger::place::write_atomically;
use cohort_protocol::Role;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr as NetAddress;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// For a request to arrive and for its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a request.
const LONGEST: u64 = 4096;

/// What can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// So many workers of a role.
    Scale { role: Role, count: u16 },
    /// Begin no further group.
    Pause,
    /// Begin groups again.
    Resume,
    /// Finish what is in hand, save and leave; or let one host leave.
    Drain { host: Option<u16> },
    /// Leave now; the ledger has everything.
    Stop,
    /// New certificates for every host and worker.
    Rotate,
    /// A token for hosts to join with.
    Token { uses: u32, seconds: u64 },
}

/// A request with where its answer goes.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) request: Request,
    pub(crate) reply: oneshot::Sender<Result<Value, String>>,
}

/// Where a run can be reached: `control.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Abstract name of the socket.
    pub(crate) socket: String,
    /// Process of the head node's agent.
    pub(crate) pid: u32,
    /// Where other hosts join, if they can.
    pub(crate) listen: Option<NetAddress>,
}

impl Place {
    /// Leaves it in the run directory.
    pub(crate) fn write(&self, paths: &RunPaths) -> io::Result<()> {
        let bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        write_atomically(&paths.control(), &bytes).map_err(io::Error::other)
    }

    /// Of a run that is under way.
    pub(crate) fn read(paths: &RunPaths) -> io::Result<Self> {
        serde_json::from_slice(&std::fs::read(paths.control())?).map_err(io::Error::other)
    }
}

/// Answers requests until it is aborted.
pub(crate) fn serve(name: &str, calls: mpsc::Sender<Call>) -> io::Result<tokio::task::JoinHandle<()>> {
    let listener = std::os::unix::net::UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    Ok(tokio::spawn(async move {
        let mut callers = tokio::task::JoinSet::new();
        loop {
            while callers.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, _)) => {
                    callers.spawn(timeout(PATIENCE * 2, answer(stream, calls.clone())));
                }
                // Out of descriptors: those that are open come first.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }))
}

async fn answer(stream: tokio::net::UnixStream, calls: mpsc::Sender<Call>) {
    if !stream.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw()) {
        return;
    }
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut lines = tokio::io::BufReader::new(read.take(LONGEST));
    if lines.read_line(&mut line).await.is_err() {
        return;
    }
    let outcome = match serde_json::from_str(&line) {
        Ok(request) => ask(request, &calls).await,
        Err(error) => Err(format!("not a request of this version: {error}")),
    };
    let text = match outcome {
        Ok(value) => json!({ "ok": value }),
        Err(why) => json!({ "error": why }),
    };
    // A caller that is gone does not wait for it.
    let _ = write.write_all(format!("{text}\n").as_bytes()).await;
}

async fn ask(request: Request, calls: &mpsc::Sender<Call>) -> Result<Value, String> {
    let (reply, answer) = oneshot::channel();
    let ending = || "the run is ending".to_owned();
    calls.send(Call { request, reply }).await.map_err(|_| ending())?;
    answer.await.map_err(|_| ending())?
}

/// The caller's side.
///
/// # Errors
/// The run cannot be reached, or its reason for saying no.
pub(crate) fn call(place: &Place, request: &Request) -> io::Result<Result<Value, String>> {
    let mut stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(&place.socket)?)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    #[derive(Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Answer {
        Ok(Value),
        Error(String),
    }
    match serde_json::from_str(&answer) {
        Ok(Answer::Ok(value)) => Ok(Ok(value)),
        Ok(Answer::Error(why)) => Ok(Err(why)),
        Err(error) => Err(io::Error::other(format!("no answer: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_request_is_answered_and_nonsense_is_refused() {
        let name = format!("cohort-control-test-{}", std::process::id());
        let (calls, mut called) = mpsc::channel(1);
        let serving = serve(&name, calls).unwrap();
        let place = Place { socket: name.clone(), pid: 1, listen: None };
        let asking = |request: Request| {
            let place = place.clone();
            tokio::task::spawn_blocking(move || call(&place, &request).unwrap())
        };
        let scale = asking(Request::Scale { role: Role::Rollout, count: 8 });
        let heard = called.recv().await.unwrap();
        assert_eq!(heard.request, Request::Scale { role: Role::Rollout, count: 8 });
        heard.reply.send(Ok(json!({ "rollout": 8 }))).unwrap();
        assert_eq!(scale.await.unwrap(), Ok(json!({ "rollout": 8 })));
        let stop = asking(Request::Stop);
        called.recv().await.unwrap().reply.send(Err("no".into())).unwrap();
        assert_eq!(stop.await.unwrap(), Err("no".to_owned()));
        let raw = tokio::task::spawn_blocking(move || {
            let mut stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
            stream.write_all(b"{\"fly\":1}\n").unwrap();
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer).unwrap();
            answer
        });
        assert!(raw.await.unwrap().contains("not a request"));
        serving.abort();
    }
}
