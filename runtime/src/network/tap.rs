//! A tap device, and its other half of the wire: tc redirection between it and an interface.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcHandle, TcMessage};
use rtnetlink::{Handle, LinkUnspec};

use super::NetworkError;
use super::discover::Interface;
use crate::sys;

/// The kernel puts a number in. The namespace is the pod's, so nothing else has such names.
const NAMES: &str = "mh%d";
/// `ETH_P_ALL` of linux/if_ether.h as the kernel wants it in a filter: in network byte order.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();

/// Where our filters are among those of an ingress queue: where the kernel puts the first that asks for no place, after
/// what a network plugin may want to happen first.
const PRIORITY: u16 = 0xc000;

/// Whether a tap device is some pod's, by its name.
pub(crate) fn is_ours(name: &str) -> bool {
    name.strip_prefix("mh").is_some_and(|number| number.parse::<u32>().is_ok())
}

/// A tap device that is joined to an interface, both ways.
#[derive(Debug, Default)]
pub(super) struct Tap {
    /// In the pod's namespace.
    pub(super) index: u32,
    mtu: u32,
}

impl Tap {
    /// Makes a tap device and joins it with `interface`. It goes with its descriptor, and with it its side of the
    /// redirection.
    pub(super) async fn join(
        handle: &Handle,
        interface: &Interface,
    ) -> Result<(Self, OwnedFd), NetworkError> {
        let (descriptor, name) =
            make().map_err(|source| NetworkError::Tap { interface: interface.name.clone(), source })?;
        let tap = Self { index: index_of(handle, &name).await?, mtu: interface.mtu };
        let up = LinkUnspec::new_with_index(tap.index).mtu(interface.mtu).up().build();
        let result = handle.link().set(up).execute().await;
        result.map_err(|e| NetworkError::Netlink(format!("bring tap device {name} up"), e))?;
        redirect(handle, (tap.index, &name), (interface.index, &interface.name)).await?;
        redirect(handle, (interface.index, &interface.name), (tap.index, &name)).await?;
        Ok((tap, descriptor))
    }

    /// Takes over what may have changed of its interface.
    pub(super) async fn follow(
        &mut self,
        handle: &Handle,
        interface: &Interface,
    ) -> Result<(), NetworkError> {
        if self.mtu != interface.mtu {
            let link = LinkUnspec::new_with_index(self.index).mtu(interface.mtu).build();
            let failed = |e| NetworkError::Netlink(format!("set the MTU of {}'s tap", interface.name), e);
            handle.link().set(link).execute().await.map_err(failed)?;
            self.mtu = interface.mtu;
        }
        Ok(())
    }

    /// Removes the device, whoever holds its descriptor.
    pub(super) async fn remove(&self, handle: &Handle) -> Result<(), NetworkError> {
        match handle.link().del(self.index).execute().await {
            Err(e) if !is(&e, libc::ENODEV) => Err(NetworkError::Netlink("remove a tap device".into(), e)),
            _ => Ok(()),
        }
    }
}

fn make() -> io::Result<(OwnedFd, String)> {
    let tun = File::options().read(true).write(true).open("/dev/net/tun")?;
    let name = sys::tap_create(&tun, NAMES)?;
    // The tap is a wire: the host's own stack has nothing to say on it. A host without IPv6 has no such file.
    match std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1") {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    Ok((tun.into(), name))
}

async fn index_of(handle: &Handle, name: &str) -> Result<u32, NetworkError> {
    let failed = |e| NetworkError::Netlink(format!("find tap device {name}"), e);
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    let link = links.try_next().await.map_err(failed)?;
    link.map(|link| link.header.index).ok_or_else(|| failed(rtnetlink::Error::RequestFailed))
}

/// Sends all that arrives on one device out of another. A redirection of a pod that was in this namespace before, whose
/// tap is gone, is replaced.
async fn redirect(handle: &Handle, from: (u32, &str), to: (u32, &str)) -> Result<(), NetworkError> {
    let ((from, from_name), (to, to_name)) = (from, to);
    match handle.qdisc().add(signed(from)?).ingress().execute().await {
        // The namespace's own network plugin may have put an ingress queue there already.
        Err(e) if !is(&e, libc::EEXIST) => {
            return Err(NetworkError::Netlink(format!("add an ingress queue to {from_name}"), e));
        }
        Err(_) => end_redirection(handle, from).await?,
        Ok(()) => {}
    }
    let failed = |e| NetworkError::Netlink(format!("redirect {from_name} to {to_name}"), e);
    let mut filters = handle.traffic_filter(signed(from)?);
    let filter = filters.add().ingress().priority(PRIORITY).protocol(ALL_PROTOCOLS);
    filter.redirect(to).map_err(failed)?.execute().await.map_err(failed)
}

/// Gives an interface back to the host's own stack.
pub(super) async fn end_redirection(handle: &Handle, interface: u32) -> Result<(), NetworkError> {
    let mut filter = TcMessage::with_index(signed(interface)?);
    filter.header.parent = TcHandle { major: u16::MAX, minor: TcHandle::MIN_INGRESS };
    filter.header.info = TcHandle { major: PRIORITY, minor: ALL_PROTOCOLS }.into();
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::DelTrafficFilter(filter));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let failed = |e| NetworkError::Netlink(format!("end the redirection of interface {interface}"), e);
    let mut answers = handle.clone().request(request).map_err(failed)?;
    while let Some(answer) = answers.next().await {
        // It has none, or no ingress queue for one, or is gone.
        if let NetlinkPayload::Error(error) = answer.payload
            && ![0, libc::ENOENT, libc::EINVAL, libc::ENODEV].contains(&-error.raw_code())
        {
            return Err(failed(rtnetlink::Error::NetlinkError(error)));
        }
    }
    Ok(())
}

/// Traffic control has its interface indexes signed.
fn signed(index: u32) -> Result<i32, NetworkError> {
    i32::try_from(index).map_err(|_| NetworkError::Unsupported(format!("interface index {index}")))
}

fn is(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno)
}
