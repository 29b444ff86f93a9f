//! The glue of processes: transports, links, supervision, circuit breakers, admission credits.
//!
//! Invariants
//! - **A1** nothing here waits for ever: every call takes a deadline or a [`Shutdown`], and its error names the stuck party.
//! - **A2** every queue is bounded; its owner's documentation names what happens when it is full.
//! - **A3** decisions (`supervision::state`, `breaker::state`, `backoff`) are pure: time comes in as an argument, random
//!   numbers from a seed. Tasks around them only carry the decisions out.
//! - **A4** bytes of a peer never panic and never allocate more than [`cohort_protocol::limits`] allow.
//!
//! Files: `transport/` frames between processes; `link/` the typed session of a worker and its coordinator on top; `certs`
//! the run's own certificate authority; `supervision/` restarts of actors and child processes; `confine/` child processes that nobody need trust; `breaker/` calls to things
//! that may be down; `credits` bounds what ractor's unbounded mailboxes hold; `shutdown`, `parent` and `crash` how
//! processes end: asked to, orphaned, or killed by a test; `backoff` how long to wait before the next try; `wall` the time of day, for certificates, tokens and people.

pub mod backoff;
pub mod breaker;
pub mod certs;
pub mod confine;
pub mod crash;
pub mod credits;
pub mod link;
pub mod parent;
pub mod shutdown;
pub mod supervision;
pub mod transport;
pub mod wall;

pub use breaker::{Breaker, BreakerPolicy, CallError, RetryPolicy, retry};
pub use credits::{BoundedRef, Credit, Credited, Credits};
pub use link::{
    AcceptTerms, Admitted, LinkError, LinkOptions, LinkSender, PeerLink, PeerSender, WorkerLink, accept_node, accept_worker,
    enrol,
};
pub use shutdown::Shutdown;
pub use supervision::{ChildId, Escalation, Exit, Restart, Strategy, SupervisionPolicy};
pub use transport::{Ack, Connection, Deadlines, Dialer, Inbound, Listener, Traffic, TransportError};
