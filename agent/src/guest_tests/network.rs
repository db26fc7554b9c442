//! The pod's network, by the interfaces of the test machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use monohull_protocol::agent::{ConfigureNetworkRequest, Interface, Network};
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{AddressMessageBuilder, RouteMessageBuilder};
use ttrpc::context::with_timeout;

use super::{DEADLINE, Host, shell};

/// Indexes on the "host".
const ETH0: u32 = 70;
const NET1: u32 = 90;

fn interface(name: &str, nic: u8, index: u32) -> Interface {
    Interface {
        name: name.into(),
        nic: nic.into(),
        mac: vec![2, 0, 0, 0, 0, nic],
        mtu: 1400,
        index,
        ipv6: [("accept_ra".to_owned(), "0".to_owned())].into(),
        ..Default::default()
    }
}

fn bytes(message: RouteNetlinkMessage) -> Vec<u8> {
    let mut message = NetlinkMessage::from(message);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn address(index: u32, ip: IpAddr, length: u8) -> Vec<u8> {
    let mut message = match ip {
        IpAddr::V4(ip) => AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(ip, length).build(),
        IpAddr::V6(ip) => AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(ip, length).build(),
    };
    message.attributes.push(AddressAttribute::Flags(AddressFlags::Noprefixroute));
    bytes(RouteNetlinkMessage::NewAddress(message))
}

fn route(change: impl FnOnce(RouteMessageBuilder<Ipv4Addr>) -> RouteMessageBuilder<Ipv4Addr>) -> Vec<u8> {
    bytes(RouteNetlinkMessage::NewRoute(change(RouteMessageBuilder::<Ipv4Addr>::new()).build()))
}

fn neighbour(index: u32, ip: Ipv4Addr) -> Vec<u8> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)),
        NeighbourAttribute::LinkLayerAddress(vec![2, 9, 9, 9, 9, 9]),
    ];
    bytes(RouteNetlinkMessage::NewNeighbour(message))
}

fn rule(table: u8) -> Vec<u8> {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.action = RuleAction::ToTable;
    message.header.table = table;
    message.header.src_len = 32;
    message.attributes = vec![RuleAttribute::Priority(512), RuleAttribute::Source([10, 9, 0, 2].into())];
    bytes(RouteNetlinkMessage::NewRule(message))
}

/// The second device gets the name that the kernel gave the first.
fn two_interfaces() -> Network {
    let gateway = Ipv4Addr::new(10, 9, 0, 1);
    let v6_default = RouteMessageBuilder::<Ipv6Addr>::new()
        .gateway("fe80::1".parse().unwrap())
        .output_interface(ETH0)
        .build();
    Network {
        interfaces: vec![interface("eth0", 1, ETH0), interface("net1", 0, NET1)],
        entries: vec![
            address(ETH0, [10, 9, 0, 2].into(), 24),
            address(ETH0, "fd09::2".parse().unwrap(), 64),
            address(NET1, [10, 8, 0, 2].into(), 16),
            route(|route| {
                route.destination_prefix(gateway, 32).output_interface(ETH0).scope(RouteScope::Link)
            }),
            route(|route| route.gateway(gateway).output_interface(ETH0)),
            bytes(RouteNetlinkMessage::NewRoute(v6_default)),
            route(|route| {
                let destination = Ipv4Addr::new(192, 0, 2, 0);
                let gateway = Ipv4Addr::new(198, 51, 100, 1);
                route.destination_prefix(destination, 24).gateway(gateway).output_interface(ETH0).onlink()
            }),
            route(|route| {
                let destination = Ipv4Addr::new(203, 0, 113, 0);
                route.destination_prefix(destination, 24).kind(RouteType::BlackHole).priority(7)
            }),
            route(|route| route.gateway(gateway).output_interface(ETH0).table_id(100)),
            neighbour(ETH0, gateway),
            rule(100),
        ],
        ..Default::default()
    }
}

async fn configure(host: &Host, network: Network) {
    let request = ConfigureNetworkRequest { network: Some(network).into(), ..Default::default() };
    host.client.configure_network(with_timeout(DEADLINE), &request).await.unwrap();
}

const SCRIPT: &str = "ip -o addr show scope global | awk '{print $2, $4, $NF == \"tentative\"}'; ip -o link; \
    ip route; ip route show table 100; ip -6 route show default; ip neigh; ip rule; \
    ping -c 1 -q 127.0.0.1 | tail -2 | head -1";

pub(super) async fn the_network_is_the_hosts(host: &Host) {
    for _ in 0..2 {
        configure(host, two_interfaces()).await;
    }
    let (_, output) = host.run("net", &shell(SCRIPT)).await;
    for expected in [
        "eth0 10.9.0.2/24 0",
        "eth0 fd09::2/64 0",
        "net1 10.8.0.2/16 0",
        "mtu 1400",
        "link/ether 02:00:00:00:00:01",
        "10.9.0.1 dev eth0 scope link",
        "default via 10.9.0.1 dev eth0",
        "192.0.2.0/24 via 198.51.100.1 dev eth0",
        "blackhole 203.0.113.0/24",
        "default via fe80::1 dev eth0",
        "10.9.0.1 dev eth0 lladdr 02:09:09:09:09:09",
        "512:\tfrom 10.9.0.2 lookup 100",
    ] {
        assert!(output.contains(expected), "{expected:?} is not in\n{output}");
    }
    assert!(!output.contains("10.8.0.0/16"), "a route that the host does not have:\n{output}");
}

pub(super) async fn the_network_follows_the_host(host: &Host) {
    configure(host, two_interfaces()).await;
    let mut network = two_interfaces();
    network.interfaces.truncate(1);
    network.interfaces[0].mtu = 1300;
    network.entries.retain(|entry| {
        let gone =
            [address(NET1, [10, 8, 0, 2].into(), 16), rule(100), address(ETH0, [10, 9, 0, 2].into(), 24)];
        !gone.contains(entry)
    });
    network.entries.insert(0, address(ETH0, [10, 9, 0, 3].into(), 24));
    configure(host, network).await;
    let (_, output) = host.run("less", &shell(SCRIPT)).await;
    for expected in ["eth0 10.9.0.3/24", "mtu 1300", "default via 10.9.0.1 dev eth0"] {
        assert!(output.contains(expected), "{expected:?} is not in\n{output}");
    }
    for gone in ["net1", "eth1", "10.9.0.2", "512:"] {
        assert!(!output.contains(gone), "{gone:?} is still in\n{output}");
    }

    configure(host, two_interfaces()).await;
    let (_, output) = host.run("again", &shell(SCRIPT)).await;
    assert!(output.contains("net1 10.8.0.2/16") && output.contains("10.9.0.2/24"), "{output}");
}
