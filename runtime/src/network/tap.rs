//! A tap device, and its other half of the wire: tc redirection between it and an interface.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use futures_util::TryStreamExt;
use rtnetlink::{Handle, LinkUnspec};

use super::NetworkError;
use super::discover::Interface;
use crate::sys;

/// The kernel puts a number in. The namespace is the pod's, so nothing else has such names.
const NAMES: &str = "mh%d";
/// `ETH_P_ALL` of linux/if_ether.h as the kernel wants it in a filter: in network byte order.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();

/// Makes a tap device and joins it with `interface`, both ways. The tap goes with its descriptor, and with it its
/// side of the redirection.
pub(super) async fn join(handle: &Handle, interface: &Interface) -> Result<OwnedFd, NetworkError> {
    let (tap, name) =
        make().map_err(|source| NetworkError::Tap { interface: interface.name.clone(), source })?;
    let index = index_of(handle, &name).await?;
    let up = LinkUnspec::new_with_index(index).mtu(interface.mtu).up().build();
    let result = handle.link().set(up).execute().await;
    result.map_err(|e| NetworkError::Netlink(format!("bring tap device {name} up"), e))?;
    redirect(handle, (index, &name), (interface.index, &interface.name)).await?;
    redirect(handle, (interface.index, &interface.name), (index, &name)).await?;
    Ok(tap)
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

/// Sends all that arrives on one device out of another.
async fn redirect(handle: &Handle, from: (u32, &str), to: (u32, &str)) -> Result<(), NetworkError> {
    let ((from, from_name), (to, to_name)) = (from, to);
    let index =
        i32::try_from(from).map_err(|_| NetworkError::Unsupported(format!("interface index {from}")))?;
    match handle.qdisc().add(index).ingress().execute().await {
        Err(e) if !exists(&e) => {
            return Err(NetworkError::Netlink(format!("add an ingress queue to {from_name}"), e));
        }
        _ => {}
    }
    let failed = |e| NetworkError::Netlink(format!("redirect {from_name} to {to_name}"), e);
    let mut filters = handle.traffic_filter(index);
    let filter = filters.add().ingress().protocol(ALL_PROTOCOLS).redirect(to).map_err(failed)?;
    filter.execute().await.map_err(failed)
}

/// The namespace's own network plugin may have put an ingress queue there already.
fn exists(error: &rtnetlink::Error) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -libc::EEXIST)
}
