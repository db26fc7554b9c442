//! Reading a network namespace: which interfaces, addresses, routes and neighbours the guest is to have.

use std::net::IpAddr;

use futures_util::{Stream, TryStreamExt};
use monohull_protocol::agent as proto;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteType,
};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::NetworkError;

/// Length of an Ethernet address.
const MAC_LENGTH: usize = 6;

/// A netlink connection in the namespace of the calling thread.
pub(super) fn connect() -> Result<Handle, NetworkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Connect)?;
    // Ends when the handle is dropped.
    tokio::spawn(connection);
    Ok(handle)
}

/// An interface that the guest is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: Vec<u8>,
    pub(super) mtu: u32,
    /// With prefix lengths.
    pub(super) addresses: Vec<String>,
}

/// What was found. Routes and neighbours name their interface by its index.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Found {
    pub(super) interfaces: Vec<Interface>,
    routes: Vec<(u32, proto::Route)>,
    neighbours: Vec<(u32, proto::Neighbour)>,
}

impl Found {
    pub(super) async fn read(handle: &Handle) -> Result<Self, NetworkError> {
        let mut found = Self::default();
        let links = all("list interfaces", handle.link().get().execute()).await?;
        found.interfaces = links.iter().filter_map(interface).collect();
        for message in all("list addresses", handle.address().get().execute()).await? {
            found.add_address(&message);
        }
        for version in [IpVersion::V4, IpVersion::V6] {
            let any = match version {
                IpVersion::V4 => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
                IpVersion::V6 => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
            };
            for message in all("list routes", handle.route().get(any).execute()).await? {
                found.add_route(&message)?;
            }
        }
        for message in all("list neighbours", handle.neighbours().get().execute()).await? {
            found.add_neighbour(&message);
        }
        Ok(found)
    }

    fn interface(&mut self, index: u32) -> Option<&mut Interface> {
        self.interfaces.iter_mut().find(|interface| interface.index == index)
    }

    fn add_address(&mut self, message: &AddressMessage) {
        // The guest makes link-local addresses from the MAC as the host has.
        if message.header.scope == AddressScope::Link {
            return;
        }
        let mut address = None;
        for attribute in &message.attributes {
            match attribute {
                // The other one is the peer's on point-to-point links.
                AddressAttribute::Local(local) => address = Some(local),
                AddressAttribute::Address(own) if address.is_none() => address = Some(own),
                _ => {}
            }
        }
        let text = address.map(|address| format!("{address}/{}", message.header.prefix_len));
        if let Some((interface, text)) = self.interface(message.header.index).zip(text) {
            interface.addresses.push(text);
        }
    }

    fn add_route(&mut self, message: &RouteMessage) -> Result<(), NetworkError> {
        let header = &message.header;
        // The kernel makes its own routes with the addresses, and learns others by itself.
        let own = matches!(header.protocol, RouteProtocol::Kernel | RouteProtocol::Ra);
        if header.table != RouteHeader::RT_TABLE_MAIN || own || header.kind != RouteType::Unicast {
            return Ok(());
        }
        let ipv6 = header.address_family == AddressFamily::Inet6;
        let mut route = proto::Route {
            scope: u8::from(header.scope).into(),
            onlink: header.flags.contains(RouteFlags::Onlink),
            ipv6,
            ..Default::default()
        };
        let mut interface = None;
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(index) => interface = Some(*index),
                RouteAttribute::Destination(address) => {
                    route.destination = format!("{}/{}", ip(address)?, header.destination_prefix_length);
                }
                RouteAttribute::Gateway(address) => route.gateway = ip(address)?.to_string(),
                RouteAttribute::PrefSource(address) => route.source = ip(address)?.to_string(),
                RouteAttribute::Priority(metric) => route.metric = *metric,
                RouteAttribute::Metrics(metrics) => {
                    let mtu = |metric: &RouteMetric| {
                        if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None }
                    };
                    route.mtu = metrics.iter().find_map(mtu).unwrap_or_default();
                }
                RouteAttribute::MultiPath(_) => return Err(unsupported("a route with several gateways")),
                RouteAttribute::Via(_) => {
                    return Err(unsupported("a route through a gateway of the other IP version"));
                }
                RouteAttribute::Encap(_) => return Err(unsupported("a route that encapsulates")),
                _ => {}
            }
        }
        if let Some(index) = interface.filter(|index| self.interface(*index).is_some()) {
            self.routes.push((index, route));
        }
        Ok(())
    }

    fn add_neighbour(&mut self, message: &NeighbourMessage) {
        // The others are the kernel's to learn.
        if message.header.state != NeighbourState::Permanent
            || self.interface(message.header.ifindex).is_none()
        {
            return;
        }
        let mut neighbour = proto::Neighbour::default();
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                    neighbour.address = ip.to_string();
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                    neighbour.address = ip.to_string();
                }
                NeighbourAttribute::LinkLayerAddress(mac) => neighbour.mac.clone_from(mac),
                _ => {}
            }
        }
        if !neighbour.address.is_empty() && neighbour.mac.len() == MAC_LENGTH {
            self.neighbours.push((message.header.ifindex, neighbour));
        }
    }

    /// What the agent is told about the interfaces `joined`, which are in the order of the VM's NICs.
    pub(super) fn request(&self, joined: &[u32]) -> proto::Network {
        let mut network = proto::Network::default();
        for (nic, index) in (0..).zip(joined) {
            let Some(interface) = self.interfaces.iter().find(|interface| interface.index == *index) else {
                continue;
            };
            let name = || interface.name.clone();
            network.interfaces.push(proto::Interface {
                name: name(),
                nic,
                mac: interface.mac.clone(),
                mtu: interface.mtu,
                addresses: interface.addresses.clone(),
                ..Default::default()
            });
            let routes = self.routes.iter().filter(|(of, _)| of == index);
            network
                .routes
                .extend(routes.map(|(_, route)| proto::Route { interface: name(), ..route.clone() }));
            let neighbours = self.neighbours.iter().filter(|(of, _)| of == index);
            network.neighbours.extend(
                neighbours.map(|(_, neighbour)| proto::Neighbour { interface: name(), ..neighbour.clone() }),
            );
        }
        network
    }
}

async fn all<T>(
    what: &'static str,
    stream: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, NetworkError> {
    stream.try_collect().await.map_err(|e| NetworkError::Netlink(what.into(), e))
}

fn unsupported(what: &str) -> NetworkError {
    NetworkError::Unsupported(format!("it has {what}, which is not supported"))
}

fn ip(address: &RouteAddress) -> Result<IpAddr, NetworkError> {
    match address {
        RouteAddress::Inet(ip) => Ok((*ip).into()),
        RouteAddress::Inet6(ip) => Ok((*ip).into()),
        _ => Err(unsupported("a route that is not of IP")),
    }
}

/// The interface of a link, if the guest is to have it: one with Ethernet frames that is up. The tunnels that the
/// kernel puts into every namespace are down, and the taps are ours.
fn interface(link: &LinkMessage) -> Option<Interface> {
    let header = &link.header;
    if header.link_layer_type != LinkLayerType::Ether || !header.flags.contains(LinkFlags::Up) {
        return None;
    }
    let mut interface = Interface {
        index: header.index,
        name: String::new(),
        mac: Vec::new(),
        mtu: 0,
        addresses: Vec::new(),
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Address(mac) => interface.mac.clone_from(mac),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) if infos.contains(&LinkInfo::Kind(InfoKind::Tun)) => return None,
            _ => {}
        }
    }
    (interface.mac.len() == MAC_LENGTH).then_some(interface)
}
