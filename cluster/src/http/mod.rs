//! Health and metrics over HTTP, for probes and for Prometheus: `/livez`, `/readyz`, `/metrics`.
//!
//! Invariants
//! - **H1** only loopback is served without a token; everywhere else each request shows one (`Authorization: Bearer ..`), except
//!   the two probes, which say nothing but yes or no.
//! - **H2** nothing here changes a run, and what it says is read from the files that the run writes anyway.
mod metrics;

use crate::config::ClusterConfig;
use crate::ledger::RunPaths;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::get;
use ring::hmac;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Alive, and ready: served without a token.
pub(crate) const PROBES: [&str; 2] = ["/livez", "/readyz"];
/// An agent whose loop has not turned for so long is not alive.
const PULSE: Duration = Duration::from_secs(10);

/// Where to serve, and who may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpOptions {
    pub(crate) address: SocketAddr,
    /// File with the bearer token; needed where the address is not loopback.
    pub(crate) token_file: Option<PathBuf>,
}

impl HttpOptions {
    /// As configured.
    pub(crate) fn of(cluster: &ClusterConfig) -> Option<Self> {
        Some(Self { address: cluster.http?, token_file: cluster.http_token_file.clone() })
    }
}

/// When the agent's loop turned last.
#[derive(Debug)]
pub(crate) struct Pulse {
    begun: Instant,
    beat_ms: AtomicU64,
}

impl Pulse {
    /// It turns now.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { begun: Instant::now(), beat_ms: AtomicU64::new(0) })
    }

    /// Of a process without a loop of its own: turns as long as its tasks do.
    pub(crate) fn of_runtime() -> Arc<Self> {
        let pulse = Self::new();
        let weak = Arc::downgrade(&pulse);
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_secs(1));
            while let Some(pulse) = weak.upgrade() {
                pulse.beat();
                drop(pulse);
                tick.tick().await;
            }
        });
        pulse
    }

    /// It turned.
    pub(crate) fn beat(&self) {
        self.beat_ms.store(self.now(), Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn silent(&self) -> Duration {
        Duration::from_millis(self.now().saturating_sub(self.beat_ms.load(Ordering::Relaxed)))
    }
}

/// Whether work can go on, and if not, why.
pub(crate) type Ready = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

struct Served {
    paths: RunPaths,
    pulse: Arc<Pulse>,
    ready: Ready,
    /// HMAC of the token under a key of this process.
    token: Option<(hmac::Key, hmac::Tag)>,
}

/// Serves until the task is aborted.
///
/// # Errors
/// The address cannot be bound, the token cannot be read or is empty.
pub(crate) async fn serve(
    options: &HttpOptions,
    paths: RunPaths,
    pulse: Arc<Pulse>,
    ready: Ready,
) -> io::Result<(SocketAddr, JoinHandle<()>)> {
    let token = match &options.token_file {
        Some(path) => Some(read_token(path)?),
        None if options.address.ip().is_loopback() => None,
        None => return Err(io::Error::other("not a loopback address, and no token")),
    };
    let listener = TcpListener::bind(options.address).await?;
    let address = listener.local_addr()?;
    let served = Arc::new(Served { paths, pulse, ready, token });
    let router =
        Router::new().route(PROBES[0], get(livez)).route(PROBES[1], get(readyz)).route("/metrics", get(show)).with_state(served);
    let task = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(target: "cohort::http", %error, "http_ended");
        }
    });
    Ok((address, task))
}

fn read_token(path: &Path) -> io::Result<(hmac::Key, hmac::Tag)> {
    let text = std::fs::read_to_string(path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
    let token = text.trim();
    if token.is_empty() {
        return Err(io::Error::other(format!("{} is empty", path.display())));
    }
    let key = hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new())
        .map_err(|_| io::Error::other("the system gives no random numbers"))?;
    let tag = hmac::sign(&key, token.as_bytes());
    Ok((key, tag))
}

impl Served {
    /// H1, in a time that does not tell how much of a token was right.
    fn lets(&self, headers: &HeaderMap) -> bool {
        let Some((key, tag)) = &self.token else { return true };
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        given
            .and_then(|value| value.strip_prefix("Bearer "))
            .is_some_and(|given| hmac::verify(key, given.as_bytes(), tag.as_ref()).is_ok())
    }
}

type Answer = (StatusCode, String);

async fn livez(State(served): State<Arc<Served>>) -> Answer {
    if served.pulse.silent() > PULSE {
        return (StatusCode::SERVICE_UNAVAILABLE, "the agent stands still\n".to_owned());
    }
    (StatusCode::OK, "ok\n".to_owned())
}

async fn readyz(State(served): State<Arc<Served>>) -> Answer {
    match (served.ready)() {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn show(
    State(served): State<Arc<Served>>,
    headers: HeaderMap,
) -> (StatusCode, [(header::HeaderName, &'static str); 1], String) {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    if !served.lets(&headers) {
        return (StatusCode::UNAUTHORIZED, kind, "a token is needed: Authorization: Bearer TOKEN\n".to_owned());
    }
    let paths = served.paths.clone();
    match tokio::task::spawn_blocking(move || metrics::text(&paths)).await {
        Ok(text) => (StatusCode::OK, kind, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, kind, format!("{error}\n")),
    }
}

/// Of a run's head node: whether its coordinator has spoken lately.
pub(crate) fn coordinator_speaks(paths: RunPaths) -> Ready {
    // The time that the file says is compared with itself alone: the clock may be set.
    let seen: Mutex<Option<(SystemTime, Instant)>> = Mutex::new(None);
    Box::new(move || {
        let spoke = std::fs::metadata(paths.status()).and_then(|meta| meta.modified());
        let Ok(spoke) = spoke else { return Err("the coordinator has not begun yet".to_owned()) };
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match *seen {
            Some((before, since)) if before == spoke => since,
            // Of the first look nothing is known but that it has spoken.
            _ => Instant::now(),
        };
        *seen = Some((spoke, since));
        match since.elapsed() {
            silent if silent < PULSE => Ok(()),
            silent => Err(format!("the coordinator has said nothing for {} s", silent.as_secs())),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(at: SocketAddr, path: &str, token: Option<&str>) -> String {
        let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
        let token = token.map_or(String::new(), |t| format!("Authorization: Bearer {t}\r\n"));
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{token}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn loopback() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[tokio::test]
    async fn probes_are_open_and_metrics_need_the_token() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "secret\n").unwrap();
        let options = HttpOptions { address: loopback(), token_file: Some(file) };
        let (at, task) =
            serve(&options, RunPaths::new(dir.path()), Pulse::new(), Box::new(|| Err("not yet".into()))).await.unwrap();
        assert!(ask(at, "/livez", None).await.starts_with("HTTP/1.1 200"));
        let ready = ask(at, "/readyz", None).await;
        assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("not yet"), "{ready}");
        for wrong in [None, Some("secre"), Some("secret2"), Some("")] {
            assert!(ask(at, "/metrics", wrong).await.starts_with("HTTP/1.1 401"), "{wrong:?}");
        }
        assert!(ask(at, "/metrics", Some("secret")).await.starts_with("HTTP/1.1 200"));
        assert!(ask(at, "/etc/passwd", Some("secret")).await.starts_with("HTTP/1.1 404"));
        task.abort();
    }

    #[tokio::test]
    async fn damaged_requests_are_answered_or_dropped_and_cost_nobody_else_anything() {
        const SEEDS: [&str; 3] = [
            "GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nConnection: close\r\n\r\n",
            "POST /readyz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 9999999999\r\n\r\nffffffffffffffff\r\nx",
        ];
        let dir = tempfile::tempdir().unwrap();
        let options = HttpOptions { address: loopback(), token_file: None };
        let (at, task) = serve(&options, RunPaths::new(dir.path()), Pulse::new(), Box::new(|| Ok(()))).await.unwrap();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut draw = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % below as u64).unwrap()
        };
        for round in 0..200 {
            let mut bytes = SEEDS[round % SEEDS.len()].as_bytes().to_vec();
            for _ in 0..=draw(4) {
                let place = draw(bytes.len());
                match draw(3) {
                    0 => bytes[place] = u8::try_from(draw(256)).unwrap(),
                    1 if bytes.len() > 40 => drop(bytes.drain(place..(place + draw(20)).min(bytes.len()))),
                    _ => drop(bytes.splice(place..place, std::iter::repeat_n(b'9', draw(3000)))),
                }
            }
            let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
            // One that is dropped in the middle of its request may not take all of it, nor give a whole answer.
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let mut bounded = stream.take(1 << 20);
            let read = tokio::time::timeout(Duration::from_secs(5), bounded.read_to_end(&mut answer));
            let _ = read.await.expect("a request that ends is answered or dropped");
            assert!(answer.len() < 1 << 20);
        }
        assert!(ask(at, "/livez", None).await.starts_with("HTTP/1.1 200"));
        task.abort();
    }

    #[tokio::test]
    async fn an_open_address_without_a_token_is_not_served() {
        let dir = tempfile::tempdir().unwrap();
        let everywhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let empty = dir.path().join("empty");
        std::fs::write(&empty, " \n").unwrap();
        for (address, token_file) in [(everywhere, None), (everywhere, Some(empty)), (loopback(), Some("/no/such".into()))] {
            let options = HttpOptions { address, token_file };
            assert!(serve(&options, RunPaths::new(dir.path()), Pulse::new(), Box::new(|| Ok(()))).await.is_err(), "{options:?}");
        }
    }

    #[tokio::test]
    async fn an_agent_that_stands_still_is_not_alive() {
        let dir = tempfile::tempdir().unwrap();
        let pulse = Pulse::new();
        let options = HttpOptions { address: loopback(), token_file: None };
        let (at, task) = serve(&options, RunPaths::new(dir.path()), pulse.clone(), coordinator_speaks(RunPaths::new(dir.path())))
            .await
            .unwrap();
        let still = Pulse { begun: Instant::now() - PULSE - Duration::from_secs(1), beat_ms: AtomicU64::new(0) };
        assert!(still.silent() > PULSE);
        pulse.beat();
        assert!(ask(at, "/livez", None).await.starts_with("HTTP/1.1 200"));
        assert!(ask(at, "/readyz", None).await.contains("has not begun"));
        std::fs::write(dir.path().join("status.json"), "{}").unwrap();
        assert!(ask(at, "/readyz", None).await.starts_with("HTTP/1.1 200"));
        task.abort();
    }
}
