//! The glue of processes: supervision, circuit breakers, admission credits, transports.
pub mod transport;
