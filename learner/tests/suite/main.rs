//! The learner from outside: objectives against PyTorch, steps on a toy model, checkpoints on a disk, the worker's session.
mod checkpoint;
mod losses;
mod step;
mod toy;
mod worker;
