//! The pod's network interfaces, routes and neighbours, as the host's pod network namespace has them.

use std::net::IpAddr;
use std::path::Path;

use monohull_protocol::agent;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use rtnetlink::{Handle, LinkUnspec};

use crate::error::{Doing, Error, Result};

const DEVICES: &str = "/sys/class/net";
/// The index that every network namespace gives its loopback device (`LOOPBACK_IFINDEX` of linux/net_namespace.h).
const LOOPBACK: u32 = 1;
/// Longest name of an interface, without its final 0 (`IFNAMSIZ` of linux/if.h).
const NAME_MAX: usize = 15;

/// Brings the loopback device up.
pub(crate) async fn bring_up_loopback() -> Result<()> {
    let handle = connect()?;
    handle
        .link()
        .set(LinkUnspec::new_with_index(LOOPBACK).up().build())
        .execute()
        .await
        .doing(|| "bring up lo".into())
}

/// Makes the network what `network` says. Nothing waits for a carrier or for duplicate address detection. Repeating it
/// with more interfaces is fine.
pub(crate) async fn configure(network: &agent::Network) -> Result<()> {
    let handle = connect()?;
    for interface in &network.interfaces {
        set_up_interface(&handle, interface)
            .await
            .map_err(|error| error.within(format_args!("interface {}", interface.name)))?;
    }
    // Routes through a gateway need the route to the gateway first.
    let (direct, via): (Vec<_>, Vec<_>) = network.routes.iter().partition(|route| route.gateway.is_empty());
    for route in direct.into_iter().chain(via) {
        let what = || format!("route to {} on {}", destination_name(route), route.interface);
        let message = route_message(route, index(&route.interface)?).map_err(|error| error.within(what()))?;
        handle.route().add(message).replace().execute().await.doing(|| format!("add {}", what()))?;
    }
    for neighbour in &network.neighbours {
        let address = parse_ip("neighbour", &neighbour.address)?;
        handle
            .neighbours()
            .add(index(&neighbour.interface)?, address)
            .link_layer_address(&check_mac(&neighbour.mac)?)
            .replace()
            .execute()
            .await
            .doing(|| format!("add neighbour {address} on {}", neighbour.interface))?;
    }
    Ok(())
}

fn connect() -> Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().doing(|| "open a netlink socket".into())?;
    // Ends when the handle is dropped.
    tokio::spawn(connection);
    Ok(handle)
}

async fn set_up_interface(handle: &Handle, interface: &agent::Interface) -> Result<()> {
    check_name(&interface.name)?;
    let mac = check_mac(&interface.mac)?;
    let device = nic(interface.nic)?;
    let number = index(&device)?;
    if device != interface.name {
        make_way(handle, &interface.name).await?;
    }
    let mut link = LinkUnspec::new_with_index(number).name(&interface.name).address(mac);
    if interface.mtu > 0 {
        link = link.mtu(interface.mtu);
    }
    handle.link().set(link.build()).execute().await.doing(|| format!("configure {device}"))?;
    // Addresses come from the host, which has seen to it that they are unique: no advertisements, no waiting.
    for setting in ["accept_ra", "accept_dad"] {
        let path = format!("/proc/sys/net/ipv6/conf/{}/{setting}", interface.name);
        match std::fs::write(&path, "0") {
            // Switched off on the kernel's command line.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            result => result.doing(|| format!("write {path}"))?,
        }
    }
    handle
        .link()
        .set(LinkUnspec::new_with_index(number).up().build())
        .execute()
        .await
        .doing(|| "bring it up".into())?;
    for text in &interface.addresses {
        let (address, prefix) = parse_prefix("address", text)?;
        let added = handle.address().add(number, address, prefix).replace().execute().await;
        added.doing(|| format!("add address {text}"))?;
    }
    Ok(())
}

/// Gives a device that has the name `name`, if there is one, another that nobody wants.
async fn make_way(handle: &Handle, name: &str) -> Result<()> {
    if !Path::new(DEVICES).join(name).exists() {
        return Ok(());
    }
    let number = index(name)?;
    let link = LinkUnspec::new_with_index(number).name(format!("unused{number}")).build();
    handle.link().set(link).execute().await.doing(|| format!("rename the other device called {name}"))
}

/// The name of the network device that the VMM made as its `wanted`th.
fn nic(wanted: u32) -> Result<String> {
    let entries = std::fs::read_dir(DEVICES).doing(|| format!("list {DEVICES}"))?;
    let mut devices: Vec<(u32, String)> = entries
        .flatten()
        .filter_map(|entry| {
            let device = entry.path().join("device").canonicalize().ok()?;
            Some((slot(&device)?, entry.file_name().into_string().ok()?))
        })
        .collect();
    devices.sort_unstable();
    let found = usize::try_from(wanted).ok().and_then(|wanted| devices.into_iter().nth(wanted));
    found
        .map(|(_, name)| name)
        .ok_or_else(|| Error::Invalid(format!("nic: the VM has no network device {wanted}")))
}

/// The number of a virtio-mmio device: the kernel counts them in the order in which its command line names them, which
/// is that of their addresses.
fn slot(device: &Path) -> Option<u32> {
    device.iter().find_map(|part| part.to_str()?.strip_prefix("virtio-mmio.")?.parse().ok())
}

fn index(name: &str) -> Result<u32> {
    check_name(name)?;
    let path = format!("{DEVICES}/{name}/ifindex");
    let text = std::fs::read_to_string(&path)
        .map_err(|_| Error::Invalid(format!("there is no interface {name:?}")))?;
    text.trim().parse().doing(|| format!("parse {path}"))
}

/// The kernel's rules (`dev_valid_name` of net/core/dev.c); a name becomes a path component.
fn check_name(name: &str) -> Result<()> {
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0';
    if name.is_empty() || name.len() > NAME_MAX || name == "." || name == ".." || name.contains(bad) {
        return Err(Error::Invalid(format!("{name:?} is not a name for an interface")));
    }
    Ok(())
}

fn check_mac(mac: &[u8]) -> Result<Vec<u8>> {
    if mac.len() != 6 {
        return Err(Error::Invalid(format!("mac: {} bytes, not 6", mac.len())));
    }
    Ok(mac.to_vec())
}

fn parse_ip(field: &str, text: &str) -> Result<IpAddr> {
    text.parse().map_err(|_| Error::Invalid(format!("{field}: {text:?} is not an IP address")))
}

fn parse_prefix(field: &str, text: &str) -> Result<(IpAddr, u8)> {
    let parsed = text.split_once('/').and_then(|(address, prefix)| {
        let address: IpAddr = address.parse().ok()?;
        let prefix: u8 = prefix.parse().ok()?;
        (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, prefix))
    });
    parsed.ok_or_else(|| Error::Invalid(format!("{field}: {text:?} is not an address with a prefix length")))
}

fn destination_name(route: &agent::Route) -> &str {
    if route.destination.is_empty() { "default" } else { &route.destination }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

/// `route` as rtnetlink wants it.
fn route_message(route: &agent::Route, interface: u32) -> Result<RouteMessage> {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = if route.ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    header.table = RouteHeader::RT_TABLE_MAIN;
    header.protocol = RouteProtocol::Static;
    header.kind = RouteType::Unicast;
    let scope = u8::try_from(route.scope)
        .map_err(|_| Error::Invalid(format!("scope: {} is too large", route.scope)))?;
    header.scope = RouteScope::from(scope);
    if route.onlink {
        header.flags |= RouteFlags::Onlink;
    }
    let family = |field: &str, address: IpAddr| {
        if address.is_ipv6() == route.ipv6 {
            return Ok(address);
        }
        Err(Error::Invalid(format!("{field}: {address} is of the other IP version")))
    };
    let mut attributes = vec![RouteAttribute::Oif(interface)];
    if !route.destination.is_empty() {
        let (address, prefix) = parse_prefix("destination", &route.destination)?;
        header.destination_prefix_length = prefix;
        attributes.push(RouteAttribute::Destination(route_address(family("destination", address)?)));
    }
    if !route.gateway.is_empty() {
        let gateway = family("gateway", parse_ip("gateway", &route.gateway)?)?;
        attributes.push(RouteAttribute::Gateway(route_address(gateway)));
    }
    if !route.source.is_empty() {
        let source = family("source", parse_ip("source", &route.source)?)?;
        attributes.push(RouteAttribute::PrefSource(route_address(source)));
    }
    if route.metric > 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    if route.mtu > 0 {
        attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(route.mtu)]));
    }
    message.attributes = attributes;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_ordered_by_number_not_by_text() {
        let path = |n: u32| format!("/sys/devices/virtio-mmio-cmdline/virtio-mmio.{n}/virtio{n}");
        assert_eq!(slot(Path::new(&path(2))), Some(2));
        assert!(slot(Path::new(&path(10))) > slot(Path::new(&path(9))));
        assert_eq!(slot(Path::new("/sys/devices/virtual/net/lo")), None);
    }

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for name in ["", ".", "..", "a/b", "a b", "a:b", "sixteen-bytes-xx"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert!(check_name("eth0.100").is_ok());
    }

    #[test]
    fn prefixes_are_checked_against_their_family() {
        assert_eq!(parse_prefix("x", "10.1.2.3/24").unwrap(), ([10, 1, 2, 3].into(), 24));
        for text in ["10.1.2.3", "10.1.2.3/33", "fd00::1/129", "x/8", "10.0.0.0/-1"] {
            assert!(parse_prefix("x", text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_default_route_has_a_family_and_no_destination() {
        let route =
            agent::Route { gateway: "fd00::1".into(), ipv6: true, onlink: true, ..Default::default() };
        let message = route_message(&route, 3).unwrap();
        assert_eq!(message.header.address_family, AddressFamily::Inet6);
        assert!(message.header.flags.contains(RouteFlags::Onlink));
        let gateway = RouteAttribute::Gateway(RouteAddress::Inet6("fd00::1".parse().unwrap()));
        assert_eq!(message.attributes, [RouteAttribute::Oif(3), gateway]);
    }

    #[test]
    fn a_route_of_two_families_is_refused() {
        let route = agent::Route {
            destination: "10.0.0.0/8".into(),
            gateway: "fd00::1".into(),
            ..Default::default()
        };
        assert!(matches!(route_message(&route, 3), Err(Error::Invalid(_))));
    }
}
