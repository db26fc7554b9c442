//! In network namespaces of their own: these tests need root, as the runtime does.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};

use super::*;

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

#[test]
fn a_namespace_with_nothing_but_loopback_has_one_spare_nic() {
    in_new_namespace(async || {
        ip("link set lo up", None);
        let network = Network::discover().await.unwrap();
        assert_eq!(network.found, Found::default());
        assert_eq!(network.nics(), 1);
        assert_eq!(network.request(), proto::Network::default());
    });
}

#[test]
fn addresses_routes_neighbours_and_mtu_are_read() {
    in_new_namespace(async || {
        ip(
            "link add eth0 mtu 1420 address 02:00:00:00:00:01 type veth peer name peer
             addr add 10.1.2.3/24 dev eth0
             addr add fd00::3/64 dev eth0 nodad
             link set eth0 up
             link set peer up
             route add default via 10.1.2.1 metric 7 mtu 1400
             route add 169.254.1.1/32 dev eth0 scope link src 10.1.2.3
             route add 10.9.0.0/16 via 192.0.2.1 dev eth0 onlink
             route add default via fd00::1
             neigh add 10.1.2.1 lladdr 02:00:00:00:00:02 dev eth0 nud permanent
             link add down0 type veth peer name down1",
            None,
        );
        let mut network = Network::discover().await.unwrap();
        // The veth's other end is in the same namespace here, and a second interface of the pod.
        assert_eq!(network.nics(), 2);
        network.joined =
            network.found.interfaces.iter().filter(|i| i.name == "eth0").map(|i| i.index).collect();
        let request = network.request();

        let [interface] = request.interfaces.as_slice() else { panic!("{request}") };
        assert_eq!((interface.name.as_str(), interface.nic, interface.mtu), ("eth0", 0, 1420));
        assert_eq!(interface.mac, [2, 0, 0, 0, 0, 1]);
        assert_eq!(interface.addresses, ["10.1.2.3/24", "fd00::3/64"]);
        let route = |destination: &str, ipv6: bool| {
            let found = request.routes.iter().find(|r| r.destination == destination && r.ipv6 == ipv6);
            found.unwrap_or_else(|| panic!("no route to {destination} in {request}")).clone()
        };
        let default = route("", false);
        assert_eq!((default.gateway.as_str(), default.metric, default.mtu), ("10.1.2.1", 7, 1400));
        let link = route("169.254.1.1/32", false);
        assert_eq!((link.gateway.as_str(), link.source.as_str(), link.scope), ("", "10.1.2.3", 253));
        assert!(route("10.9.0.0/16", false).onlink);
        assert_eq!(route("", true).gateway, "fd00::1");
        assert_eq!(
            request.routes.len(),
            4,
            "the kernel's own routes are left to the guest's kernel: {request}"
        );
        let [neighbour] = request.neighbours.as_slice() else { panic!("{request}") };
        assert_eq!(
            (neighbour.address.as_str(), neighbour.mac.as_slice()),
            ("10.1.2.1", &[2, 0, 0, 0, 0, 2][..])
        );
    });
}

#[test]
fn a_route_with_several_gateways_is_refused() {
    in_new_namespace(async || {
        ip(
            "link add eth0 type veth peer name peer
             addr add 10.1.2.3/24 dev eth0
             link set eth0 up
             route add default nexthop via 10.1.2.1 nexthop via 10.1.2.2",
            None,
        );
        let error = Network::discover().await.unwrap_err();
        assert!(
            matches!(&error, NetworkError::Unsupported(text) if text.contains("several gateways")),
            "{error:?}"
        );
    });
}

#[test]
fn interfaces_that_appear_later_are_seen() {
    in_new_namespace(async || {
        let mut network = Network::discover().await.unwrap();
        assert!(!network.refresh().await.unwrap());
        ip("link add eth0 type veth peer name peer\nlink set eth0 up", None);
        assert!(network.refresh().await.unwrap());
        assert_eq!(network.found.interfaces[0].name, "eth0");
    });
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

        let tap = tap::join(&discover::connect().unwrap(), interface).await.unwrap();
        let mut tap = File::from(tap);
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

        drop(tap);
        let links = String::from_utf8(Command::new("ip").arg("link").output().unwrap().stdout).unwrap();
        assert!(!links.contains("mh0"), "the tap is left: {links}");
    });
}
