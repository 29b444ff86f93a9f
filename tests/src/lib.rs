//! What the workspace's own tests share: golden numbers and how to find the real model.

pub mod golden;
pub mod launch;
pub mod netns;
