//! The host side of a pod: everything between a container engine's request and the pod's VM and agent.
//!
//! [`pod::Pod`] owns a VM; [`process::Process`] is one process in it. The shim and `monohull run` are thin users.

pub mod check;
pub mod image;
pub mod pod;
pub mod process;
pub mod rootfs;
pub mod settings;
pub mod state;
pub mod timeline;
