//! openraft's own tests of a storage; three keepers in one process, whose lines are cut and who fall and rise again.
mod losses;
mod net;
mod suite;
