//! The fs server of a pod: serves host directories to the guest. It never sees guest memory; FUSE requests and replies
//! go through the VMM as `monohull-fs-protocol` says.
//!
//! What it serves is a tree of *exports*, mounts that the pod's owner makes below one directory while the server runs and
//! that reach its mount namespace by propagation. The server itself mounts nothing: [`jail::enter`] leaves it no right to.

pub mod cache;
pub mod jail;
mod names;
pub mod relay;
