//! What the workspace's own tests share: golden numbers, how to find the real model, whole runs and what disturbs them.

pub mod cgroup;
pub mod golden;
pub mod hosts;
pub mod launch;
pub mod netns;
pub mod relay;
mod wrapped;
