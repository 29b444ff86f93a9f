//! The sections that belong to the cluster itself; the others are the roles' own.
use cohort_actors::transport::reach::Carrier;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;

/// How many workers run where, and what they may use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// Rollout workers of this host: how many generate groups at the same time. The weights after a step do not depend on it. 0: other
    /// hosts bring them, which needs `listen`.
    pub rollout: u16,
    /// Reward workers of this host: how many grade groups at the same time. 0: other hosts bring them, which needs `listen`.
    pub reward: u16,
    /// Learner ranks: how many share the groups of a step, each with weights and gradients of its own, and with moments, unless
    /// `training.shard_optimizer` divides them. `training.logical_shards` must be their number times 1, 2, 4, ..; the weights after a step do not depend on it. Default 1.
    pub learner: NonZeroU16,
    /// How many of the learner ranks run on the head node, the lead among them; the others run on hosts that offer places for
    /// them. Nothing: those for which no host of `nodes` has a place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learner_here: Option<NonZeroU16>,
    /// Groups that one rollout worker generates at once; their samples share the engine's batch.
    pub capacity: NonZeroU16,
    /// Compute threads of each engine; 0 takes all cores.
    pub threads: u16,
    /// Graphics processors of this host that its workers compute on, as `CUDA_VISIBLE_DEVICES` takes them: numbers in the driver's order or
    /// `GPU-..`; nothing: those that this process may use. Only with `model.device = "cuda"`, where every learner rank and rollout worker gets one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// More learner ranks and rollout workers than devices share them, on every host; otherwise that is refused. Costs memory and speed.
    pub colocate: bool,
    /// Run coordinator and workers as processes of their own that talk over the network, instead of inside the launching process.
    pub processes: bool,
    /// Where other hosts join, as `0.0.0.0:7400` or `10.0.0.1:7400`; nothing: the run keeps to this host. Needs
    /// `processes = true`. Workers connect to the next port, weights are served on the one after it, learner ranks meet at the
    /// third; all four on UDP and TCP (`transport`), with mutual certificates of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// What carries messages between processes: `auto` is QUIC, and TCP for whom UDP does not reach; `quic` and `tcp` are that
    /// alone. Needs `processes = true`.
    pub transport: TransportChoice,
    /// Name or address by which other hosts find this one; nothing: the address of `listen`, or this host's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
    /// Hosts that the head node starts by `launcher`; others join by hand.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeConfig>,
    /// The command that starts a host's agent, word by word; it must end up in `cluster join` on that host with its standard
    /// input, from which the token is read. `{address}`, `{head}`, `{roles}` and `{dir}` are filled in, and `{devices}`, which becomes
    /// `--devices=..`, or no word where the host names none. Under Slurm:
    /// `["srun", "--nodes=1", "--ntasks=1", "--nodelist={address}", "cluster", "join", "{head}", "--token-file", "-",
    /// "--roles", "{roles}", "--dir", "{dir}"]`.
    pub launcher: Vec<String>,
    /// Seconds that a run without any rollout worker, or without any reward worker, waits for a host that offers some; then it ends, ready
    /// to be resumed. A paused run waits without end.
    pub join_patience_s: NonZeroU32,
    /// Seconds that a run whose disk is full pauses and waits for room, at the ledger or at a checkpoint; then it ends, ready to be resumed.
    /// 0: it ends at once.
    pub full_disk_patience_s: u32,
    /// Bounds within which the number of rollout workers follows the learner's waiting; nothing: it stays as it is. Needs
    /// `processes = true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoscale: Option<AutoscaleConfig>,
    /// Hosts that keep the ledger together, so that the run outlives the host it runs on; nothing: this host alone does. Needs `processes = true`;
    /// the run is then made by `cluster launch --prepare` and started by `cluster keep` on each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standby: Option<StandbyConfig>,
    /// Where health and metrics are served over HTTP, as `127.0.0.1:9400`: `/livez`, `/readyz` and, for Prometheus,
    /// `/metrics`; nothing: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<SocketAddr>,
    /// File with the bearer token that `/metrics` asks for; needed where `http` is not a loopback address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_token_file: Option<PathBuf>,
    /// Folder in which run directories are made. Must be on a local disk: the ledger is no friend of NFS or Lustre.
    pub run_root: PathBuf,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        const ONE: NonZeroU16 = NonZeroU16::MIN;
        Self {
            rollout: 1,
            reward: 1,
            learner: ONE,
            learner_here: None,
            capacity: ONE.saturating_add(7),
            threads: 0,
            devices: Vec::new(),
            colocate: false,
            processes: false,
            listen: None,
            transport: TransportChoice::Auto,
            advertise: None,
            join_patience_s: NonZeroU32::MIN.saturating_add(599),
            full_disk_patience_s: 600,
            autoscale: None,
            standby: None,
            http: None,
            http_token_file: None,
            nodes: Vec::new(),
            launcher: [
                "ssh",
                "-o",
                "BatchMode=yes",
                "{address}",
                "cluster",
                "join",
                "{head}",
                "--token-file",
                "-",
                "--roles",
                "{roles}",
                "--dir",
                "{dir}",
                "{devices}",
            ]
            .map(str::to_owned)
            .to_vec(),
            run_root: PathBuf::from("runs"),
        }
    }
}

/// What carries messages between the processes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TransportChoice {
    /// QUIC; TCP where UDP does not pass, which is said in the log.
    #[default]
    Auto,
    /// QUIC, over UDP.
    Quic,
    /// TLS over TCP.
    Tcp,
}

impl From<TransportChoice> for Carrier {
    fn from(choice: TransportChoice) -> Self {
        match choice {
            TransportChoice::Auto => Self::Auto,
            TransportChoice::Quic => Self::Quic,
            TransportChoice::Tcp => Self::Tcp,
        }
    }
}

/// How many rollout workers there may be, all hosts together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AutoscaleConfig {
    /// At least so many.
    pub rollout_min: NonZeroU16,
    /// At most so many.
    pub rollout_max: NonZeroU16,
}

/// Hosts that keep the ledger together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StandbyConfig {
    /// Where each of them is asked by the others, as `["10.0.0.1:7404", "10.0.0.2:7404", "10.0.0.3:7404"]`: three, five or seven, each on a host of its
    /// own, on UDP and TCP (`transport`), with mutual certificates of the run. Most of them must be there for the run to go on. They are the
    /// run's from its first start on, in this order.
    pub keepers: Vec<SocketAddr>,
}

/// A host that the head node starts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// What `{address}` of the launcher stands for: a name that ssh knows, a node of Slurm.
    pub address: String,
    /// Rollout workers that it offers to run.
    pub rollout: u16,
    /// Reward workers that it offers to run.
    pub reward: u16,
    /// Learner ranks that it offers to run.
    pub learner: u16,
    /// Its graphics processors for them, as `cluster.devices` names those of the head node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What is written about a run besides its metrics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoggingConfig {
    /// Least level written to `logs/`, as `info` or `info,cohort_actors=debug` (the filter syntax of tracing).
    pub level: String,
    /// How a log line is written.
    pub format: LogFormat,
    /// Steps between two progress lines where stderr is not a terminal.
    pub every: NonZeroU16,
}

impl Default for LoggingConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text, every: NonZeroU16::MIN.saturating_add(9) }
    }
}
