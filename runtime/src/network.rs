//! A pod's network: the interfaces of the network namespace this process is in, joined to the guest's.
//!
//! Each interface gets a tap device, and the two are joined by tc redirection in both directions: all that arrives on
//! one leaves through the other. The guest takes over the interface's MAC and addresses, which stay on the host's
//! interface too: engines look at them there, and what arrives never gets as far as the host's own stack. The
//! interface's counters count what the pod sends and receives, as for any container.
//!
//! Everything lives in the pod's namespace or hangs on a descriptor, and vanishes with it.

mod discover;
mod tap;
#[cfg(test)]
mod tests;

use std::io;

use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use monohull_protocol::agent as proto;
use rtnetlink::{LinkUnspec, MulticastGroup};

use crate::vm::{Vm, VmError};
use discover::{Found, Interface};
use tap::Tap;
pub(crate) use tap::is_ours as is_tap;

/// NICs of a pod's VM, whatever the pod has: Docker and nerdctl attach it to its networks after it is created, and VMs that
/// are alike can be forked from one template.
pub(crate) const NICS: u8 = 3;
/// NICs of a VM whose pod has more interfaces than [`NICS`], and so the most interfaces of a pod.
const MAX_NICS: u8 = 8;

/// The loopback device in every namespace (`LOOPBACK_IFINDEX` of linux/net_namespace.h).
const LOOPBACK: u32 = 1;

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
    /// The namespace has another pod's tap device.
    #[error(
        "the network namespace is joined to another pod's VM ({0} is there): \
         containers that share a network must be of one pod"
    )]
    Taken(String),
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
    /// By number: what each of the VM's NICs serves.
    nics: Vec<Option<Joined>>,
}

/// An interface of the host and its tap.
#[derive(Debug)]
struct Joined {
    /// The interface's index.
    interface: u32,
    tap: Tap,
}

impl Network {
    /// Reads the current network namespace.
    pub(crate) async fn discover() -> Result<Self, NetworkError> {
        let found = Found::read(&discover::connect()?, &[]).await?;
        let interfaces = found.interfaces.len();
        let fits = |nics: &u8| interfaces <= usize::from(*nics);
        let wanted = [NICS, MAX_NICS].into_iter().find(fits).ok_or_else(|| too_many(interfaces))?;
        Ok(Self { found, nics: (0..wanted).map(|_| None).collect() })
    }

    /// How many NICs the VM needs. Their number is fixed at its start.
    pub(crate) fn nics(&self) -> u8 {
        // At most MAX_NICS.
        u8::try_from(self.nics.len()).unwrap_or(MAX_NICS)
    }

    /// Reads the namespace again; says whether anything has changed.
    pub(crate) async fn refresh(&mut self) -> Result<bool, NetworkError> {
        let taps: Vec<u32> = self.nics.iter().flatten().map(|joined| joined.tap.index).collect();
        let found = Found::read(&discover::connect()?, &taps).await?;
        let changed = found != self.found;
        self.found = found;
        Ok(changed)
    }

    /// Joins those interfaces that are not yet, and gives up the taps of those that are gone.
    pub(crate) async fn attach(&mut self, vm: &Vm) -> Result<(), NetworkError> {
        let handle = discover::connect()?;
        for slot in &mut self.nics {
            let Some(joined) = slot else { continue };
            match self.found.interfaces.iter().find(|interface| interface.index == joined.interface) {
                Some(interface) => joined.tap.follow(&handle, interface).await?,
                None => {
                    joined.tap.remove(&handle).await?;
                    *slot = None;
                }
            }
        }
        for interface in &self.found.interfaces {
            let mut all = self.nics.iter().flatten();
            if all.any(|joined| joined.interface == interface.index) {
                continue;
            }
            let (nic, slot) =
                (0..).zip(&mut self.nics).find(|(_, slot)| slot.is_none()).ok_or_else(|| {
                    NetworkError::Unsupported(format!(
                        "interface {} appeared after the start, and all of the VM's {} are in use",
                        interface.name,
                        self.found.interfaces.len() - 1
                    ))
                })?;
            let (tap, descriptor) = Tap::join(&handle, interface).await?;
            if let Err(error) = vm.attach_nic(nic, descriptor).await {
                tap::end_redirection(&handle, interface.index).await?;
                return Err(NetworkError::Vm(error));
            }
            *slot = Some(Joined { interface: interface.index, tap });
        }
        Ok(())
    }

    /// Gives the interfaces back to the host's own stack: a namespace may outlive its pod. All of them: joining one may have been
    /// given up half-way.
    pub(crate) async fn detach(&mut self) -> Result<(), NetworkError> {
        self.nics.fill_with(|| None);
        self.found.give_back(&discover::connect()?).await
    }

    /// What the agent is told: all that was found. The interfaces must be joined.
    pub(crate) fn request(&self) -> proto::Network {
        let nic = |interface: &Interface| {
            let serves =
                |slot: &Option<Joined>| slot.as_ref().is_some_and(|j| j.interface == interface.index);
            self.nics.iter().position(serves).and_then(|nic| u32::try_from(nic).ok())
        };
        let interfaces = self.found.interfaces.iter().filter_map(|interface| {
            Some(proto::Interface {
                name: interface.name.clone(),
                nic: nic(interface)?,
                mac: interface.mac.clone(),
                mtu: interface.mtu,
                index: interface.index,
                no_arp: interface.no_arp,
                ipv6: interface.ipv6.clone(),
                ..Default::default()
            })
        });
        proto::Network {
            interfaces: interfaces.collect(),
            entries: self.found.entries.clone(),
            ..Default::default()
        }
    }
}

fn too_many(interfaces: usize) -> NetworkError {
    NetworkError::Unsupported(format!("it has {interfaces} interfaces, at most {MAX_NICS} can be joined"))
}

/// Gives the interfaces of the current network namespace back to the host's own stack, for a pod whose owner has died. If a pod
/// lives in it, which is another one then, nothing is changed.
pub async fn give_back() -> Result<(), NetworkError> {
    let handle = discover::connect()?;
    match Found::read(&handle, &[]).await {
        Ok(found) => found.give_back(&handle).await,
        Err(NetworkError::Taken(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Brings the loopback device of the current namespace up: in a namespace of our own nobody else does.
pub(crate) async fn bring_up_loopback() -> Result<(), NetworkError> {
    let up = LinkUnspec::new_with_index(LOOPBACK).up().build();
    let result = discover::connect()?.link().set(up).execute().await;
    result.map_err(|e| NetworkError::Netlink("bring up the loopback device".into(), e))
}

/// What the kernel says when the network namespace changes.
pub(crate) struct Changes {
    messages: BoxStream<'static, ()>,
    /// The connection lives as long as this.
    _handle: rtnetlink::Handle,
}

impl Changes {
    /// Of the current namespace, from here on.
    pub(crate) fn subscribe() -> Result<Self, NetworkError> {
        use MulticastGroup as Group;
        let groups = [
            Group::Link,
            Group::Ipv4Ifaddr,
            Group::Ipv6Ifaddr,
            Group::Ipv4Route,
            Group::Ipv6Route,
            Group::Ipv4Rule,
            Group::Ipv6Rule,
        ];
        let (connection, handle, messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(NetworkError::Connect)?;
        tokio::spawn(connection);
        Ok(Self { messages: messages.map(drop).boxed(), _handle: handle })
    }

    /// Waits for a change, and takes all that have been told with it. `None` when there will be no more.
    pub(crate) async fn next(&mut self) -> Option<()> {
        self.messages.next().await?;
        while self.messages.next().now_or_never().flatten().is_some() {}
        Some(())
    }
}
