//! Programs that mean harm, graded with, confined: each one's outcome is an error that names the plug-in, or an honest score
//! where no harm could be done; never a 0 by failure. Then the host grades on with an honest one, and nothing of the program
//! runs or lies around. Where it is cheap and safe, the same program is shown to succeed unconfined: so a test can fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg(target_os = "linux")]
mod attack;
mod files;
mod floods;
mod others;
mod processes;
mod protocol;
mod resources;
