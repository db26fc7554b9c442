//! Monohull's virtual machine monitor: one process, one VM, one pod.
//!
//! It knows KVM, memory and virtio, and nothing of containers. Its owner speaks to it with the messages of [`api`].

pub mod api;
pub mod devices;
pub mod virtio;
