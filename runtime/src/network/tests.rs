//! In network namespaces of their own: these tests need root, as the runtime does.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};

use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};

use super::*;
use crate::fake::{Host, Mode};
use crate::pod::tests::pod_config;
use crate::pod::{Pod, PodConfig};

/// Runs `test` in a thread with a new network namespace.
fn in_new_namespace(test: impl AsyncFnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests need root");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    thread.join().unwrap();
}

/// Runs commands of ip(8), one a line, in the thread's namespace or that of a process.
fn ip(commands: &str, of: Option<u32>) {
    for line in commands.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut command = match of {
            Some(pid) => {
                let mut command = Command::new("nsenter");
                command.args(["-t", &pid.to_string(), "-n", "ip"]);
                command
            }
            None => Command::new("ip"),
        };
        assert!(command.args(line.split(' ')).status().unwrap().success(), "{line}");
    }
}

/// A process with a network namespace of its own, until it is dropped.
struct Peer(Child);

impl Peer {
    fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["-n", "sh", "-c", "echo; exec cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        Self(child)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The parts of a request's entries, by kind.
#[derive(Default)]
struct Entries {
    addresses: Vec<AddressMessage>,
    routes: Vec<RouteMessage>,
    neighbours: Vec<NeighbourMessage>,
    rules: Vec<RuleMessage>,
}

fn entries(request: &proto::Network) -> Entries {
    let mut entries = Entries::default();
    for bytes in &request.entries {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes).unwrap();
        match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(m)) => entries.addresses.push(m),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(m)) => entries.routes.push(m),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(m)) => entries.neighbours.push(m),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRule(m)) => entries.rules.push(m),
            other => panic!("{other:?}"),
        }
    }
    entries
}

/// What a pod's VM would be told of this namespace if all of its interfaces were joined.
async fn request() -> proto::Network {
    let mut network = Network::discover().await.unwrap();
    for (slot, interface) in network.nics.iter_mut().zip(&network.found.interfaces) {
        *slot = Some(Joined { interface: interface.index, tap: Tap::default() });
    }
    network.request()
}

#[test]
fn a_namespace_with_nothing_but_loopback_has_spare_nics() {
    in_new_namespace(async || {
        ip("link set lo up", None);
        let network = Network::discover().await.unwrap();
        assert_eq!(network.found, Found::default());
        assert_eq!(network.nics(), NICS);
        assert_eq!(network.request(), proto::Network::default());
    });
}

#[test]
fn interfaces_and_all_that_belongs_to_them_are_told() {
    in_new_namespace(async || {
        ip(
            "link add eth0 mtu 1420 address 02:00:00:00:00:01 type veth peer name peer
             addr add 10.1.2.3/24 dev eth0
             addr add fd00::3/64 dev eth0 nodad
             link set eth0 up
             link set peer up
             route add default via 10.1.2.1 metric 7 mtu 1400 initcwnd 20
             route add 169.254.1.1/32 dev eth0 scope link src 10.1.2.3
             route add 10.9.0.0/16 via 192.0.2.1 dev eth0 onlink
             route add 10.8.0.0/16 nexthop via 10.1.2.7 nexthop via 10.1.2.8 weight 3
             route add blackhole 10.7.0.0/16
             route add default via 10.1.2.1 table 100
             route add default via fd00::1
             rule add from 10.1.2.3 lookup 100 priority 512
             neigh add 10.1.2.1 lladdr 02:00:00:00:00:02 dev eth0 nud permanent
             link add down0 type veth peer name down1",
            None,
        );
        let request = request().await;
        let eth0 = request.interfaces.iter().find(|interface| interface.name == "eth0").unwrap();
        assert_eq!((eth0.mtu, eth0.mac.as_slice(), eth0.no_arp), (1420, &[2, 0, 0, 0, 0, 1][..], false));
        assert_eq!(eth0.ipv6.get("accept_ra").map(String::as_str), Some("1"));
        // The veth's other end is in the same namespace here, and a second interface of the pod.
        assert_eq!(request.interfaces.len(), 2);

        let Entries { addresses, routes, neighbours, rules } = entries(&request);
        let local = |message: &AddressMessage| {
            message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Address(ip) => Some(format!("{ip}/{}", message.header.prefix_len)),
                _ => None,
            })
        };
        let addresses: Vec<_> =
            addresses.iter().filter(|a| a.header.index == eth0.index).filter_map(local).collect();
        assert_eq!(addresses, ["10.1.2.3/24", "fd00::3/64"]);

        let has = |wanted: &[RouteAttribute]| {
            routes.iter().any(|route| wanted.iter().all(|attribute| route.attributes.contains(attribute)))
        };
        let v4 = |a, b, c, d| RouteAddress::Inet([a, b, c, d].into());
        let metrics = RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400), RouteMetric::InitCwnd(20)]);
        let oif = RouteAttribute::Oif(eth0.index);
        assert!(has(&[RouteAttribute::Gateway(v4(10, 1, 2, 1)), RouteAttribute::Priority(7), metrics]));
        assert!(has(&[RouteAttribute::Destination(v4(10, 1, 2, 0)), oif.clone()]), "the address's own");
        assert!(has(&[
            RouteAttribute::Destination(v4(169, 254, 1, 1)),
            RouteAttribute::PrefSource(v4(10, 1, 2, 3))
        ]));
        assert!(has(&[RouteAttribute::Gateway(v4(10, 1, 2, 1)), RouteAttribute::Table(100)]));
        assert!(has(&[RouteAttribute::Gateway(RouteAddress::Inet6("fd00::1".parse().unwrap())), oif]));
        assert!(routes.iter().any(|route| route.header.kind == RouteType::BlackHole));
        assert!(routes.iter().any(|route| route.header.flags == RouteFlags::Onlink));
        let hops = routes.iter().flat_map(|route| &route.attributes).find_map(|attribute| match attribute {
            RouteAttribute::MultiPath(hops) => Some(hops.iter().map(|hop| hop.hops).collect::<Vec<_>>()),
            _ => None,
        });
        assert_eq!(hops.as_deref(), Some(&[0, 2][..]), "weights less one");

        let [neighbour] = neighbours.as_slice() else { panic!("{neighbours:?}") };
        let mac = NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 2]);
        assert!(neighbour.attributes.contains(&mac));
        let [rule] = rules.as_slice() else { panic!("{rules:?}") };
        assert!(rule.attributes.contains(&RuleAttribute::Source([10, 1, 2, 3].into())));
    });
}

#[test]
fn routes_that_a_plugin_put_in_place_of_the_kernels_are_the_guests() {
    in_new_namespace(async || {
        // What CNI's ptp plugin does.
        ip(
            "link add eth0 type veth peer name peer
             link set eth0 up
             addr add 10.1.2.3/24 dev eth0
             route del 10.1.2.0/24 dev eth0
             route add 10.1.2.1 dev eth0 scope link src 10.1.2.3
             route add 10.1.2.0/24 via 10.1.2.1 src 10.1.2.3",
            None,
        );
        let Entries { addresses, routes, .. } = entries(&request().await);
        let flags = AddressAttribute::Flags(AddressFlags::Noprefixroute);
        assert!(addresses.iter().all(|address| address.attributes.contains(&flags)));
        let [direct, via] = routes.as_slice() else { panic!("{routes:?}") };
        assert_eq!((direct.header.destination_prefix_length, via.header.destination_prefix_length), (32, 24));
    });
}

#[test]
fn an_interface_without_ethernet_frames_is_refused_by_name_and_kind() {
    in_new_namespace(async || {
        ip("tuntap add dev vpn0 mode tun\nlink set vpn0 up", None);
        let error = Network::discover().await.unwrap_err().to_string();
        assert!(error.contains("interface vpn0 is of kind tun"), "{error}");
    });
}

#[test]
fn the_ports_of_a_bridge_are_the_bridges_and_not_the_guests() {
    in_new_namespace(async || {
        ip(
            "link add br0 type bridge
             link add port0 type veth peer name other
             link set port0 master br0
             link set port0 up
             link set br0 up",
            None,
        );
        let network = Network::discover().await.unwrap();
        let names: Vec<_> = network.found.interfaces.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(names, ["br0"]);
    });
}

#[test]
fn a_namespace_that_is_another_pods_is_refused() {
    in_new_namespace(async || {
        ip("link add eth0 type veth peer name peer\nlink set eth0 up", None);
        let network = Network::discover().await.unwrap();
        let handle = discover::connect().unwrap();
        let (_, descriptor) = Tap::join(&handle, &network.found.interfaces[0]).await.unwrap();
        let error = Network::discover().await.unwrap_err();
        assert!(matches!(&error, NetworkError::Taken(name) if name == "mh0"), "{error:?}");
        let mut changes = Changes::subscribe().unwrap();
        drop(descriptor);
        until_gone("mh0", &mut changes).await;
        assert!(Network::discover().await.is_ok());
    });
}

#[test]
fn interfaces_that_appear_later_are_told_of_and_seen() {
    in_new_namespace(async || {
        let mut network = Network::discover().await.unwrap();
        let mut changes = Changes::subscribe().unwrap();
        assert!(!network.refresh().await.unwrap());
        ip("link add eth0 type veth peer name peer\nlink set eth0 up", None);
        changes.next().await.unwrap();
        assert!(network.refresh().await.unwrap());
        assert_eq!(network.found.interfaces[0].name, "eth0");
    });
}

#[test]
fn a_tap_can_be_removed_and_follows_the_mtu() {
    in_new_namespace(async || {
        ip("link add eth0 type veth peer name peer\nlink set eth0 up", None);
        let network = Network::discover().await.unwrap();
        let handle = discover::connect().unwrap();
        let (mut tap, _descriptor) = Tap::join(&handle, &network.found.interfaces[0]).await.unwrap();
        tap.follow(&handle, &Interface { mtu: 1300, ..network.found.interfaces[0].clone() }).await.unwrap();
        assert!(links().contains("mtu 1300"));
        tap.remove(&handle).await.unwrap();
        assert!(!links().contains("mh0"));
        tap.remove(&handle).await.unwrap();
    });
}

/// Waits for the end of a device whose last descriptor was closed here. Another test may be starting a process, which
/// has a copy of every descriptor until it executes its program.
async fn until_gone(name: &str, changes: &mut Changes) {
    let gone = async {
        while links().contains(name) {
            changes.next().await.unwrap();
        }
    };
    let limit = std::time::Duration::from_secs(30);
    tokio::time::timeout(limit, gone).await.unwrap_or_else(|_| panic!("{name} is left: {}", links()));
}

fn links() -> String {
    String::from_utf8(Command::new("ip").arg("link").output().unwrap().stdout).unwrap()
}

/// An ARP request (RFC 826) for 10.1.2.1 from 10.1.2.3, with an empty virtio header before it.
fn arp_request(mac: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 10];
    frame.extend([0xff; 6]);
    frame.extend(mac);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend([10, 1, 2, 3, 0, 0, 0, 0, 0, 0, 10, 1, 2, 1]);
    frame
}

#[test]
fn frames_go_from_the_tap_to_the_peer_and_back_past_the_hosts_stack() {
    in_new_namespace(async || {
        let peer = Peer::new();
        ip(
            "link add eth0 type veth peer name peer
             addr add 10.1.2.3/24 dev eth0
             link set eth0 up",
            None,
        );
        ip(&format!("link set peer netns {}", peer.0.id()), None);
        ip("addr add 10.1.2.1/24 dev peer\nlink set peer up", Some(peer.0.id()));
        let network = Network::discover().await.unwrap();
        let interface = &network.found.interfaces[0];

        let (_, descriptor) = Tap::join(&discover::connect().unwrap(), interface).await.unwrap();
        let mut tap = File::from(descriptor);
        tap.write_all(&arp_request(&interface.mac)).unwrap();
        // The answer is the first frame of its kind; IPv6 has things to say as well.
        let mut frame = [0; 2048];
        let answer = loop {
            let length = tap.read(&mut frame).unwrap();
            if frame[22..24] == [8, 6] {
                break frame[10..length].to_vec();
            }
        };
        assert_eq!(answer[..6], interface.mac, "to the guest");
        assert_eq!(answer[20..22], [0, 2], "an ARP reply");
        assert_eq!(answer[28..32], [10, 1, 2, 1], "from the peer");

        let mut changes = Changes::subscribe().unwrap();
        drop(tap);
        until_gone("mh0", &mut changes).await;
    });
}

#[test]
fn a_namespace_can_be_used_by_one_pod_after_the_other() {
    in_new_namespace(async || {
        ip("link add eth0 type veth peer name peer\nlink set eth0 up\nlink set peer up", None);
        let handle = discover::connect().unwrap();
        let found = Network::discover().await.unwrap().found;
        let interface = found.interfaces.iter().find(|interface| interface.name == "eth0").unwrap();
        for _ in 0..2 {
            let (_, descriptor) = Tap::join(&handle, interface).await.unwrap();
            drop(descriptor);
        }
        assert_eq!(filters().matches("mirred").count(), 1, "{}", filters());
        tap::end_redirection(&handle, interface.index).await.unwrap();
        assert_eq!(filters(), "");
        tap::end_redirection(&handle, interface.index).await.unwrap();
    });
}

#[test]
fn a_dead_owners_redirections_are_ended_but_not_those_of_a_pod_that_lives() {
    in_new_namespace(async || {
        ip("link add eth0 type veth peer name peer\nlink set eth0 up\nlink set peer up", None);
        let handle = discover::connect().unwrap();
        let found = Network::discover().await.unwrap().found;
        let interface = found.interfaces.iter().find(|interface| interface.name == "eth0").unwrap();
        let mut changes = Changes::subscribe().unwrap();
        let (_, descriptor) = Tap::join(&handle, interface).await.unwrap();
        give_back().await.unwrap();
        assert_eq!(filters().matches("mirred").count(), 1, "{}", filters());

        drop(descriptor);
        until_gone("mh0", &mut changes).await;
        give_back().await.unwrap();
        assert_eq!(filters(), "");
    });
}

#[test]
fn a_pod_whose_start_fails_gives_its_interfaces_back() {
    in_new_namespace(async || {
        ip("link add eth0 type veth peer name peer\nlink set eth0 up\nlink set peer up", None);
        let host = Host::new(Mode::IsKilled);
        let config = PodConfig { network: true, ..pod_config(&host) };
        assert!(Pod::start(config).await.is_err());
        assert!(host.calls().iter().any(|call| call.starts_with("AttachNic")), "{:?}", host.calls());
        assert_eq!(filters(), "");
    });
}

fn filters() -> String {
    let output = Command::new("tc").args(["filter", "show", "dev", "eth0", "ingress"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}
