//! The messages between a pod's owner on the host and the agent in its VM.
//!
//! Generated from `agent.proto`, which is the reference: see its comments for the transport and the errors.

#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::semicolon_if_nothing_returned
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}

pub use generated::{agent, agent_ttrpc};

/// Host port to which the agent opens its RPC connection once it can serve.
pub const RPC_PORT: u32 = 1024;
/// Guest port on which the agent accepts stdio streams.
pub const STDIO_PORT: u32 = 1025;
/// Guest port on which the agent accepts streams to be joined to TCP connections.
pub const FORWARD_PORT: u32 = 1026;
/// Host port to which the agent opens a stream for each connection to a UNIX socket of the host.
pub const SOCKET_PORT: u32 = 1027;
/// Directory in the guest below which each container has its own: mounts, files, bundle.
pub const CONTAINERS: &str = "/run/monohull/containers";
