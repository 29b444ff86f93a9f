//! What goes over the wire and onto the disk: ids, trajectories, leases, scores, intents and the messages between
//! processes, with their codec, versions and limits. No tokio, no candle: this crate can be read alone.
//!
//! Invariants
//! - **P1** a frame's length is checked against [`limits`] before anything is allocated, trailing bytes are refused.
//! - **P2** an unknown direction or tag is a [`CodecError`], never a panic; removed tags stay listed and are never reused.
//! - **P3** token ids, masks and log-probs travel as little-endian byte columns and come back as the same bits.
//! - **P4** integers on the wire have a fixed width; there is no `usize` in a wire type.
//!
//! Files: `ids` names; `conversation` turns; `trajectory` what a rollout worker made, `partial` before it is complete; `lease` what it was asked for;
//! `score` what graders said; `intent` what one step consumes; `keeping` what a ledger of several hosts is told; `messages/` one file a direction; `frame` and `codec` bytes;
//! `export` the JSON shapes for people.

pub mod codec;
pub mod conversation;
pub mod export;
pub mod frame;
pub mod ids;
pub mod intent;
pub mod keeping;
pub mod lease;
pub mod limits;
pub mod messages;
pub mod partial;
pub mod score;
pub mod trajectory;
pub mod version;

pub use codec::CodecError;
pub use conversation::{ToolCall, ToolResult, Turn, TurnRole};
pub use frame::Frame;
pub use ids::*;
pub use intent::{GroupPayload, StepCommit, StepIntent};
pub use lease::{GroupLease, LeasePurpose, SampledItem, SamplingParams};
pub use partial::{TurnEnd, TurnPart};
pub use score::{Breakdown, Score, ScoreOutcome, ScoredTrajectory};
pub use trajectory::{FinishReason, Trajectory, TrajectoryBatch, VersionSpan};
