//! `http`: the user's own endpoint grades. One POST a group; see `docs/rewards.md` for the shapes.
//!
//! | answer | reading |
//! |---|---|
//! | 200 with `scores` of the right number | scores; a bad entry fails its own sample |
//! | 200 with anything else, other 2xx, 3xx, 4xx | the group fails, no other try |
//! | 408, 425, 429, 5xx, refused, reset, late | tried again, with backoff, behind the breaker |
use crate::exchange::{self, excerpt};
use crate::guard::{Failure, Guard, GuardOptions, seconds};
use crate::reward::{Reward, ScoreInput, failed};
use async_trait::async_trait;
use cohort_actors::backoff::BackoffPolicy;
use cohort_protocol::ScoreOutcome;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use ureq::Agent;

/// Longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 64 << 20;
/// How long the client may take to notice its own deadline.
const MARGIN: Duration = Duration::from_secs(2);
/// Version of the request's shape, its field `version`.
const VERSION: u64 = 1;

/// Keys of `type = "http"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    /// The endpoint, `http://` or `https://`.
    pub url: String,
    /// Headers of every request. Default: none. Secrets belong into `token_env`.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Environment variable whose value is sent as `Authorization: Bearer ..`. Default: none.
    #[serde(default)]
    pub token_env: Option<String>,
    /// Seconds for one try, connecting included. Default 30.
    #[serde(default = "thirty")]
    pub timeout_s: f64,
    /// Tries for one group, the first included. Default 4.
    #[serde(default = "four")]
    pub attempts: u32,
    /// First wait between tries in seconds; doubled each time, with jitter. Default 1.
    #[serde(default = "one")]
    pub backoff_s: f64,
    /// Longest wait between tries in seconds. Default 60.
    #[serde(default = "sixty")]
    pub max_backoff_s: f64,
    /// Seconds that one group may wait between tries in all, an open circuit breaker included. Default 120.
    #[serde(default = "two_minutes")]
    pub patience_s: f64,
}

fn one() -> f64 {
    1.0
}
fn four() -> u32 {
    4
}
fn thirty() -> f64 {
    30.0
}
fn sixty() -> f64 {
    60.0
}
fn two_minutes() -> f64 {
    120.0
}

/// The reward.
pub struct HttpReward {
    name: String,
    client: Arc<Client>,
    guard: Guard,
}

struct Client {
    agent: Agent,
    url: String,
    headers: Vec<(String, String)>,
    timeout: Duration,
}

impl HttpReward {
    /// Checks the keys; reaches nothing yet.
    pub fn new(name: &str, config: HttpConfig) -> Result<Self, String> {
        if !(config.url.starts_with("http://") || config.url.starts_with("https://")) {
            return Err(format!("url = {:?}: expected http:// or https://", config.url));
        }
        let timeout = seconds("timeout_s", config.timeout_s)?;
        let mut headers: Vec<(String, String)> = config.headers.into_iter().collect();
        if let Some(variable) = &config.token_env {
            let token = std::env::var(variable)
                .map_err(|_| format!("token_env = {variable:?}: there is no such environment variable; set it before launch"))?;
            headers.push(("Authorization".to_owned(), format!("Bearer {token}")));
        }
        let guard = Guard::new(
            name,
            GuardOptions {
                attempts: config.attempts,
                // The client keeps `timeout`; this one is for a thread that is stuck in the system's resolver.
                deadline: timeout.saturating_add(MARGIN),
                slow_after: timeout,
                patience: seconds("patience_s", config.patience_s)?,
                backoff: BackoffPolicy {
                    base: seconds("backoff_s", config.backoff_s)?,
                    max: seconds("max_backoff_s", config.max_backoff_s)?,
                    jitter: 0.5,
                    first_at_once: false,
                },
            },
        )?;
        let agent = Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("cohort/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Self { name: name.to_owned(), client: Arc::new(Client { agent, url: config.url, headers, timeout }), guard })
    }

    async fn ask(&self, body: Arc<[u8]>) -> Result<Value, Failure> {
        let client = self.client.clone();
        let answered = tokio::task::spawn_blocking(move || client.post(&body)).await;
        answered.unwrap_or_else(|e| Err(Failure::Fatal(format!("the request's task ended: {e}"))))
    }
}

impl Client {
    fn post(&self, body: &[u8]) -> Result<Value, Failure> {
        let mut request = self.agent.post(&self.url).content_type("application/json");
        for (key, value) in &self.headers {
            request = request.header(key, value);
        }
        let mut response = request.send(body).map_err(|e| self.unreached(e))?;
        let status = response.status().as_u16();
        let text = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec().map_err(|e| self.unreached(e))?;
        match status {
            200 => exchange::parse(&text).map_err(|why| Failure::Fatal(format!("{}: {why}", self.url))),
            408 | 425 | 429 | 500.. => Err(Failure::Retryable(format!("{} answered {status}: {}", self.url, excerpt(&text)))),
            _ => Err(Failure::Fatal(format!("{} answered {status}, expected 200: {}", self.url, excerpt(&text)))),
        }
    }

    fn unreached(&self, error: ureq::Error) -> Failure {
        use ureq::Error as E;
        let (url, timeout) = (&self.url, self.timeout);
        match error {
            E::Timeout(_) => Failure::Retryable(format!("{url} did not answer within {timeout:?} (timeout_s)")),
            E::BadUri(why) => Failure::Fatal(format!("url = {url:?}: {why}")),
            E::BodyExceedsLimit(limit) => Failure::Fatal(format!("{url} answered more than {limit} bytes")),
            E::Http(why) => Failure::Fatal(format!("the request to {url} cannot be made: {why}; check url and headers")),
            other => Failure::Retryable(format!("{url} cannot be reached: {other}")),
        }
    }
}

#[async_trait]
impl Reward for HttpReward {
    fn name(&self) -> &str {
        &self.name
    }

    async fn score(&self, input: &ScoreInput) -> Vec<ScoreOutcome> {
        let mut question = exchange::question(input);
        question.insert("version".to_owned(), VERSION.into());
        let body: Arc<[u8]> = Value::Object(question).to_string().into_bytes().into();
        let count = input.samples.len();
        let answered = self.guard.call(|| self.ask(body.clone())).await;
        match answered.and_then(|answer| exchange::outcomes(&self.name, &answer, count).map_err(Failure::Fatal)) {
            Ok(outcomes) => outcomes,
            Err(failure) => vec![failed(&self.name, failure.why(), failure.retryable()); count],
        }
    }

    fn longest(&self) -> Duration {
        self.guard.longest()
    }

    fn breakers(&self) -> Vec<(String, String)> {
        vec![(self.name.clone(), self.guard.state())]
    }
}
