//! Reading a network namespace: which interfaces the guest is to have, and what belongs to them.

mod entries;

use std::collections::HashMap;
use std::fs;

use futures_util::{Stream, TryStreamExt};
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::{NetworkError, tap};
use entries::Entries;

/// Length of an Ethernet address.
const MAC_LENGTH: usize = 6;
/// The settings of an interface that the guest's is to have as well, below `/proc/sys/net/ipv6/conf/NAME`.
const IPV6_SETTINGS: [&str; 2] = ["disable_ipv6", "accept_ra"];

/// A netlink connection in the namespace of the calling thread.
pub(super) fn connect() -> Result<Handle, NetworkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Connect)?;
    // Ends when the handle is dropped.
    tokio::spawn(connection);
    Ok(handle)
}

/// An interface that the guest is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: Vec<u8>,
    pub(super) mtu: u32,
    pub(super) no_arp: bool,
    pub(super) ipv6: HashMap<String, String>,
}

impl Interface {
    /// Whether the kernel makes addresses and routes for it from what IPv6 routers say.
    fn accepts_ra(&self) -> bool {
        self.ipv6.get("accept_ra").is_some_and(|value| value != "0")
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Found {
    pub(super) interfaces: Vec<Interface>,
    /// Addresses, routes, neighbours and rules in the form and order of agent.proto.
    pub(super) entries: Vec<Vec<u8>>,
}

impl Found {
    /// Reads the namespace that `handle` is in. `taps` are the indexes of our own devices there.
    pub(super) async fn read(handle: &Handle, taps: &[u32]) -> Result<Self, NetworkError> {
        let mut interfaces = Vec::new();
        for link in all("list interfaces", handle.link().get().execute()).await? {
            if !taps.contains(&link.header.index) {
                interfaces.extend(interface(&link)?);
            }
        }
        let mut entries = Entries::default();
        // Without interfaces there is nothing else that could matter to a guest.
        if !interfaces.is_empty() {
            for address in all("list addresses", handle.address().get().execute()).await? {
                entries.add_address(address, &interfaces);
            }
            for version in [IpVersion::V4, IpVersion::V6] {
                let any = match version {
                    IpVersion::V4 => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
                    IpVersion::V6 => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
                };
                for route in all("list routes", handle.route().get(any).execute()).await? {
                    entries.add_route(route, &interfaces)?;
                }
                for rule in all("list rules", handle.rule().get(version).execute()).await? {
                    entries.add_rule(rule);
                }
            }
            for neighbour in all("list neighbours", handle.neighbours().get().execute()).await? {
                entries.add_neighbour(neighbour, &interfaces);
            }
        }
        Ok(Self { interfaces, entries: entries.in_order() })
    }

    /// Ends the redirections of all interfaces.
    pub(super) async fn give_back(&self, handle: &Handle) -> Result<(), NetworkError> {
        for interface in &self.interfaces {
            tap::end_redirection(handle, interface.index).await?;
        }
        Ok(())
    }
}

async fn all<T>(
    what: &'static str,
    stream: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, NetworkError> {
    stream.try_collect().await.map_err(|e| NetworkError::Netlink(what.into(), e))
}

/// The interface of a link, if the guest is to have it: one that is up, and not the loopback device or the port of
/// another one. The tunnels that the kernel puts into every namespace are down.
fn interface(link: &LinkMessage) -> Result<Option<Interface>, NetworkError> {
    let header = &link.header;
    if !header.flags.contains(LinkFlags::Up) || header.flags.contains(LinkFlags::Loopback) {
        return Ok(None);
    }
    let no_arp = header.flags.contains(LinkFlags::Noarp);
    let mut interface = Interface { index: header.index, no_arp, ..Interface::default() };
    let mut kind = None;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Address(mac) => interface.mac.clone_from(mac),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Controller(_) => return Ok(None),
            LinkAttribute::LinkInfo(infos) => kind = infos.iter().find_map(info_kind),
            _ => {}
        }
    }
    let name = &interface.name;
    if kind == Some(&InfoKind::Tun) && tap::is_ours(name) {
        return Err(NetworkError::Taken(name.clone()));
    }
    if header.link_layer_type != LinkLayerType::Ether || interface.mac.len() != MAC_LENGTH {
        let kind = kind.map_or_else(|| format!("{:?}", header.link_layer_type), ToString::to_string);
        let text = format!("interface {name} is of kind {kind}, which has no Ethernet frames");
        return Err(NetworkError::Unsupported(text));
    }
    interface.ipv6 = ipv6_settings(name);
    Ok(Some(interface))
}

fn info_kind(info: &LinkInfo) -> Option<&InfoKind> {
    if let LinkInfo::Kind(kind) = info { Some(kind) } else { None }
}

/// A host without IPv6 has none.
fn ipv6_settings(interface: &str) -> HashMap<String, String> {
    let read = |key: &&str| {
        let value = fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{interface}/{key}")).ok()?;
        Some(((*key).to_owned(), value.trim().to_owned()))
    };
    IPV6_SETTINGS.iter().filter_map(read).collect()
}
