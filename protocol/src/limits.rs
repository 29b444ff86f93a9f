//! Upper bounds, checked before allocation.

/// One control frame's body, in bytes.
pub const MAX_CONTROL_BODY: usize = 4 << 20;
/// One bulk frame's body (a trajectory batch, a step's groups), in bytes.
pub const MAX_BULK_BODY: usize = 256 << 20;
/// Tokens of one trajectory.
pub const MAX_TOKENS: usize = 1 << 20;
/// Samples of one group.
pub const MAX_GROUP: usize = 4096;
