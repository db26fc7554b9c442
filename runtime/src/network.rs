//! A pod's network: the interfaces of the network namespace this process is in, joined to the guest's.
//!
//! Each interface gets a tap device, and the two are joined by tc redirection in both directions: all that arrives on
//! one leaves through the other. The guest takes over the interface's MAC and addresses, which stay on the host's
//! interface too: engines look at them there, and what arrives never gets as far as the host's own stack.
//!
//! Everything lives in the pod's namespace or hangs on a descriptor, and vanishes with it.

mod discover;
mod tap;
#[cfg(test)]
mod tests;

use std::io;

use monohull_protocol::agent as proto;

use crate::vm::{Vm, VmError};
use discover::Found;

/// Most interfaces of a pod; each costs the guest a device.
const MAX_NICS: u8 = 8;

/// Why a pod's network can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The kernel does not talk to us.
    #[error("cannot open a netlink socket")]
    Connect(#[source] io::Error),
    /// A netlink request failed.
    #[error("cannot {0}")]
    Netlink(String, #[source] rtnetlink::Error),
    /// A tap device can't be made.
    #[error("cannot make a tap device for interface {interface}; is the tun module loaded?")]
    Tap {
        /// The interface it is for.
        interface: String,
        /// The reason.
        source: io::Error,
    },
    /// Something in the namespace can't be carried over.
    #[error("the pod's network can't be joined to the guest: {0}")]
    Unsupported(String),
    /// The VMM.
    #[error(transparent)]
    Vm(VmError),
}

/// The network of a pod and how far the guest has it.
#[derive(Debug)]
pub(crate) struct Network {
    found: Found,
    /// Host interface indexes, in the order of the VM's NICs that serve them.
    joined: Vec<u32>,
    nics: u8,
}

impl Network {
    /// Reads the current network namespace.
    pub(crate) async fn discover() -> Result<Self, NetworkError> {
        let found = Found::read(&discover::connect()?).await?;
        let nics = u8::try_from(found.interfaces.len()).unwrap_or(u8::MAX);
        if nics > MAX_NICS {
            return Err(NetworkError::Unsupported(format!(
                "it has {nics} interfaces, at most {MAX_NICS} can be joined"
            )));
        }
        // A spare one: Docker and nerdctl attach the pod to its network after it is created.
        Ok(Self { found, joined: Vec::new(), nics: nics.max(1) })
    }

    /// How many NICs the VM needs. Their number is fixed at its start.
    pub(crate) fn nics(&self) -> u8 {
        self.nics
    }

    /// Reads the namespace again; says whether anything has changed.
    pub(crate) async fn refresh(&mut self) -> Result<bool, NetworkError> {
        let found = Found::read(&discover::connect()?).await?;
        let changed = found != self.found;
        self.found = found;
        Ok(changed)
    }

    /// Joins those interfaces that are not yet.
    pub(crate) async fn attach(&mut self, vm: &Vm) -> Result<(), NetworkError> {
        for interface in &self.found.interfaces {
            if self.joined.contains(&interface.index) {
                continue;
            }
            let nic =
                u8::try_from(self.joined.len()).ok().filter(|nic| *nic < self.nics).ok_or_else(|| {
                    NetworkError::Unsupported(format!(
                        "interface {} appeared after the start, and all {} of the VM's are in use",
                        interface.name, self.nics
                    ))
                })?;
            let tap = tap::join(&discover::connect()?, interface).await?;
            vm.attach_nic(nic, tap).await.map_err(NetworkError::Vm)?;
            self.joined.push(interface.index);
        }
        Ok(())
    }

    /// What the agent is told: all interfaces that are joined, and what belongs to them.
    pub(crate) fn request(&self) -> proto::Network {
        self.found.request(&self.joined)
    }
}
