//! The host side of a pod: everything between a container engine's request and the pod's VM and agent.
//!
//! [`pod::Pod`] owns a VM; [`process::Process`] is one process in it. The shim and `monohull run` are thin users.

pub mod agent;
pub mod cgroup;
pub mod check;
pub mod container;
pub mod device;
pub mod disk;
pub mod exec;
#[cfg(test)]
mod fake;
mod forward;
pub mod image;
pub mod install;
pub mod kubernetes;
pub mod log;
mod meminfo;
pub mod migrate;
mod mirror;
mod mountinfo;
pub mod network;
mod pagemap;
mod patience;
pub mod pod;
pub mod process;
pub mod rootfs;
pub mod security;
pub mod settings;
pub mod share;
pub mod size;
pub mod snapshot;
mod sockets;
pub mod spans;
pub mod spec;
pub mod state;
mod state_file;
mod sys;
pub mod tally;
pub mod template;
pub mod text;
pub mod timeline;
pub mod turn;
pub mod usage;
pub mod vm;
pub mod vsock;

pub use sys::watch as watch_descriptor;

/// The bodies of fuzz targets for what is private otherwise.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    /// An agent that answers with anything.
    pub fn agent(bytes: &[u8]) {
        crate::agent::hostile::run(bytes);
    }

    /// A container image with anything in it.
    pub fn image(bytes: &[u8]) {
        crate::image::hostile::run(bytes);
    }
}
