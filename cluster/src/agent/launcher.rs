//! Starts the agents of other hosts by a command of the user's: ssh, srun, or whatever reaches them. The command runs
//! `cluster join` there and gets a fresh token on its standard input; it is started again when it fails, as long as the run
//! lasts.
use super::nodes::enrolment::Enrolment;
use crate::config::{ClusterConfig, NodeConfig};
use crate::progress::{Progress, ProgressSink};
use cohort_actors::backoff::{BackoffPolicy, Jitter};
use cohort_protocol::RunId;
use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// A host is not reached in a moment; one that is down may come back within the hour.
const BACKOFF: BackoffPolicy =
    BackoffPolicy { base: Duration::from_secs(1), max: Duration::from_secs(60), jitter: 0.25, first_at_once: false };
/// A host that stayed so long counts as reached: its next loss is answered at once.
const STABLE: Duration = Duration::from_secs(30);
/// How long a token for one start is good.
const TOKEN_SECONDS: u64 = 600;

/// What is needed to start hosts.
pub(super) struct Launcher {
    pub(super) run: RunId,
    pub(super) cluster: ClusterConfig,
    /// Where the head node listens.
    pub(super) listen: SocketAddr,
    pub(super) logs: PathBuf,
    pub(super) enrolment: Arc<Enrolment>,
    pub(super) progress: Arc<dyn ProgressSink>,
}

impl Launcher {
    /// Starts every configured host and keeps it started until the task is aborted.
    pub(super) fn start(self) -> Vec<tokio::task::JoinHandle<()>> {
        let launcher = Arc::new(self);
        let nodes = launcher.cluster.nodes.clone();
        nodes.into_iter().map(|node| tokio::spawn(launcher.clone().keep(node))).collect()
    }

    async fn keep(self: Arc<Self>, node: NodeConfig) {
        let mut jitter = Jitter::new(self.run.0 ^ node.address.len() as u64);
        let mut failures = 0;
        loop {
            let begun = Instant::now();
            match self.once(&node).await {
                // It left in order: drained, or because the run is over.
                Ok(status) if status.success() => return,
                outcome => {
                    failures = if begun.elapsed() > STABLE { 1 } else { failures + 1 };
                    let why = outcome.map_or_else(|why| why, |status| status.to_string());
                    let log = self.log(&node);
                    let wait = BACKOFF.delay(failures, &mut jitter);
                    let text = format!(
                        "the host {} ended: {why}; {} has its words; started again in {:.0} s",
                        node.address,
                        log.display(),
                        wait.as_secs_f64()
                    );
                    tracing::warn!(target: "cohort::agent", text, "host_ended");
                    self.progress.emit(Progress::Notice(text));
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    fn log(&self, node: &NodeConfig) -> PathBuf {
        let name: String = node.address.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
        self.logs.join(format!("host-{name}.log"))
    }

    async fn once(&self, node: &NodeConfig) -> Result<std::process::ExitStatus, String> {
        let token = self.enrolment.issue(1, TOKEN_SECONDS)?;
        let token = toml::to_string(&token).map_err(|e| e.to_string())?;
        let words = command(&self.cluster, node, &advertised(&self.cluster, self.listen), self.run);
        let Some((program, args)) = words.split_first() else { return Err("cluster.launcher is empty".into()) };
        let log = OpenOptions::new().create(true).append(true).open(self.log(node)).map_err(|e| e.to_string())?;
        let again = log.try_clone().map_err(|e| e.to_string())?;
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(again)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| format!("{program}: {e}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A command that does not read its token says so by failing.
            let _ = stdin.write_all(token.as_bytes()).await;
        }
        child.wait().await.map_err(|e| e.to_string())
    }
}

/// The launcher's words with their places filled in.
fn command(cluster: &ClusterConfig, node: &NodeConfig, head: &str, run: RunId) -> Vec<String> {
    let roles: Vec<String> = [("rollout", node.rollout), ("reward", node.reward), ("learner", node.learner)]
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(role, count)| format!("{role}={count}"))
        .collect();
    let (roles, dir) = (roles.join(","), format!("joined-{:016x}", run.0));
    let fill = |word: &String| {
        word.replace("{address}", &node.address).replace("{head}", head).replace("{roles}", &roles).replace("{dir}", &dir)
    };
    let devices = (!node.devices.is_empty()).then(|| format!("--devices={}", node.devices.join(",")));
    let word = |word: &String| if word == "{devices}" { devices.clone() } else { Some(fill(word)) };
    cluster.launcher.iter().filter_map(word).collect()
}

/// Where other hosts find the head node: as configured; else where it listens; else its name.
pub(super) fn advertised(cluster: &ClusterConfig, listen: SocketAddr) -> String {
    match (&cluster.advertise, listen.ip().is_unspecified()) {
        (Some(name), _) => format!("{name}:{}", listen.port()),
        (None, false) => listen.to_string(),
        (None, true) => {
            format!("{}:{}", host_name(), listen.port())
        }
    }
}

/// What this host calls itself.
pub(crate) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_filled_in_word_by_word() {
        let node = NodeConfig { address: "gpu-2".into(), rollout: 4, reward: 1, learner: 2, ..NodeConfig::default() };
        let words = command(&ClusterConfig::default(), &node, "gpu-1:7400", RunId(0xab));
        let text = words.join(" ");
        assert_eq!(words.first().map(String::as_str), Some("ssh"));
        assert!(
            text.contains(
                " gpu-2 cluster join gpu-1:7400 --token-file - --roles rollout=4,reward=1,learner=2 --dir joined-00000000000000ab"
            ),
            "{text}"
        );
        let named = NodeConfig { devices: vec!["0".into(), "2".into()], ..node.clone() };
        let words = command(&ClusterConfig::default(), &named, "gpu-1:7400", RunId(0xab));
        assert_eq!(words.last().map(String::as_str), Some("--devices=0,2"));
        assert!(!text.contains("devices"), "none are named: {text}");
        let srun = ["srun", "--nodelist={address}", "cluster", "join", "{head}"].map(str::to_owned).to_vec();
        let words = command(&ClusterConfig { launcher: srun, ..ClusterConfig::default() }, &node, "a b:1", RunId(1));
        assert_eq!(words, ["srun", "--nodelist=gpu-2", "cluster", "join", "a b:1"], "a word stays one word");
    }

    #[test]
    fn the_head_node_is_named_so_that_others_find_it() {
        let everywhere = SocketAddr::from(([0, 0, 0, 0], 7400));
        let named = ClusterConfig { advertise: Some("head.example".into()), ..ClusterConfig::default() };
        assert_eq!(advertised(&named, everywhere), "head.example:7400");
        assert_eq!(advertised(&ClusterConfig::default(), SocketAddr::from(([10, 0, 0, 1], 7400))), "10.0.0.1:7400");
        let name = advertised(&ClusterConfig::default(), everywhere);
        assert!(name.ends_with(":7400") && !name.starts_with("0.0.0.0") && name.len() > 5, "{name}");
    }
}
