//! Networks: whatever an engine or CNI makes for a pod is what its containers have.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use monohull_tests::engine::{Engine, Run, finish};
use monohull_tests::leaks::Census;
use monohull_tests::network::{Namespace, ip};

use crate::containers::id;
use crate::failures::shim_of;
use crate::leaks::assert_nothing_beyond;
use crate::{Case, limits};

/// With CNI's plugins and namespaces of the tests' own.
pub(crate) const CASES: &[Case] = &[
    ("network::a_pod_has_the_addresses_routes_and_mtu_of_its_namespace", ptp),
    ("network::macvlan_reaches_the_guest", macvlan),
    ("network::ipvlan_reaches_the_guest_in_both_modes", ipvlan),
    ("network::several_interfaces_have_their_names_and_routes", two_interfaces),
    ("network::a_network_that_comes_between_create_and_start_is_there", late_attach),
    ("network::networks_come_and_go_while_a_pod_runs", connect_and_disconnect),
    ("network::a_pod_without_interfaces_has_loopback_only_and_starts_at_once", no_network),
    ("network::an_interface_that_cannot_be_joined_is_named", unsupported_link),
    ("network::a_namespace_of_another_pod_is_refused", shared_namespace),
    ("network::the_hosts_interface_counts_what_the_pod_sends_and_receives", counters),
    ("network::a_pod_hears_the_groups_it_has_joined_and_is_not_woken_for_others", groups),
    ("network::data_arrives_unchanged_in_both_directions", transfer),
    ("network::an_interface_is_no_faster_than_the_settings_say", limits::network),
    ("network::port_forward_reaches_what_listens_on_the_guests_localhost", port_forward),
    ("network::a_pod_with_a_network_leaves_nothing", leaves_nothing),
];

/// Starts a container that sleeps in a namespace.
fn start(engine: &Engine, namespace: &Namespace) -> String {
    let id = id("net");
    let output = engine.run(&run_in(&id, namespace));
    assert_eq!(output.code(), 0, "{}{}", output.stderr, engine.log());
    id
}

/// A container that sleeps in a namespace.
pub(crate) fn run_in(id: &str, namespace: &Namespace) -> Run {
    let mut run = Run::new(id, &["sleep", "1000"]);
    run.detach = true;
    run.extra = vec!["--with-ns".into(), format!("network:{}", namespace.path().display())];
    run
}

/// What a command in a container prints. It must succeed.
pub(crate) fn inside(engine: &Engine, id: &str, words: &[&str]) -> String {
    let output = engine.exec(id, words);
    assert_eq!(output.code(), 0, "{words:?}: {}{}", output.text(), output.stderr);
    output.text()
}

/// Both are asked for one answer within a minute: what has only just come up may miss the first requests.
fn ping(to: &str) -> [&str; 6] {
    ["ping", "-c", "1", "-w", "60", to]
}

/// Starts a web server in a container. It listens once this returns.
fn serve(engine: &Engine, id: &str, address: &str) {
    inside(engine, id, &["sh", "-c", "mkdir -p /www; echo from the guest > /www/index.html"]);
    inside(engine, id, &["httpd", "-p", address, "-h", "/www"]);
}

fn get(address: &str) -> [String; 5] {
    ["busybox", "wget", "-q", "-O-", &format!("http://{address}/")].map(str::to_owned)
}

/// Asks a container's web server from a namespace.
fn fetch(from: &Namespace, address: &str) -> String {
    let words = get(address);
    from.run(&words.each_ref().map(String::as_str))
}

fn host_local(subnets: &[&str], routes: &[&str]) -> String {
    let ranges: Vec<_> = subnets.iter().map(|subnet| format!(r#"[{{"subnet": "{subnet}"}}]"#)).collect();
    let routes: Vec<_> = routes.iter().map(|route| format!(r#"{{"dst": "{route}"}}"#)).collect();
    format!(
        r#""ipam": {{"type": "host-local", "ranges": [{}], "routes": [{}]}}"#,
        ranges.join(", "),
        routes.join(", ")
    )
}

pub(crate) fn ptp_config(subnets: &[&str], routes: &[&str]) -> String {
    format!(r#""type": "ptp", "mtu": 1400, {}"#, host_local(subnets, routes))
}

fn ptp(engine: &Engine) {
    let mut namespace = Namespace::new(&id("ptp"));
    namespace.add("eth0", &ptp_config(&["10.90.1.0/24", "fd90:1::/64"], &["0.0.0.0/0", "::/0"]));
    ip(&format!("-n {} route add 192.0.2.0/24 via 10.90.1.1 mtu 1300", namespace.name()));
    ip(&format!("-n {} route add blackhole 198.51.100.0/24", namespace.name()));
    let id = start(engine, &namespace);

    let addresses = "ip addr show eth0 | awk '/inet|ether/ { print $1, $2 }'; cat /sys/class/net/eth0/mtu";
    for script in ["ip -4 route", "ip -6 route", addresses] {
        let expected = namespace.run(&[
            "busybox",
            "sh",
            "-c",
            &format!("busybox {script}").replace("| awk", "| busybox awk"),
        ]);
        assert_eq!(inside(engine, &id, &["sh", "-c", script]), expected, "{script}");
        assert!(!expected.is_empty());
    }
    for gateway in ["10.90.1.1", "fd90:1::1"] {
        inside(engine, &id, &ping(gateway));
    }
    let own = inside(
        engine,
        &id,
        &["sh", "-c", "ip addr show eth0 | awk '/inet 10/ { sub(/\\/.*/, \"\", $2); print $2 }'"],
    );
    let output = finish(std::process::Command::new("ping").args(&ping(own.trim())[1..]));
    assert_eq!(output.code(), 0, "{}", output.text());
    engine.remove(&id);
}

/// The other end of a cable that host interface `name` is plugged into.
fn neighbour(name: &str, address: &str) -> Namespace {
    let other = Namespace::new(&id("peer"));
    ip(&format!("link add {name} type veth peer name eth0 netns {}", other.name()));
    ip(&format!("link set {name} up"));
    ip(&format!("-n {} addr add {address} dev eth0", other.name()));
    ip(&format!("-n {} link set eth0 up", other.name()));
    other
}

fn macvlan(engine: &Engine) {
    let peer = neighbour("mv0", "10.90.2.200/24");
    let mut namespace = Namespace::new(&id("macvlan"));
    let ipam = host_local(&["10.90.2.0/24"], &[]);
    namespace.add("eth0", &format!(r#""type": "macvlan", "master": "mv0", "mode": "bridge", {ipam}"#));
    let id = start(engine, &namespace);
    serve(engine, &id, "80");
    inside(engine, &id, &ping("10.90.2.200"));
    assert_eq!(fetch(&peer, "10.90.2.2"), "from the guest\n");
    engine.remove(&id);
}

fn ipvlan(engine: &Engine) {
    let peer = neighbour("iv0", "10.90.3.200/24");
    // In mode l3 the host routes.
    ip("addr add 10.90.3.254/24 dev iv0");
    ip(&format!("-n {} route add 10.90.4.0/24 via 10.90.3.254", peer.name()));
    for (mode, subnet, own) in [("l2", "10.90.3.0/24", "10.90.3.2"), ("l3", "10.90.4.0/24", "10.90.4.2")] {
        let mut namespace = Namespace::new(&id("ipvlan"));
        let ipam = host_local(&[subnet], &["10.90.3.0/24"]);
        namespace.add("eth0", &format!(r#""type": "ipvlan", "master": "iv0", "mode": "{mode}", {ipam}"#));
        let id = start(engine, &namespace);
        serve(engine, &id, "80");
        inside(engine, &id, &ping("10.90.3.200"));
        assert_eq!(fetch(&peer, own), "from the guest\n", "{mode}");
        engine.remove(&id);
    }
}

fn two_interfaces(engine: &Engine) {
    let mut namespace = Namespace::new(&id("two"));
    namespace.add(
        "eth0",
        &format!(
            r#""type": "bridge", "bridge": "brtwo", "isGateway": true, {}"#,
            host_local(&["10.90.5.0/24"], &["0.0.0.0/0"])
        ),
    );
    namespace.add("net1", &ptp_config(&["10.90.6.0/24"], &[]));
    let id = start(engine, &namespace);
    let names = inside(engine, &id, &["ls", "/sys/class/net"]);
    assert_eq!(names.split_whitespace().collect::<Vec<_>>(), ["eth0", "lo", "net1"]);
    let routes = inside(engine, &id, &["ip", "route"]);
    assert_eq!(routes, namespace.run(&["busybox", "ip", "route"]));
    for gateway in ["10.90.5.1", "10.90.6.1"] {
        inside(engine, &id, &ping(gateway));
    }
    engine.remove(&id);
    drop(namespace);
    ip("link del brtwo");
}

/// `ctr run --cni` sets the network up between Create and Start, by `/proc/<pid>/ns/net`, as Docker does.
fn late_attach(engine: &Engine) {
    let config = format!(
        r#"{{"cniVersion": "1.0.0", "name": "late", "plugins": [{{{}}}]}}"#,
        ptp_config(&["10.90.7.0/24"], &["0.0.0.0/0"])
    );
    std::fs::create_dir_all("/etc/cni/net.d").expect("a directory for CNI");
    let path = "/etc/cni/net.d/10-late.conflist";
    std::fs::write(path, config).expect("a configuration for CNI");
    let mut run = Run::sh(&id("late"), "ip route; ping -c 1 -w 60 10.90.7.1");
    run.extra = vec!["--cni".into()];
    let output = engine.run(&run);
    std::fs::remove_file(path).expect("the configuration is there");
    assert_eq!(output.code(), 0, "{}{}", output.text(), output.stderr);
    assert!(output.text().contains("default via 10.90.7.1 dev eth0"), "{}", output.text());
}

fn connect_and_disconnect(engine: &Engine) {
    let mut namespace = Namespace::new(&id("later"));
    let id = start(engine, &namespace);
    // More often than the VM has network devices.
    for round in 0..5 {
        let subnet = format!("10.90.{}.0/24", 10 + round);
        namespace.add("eth0", &ptp_config(&[&subnet], &["0.0.0.0/0"]));
        let own = format!("10.90.{}.2", 10 + round);
        let output = finish(std::process::Command::new("ping").args(&ping(&own)[1..]));
        assert_eq!(output.code(), 0, "round {round}: {}{}", output.text(), engine.log());
        namespace.remove("eth0");
    }
    engine.remove(&id);
}

fn no_network(engine: &Engine) {
    let namespace = Namespace::new(&id("none"));
    let id = start(engine, &namespace);
    assert_eq!(inside(engine, &id, &["ls", "/sys/class/net"]), "lo\n");
    assert_eq!(inside(engine, &id, &["ip", "route"]), "");
    inside(engine, &id, &ping("127.0.0.1"));
    engine.remove(&id);
}

fn unsupported_link(engine: &Engine) {
    let namespace = Namespace::new(&id("tun"));
    namespace.run(&["ip", "tuntap", "add", "dev", "vpn0", "mode", "tun"]);
    namespace.run(&["ip", "link", "set", "vpn0", "up"]);
    let id = id("refused");
    let output = engine.run(&run_in(&id, &namespace));
    assert_ne!(output.code(), 0);
    assert!(output.stderr.contains("interface vpn0 is of kind tun"), "{}", output.stderr);
    engine.remove(&id);
}

fn shared_namespace(engine: &Engine) {
    let mut namespace = Namespace::new(&id("shared"));
    namespace.add("eth0", &ptp_config(&["10.90.8.0/24"], &[]));
    let first = start(engine, &namespace);
    let second = id("refused");
    let output = engine.run(&run_in(&second, &namespace));
    assert_ne!(output.code(), 0);
    assert!(output.stderr.contains("must be of one pod"), "{}", output.stderr);
    inside(engine, &first, &ping("10.90.8.1"));
    engine.remove(&second);
    engine.remove(&first);
}

/// Serves one connection on a port of the host: sends `data`, if any, and returns what comes.
pub(crate) fn exchange(data: Vec<u8>) -> (u16, thread::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("0.0.0.0:0").expect("a port of the host");
    let port = listener.local_addr().expect("its number").port();
    let serve = move || {
        let (mut stream, _) = listener.accept().expect("the container connects");
        if !data.is_empty() {
            stream.write_all(&data).expect("the container reads");
            stream.shutdown(std::net::Shutdown::Write).expect("the stream is open");
        }
        let mut received = Vec::new();
        stream.read_to_end(&mut received).expect("the container writes");
        received
    };
    (port, thread::spawn(serve))
}

/// Bytes that tell their places.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn counters(engine: &Engine) {
    const SIZE: usize = 4 << 20;
    let mut namespace = Namespace::new(&id("count"));
    namespace.add("eth0", &ptp_config(&["10.90.20.0/24"], &[]));
    let id = start(engine, &namespace);
    let count = |name: &str| -> usize {
        let path = format!("/sys/class/net/eth0/statistics/{name}_bytes");
        namespace.run(&["cat", &path]).trim().parse().expect("a number")
    };
    let (received, sent) = (count("rx"), count("tx"));
    let (port, server) = exchange(pattern(SIZE));
    inside(engine, &id, &["sh", "-c", &format!("nc 10.90.20.1 {port} < /dev/null > /dev/null")]);
    server.join().expect("the server ends");
    let (received, sent) = (count("rx") - received, count("tx") - sent);
    // Headers and acknowledgements come to some per cent.
    assert!((SIZE..SIZE + SIZE / 5).contains(&received), "received {received}");
    assert!((1000..SIZE / 5).contains(&sent), "sent {sent}");

    // The guest's own counters say the same.
    let guest = inside(engine, &id, &["cat", "/sys/class/net/eth0/statistics/rx_bytes"]);
    let guest: usize = guest.trim().parse().expect("a number");
    assert!(guest >= SIZE, "{guest}");
    engine.remove(&id);
}

fn groups(engine: &Engine) {
    let (namespace, other) = (Namespace::new(&id("group")), Namespace::new(&id("peer")));
    let ends = (namespace.name(), other.name());
    ip(&format!("link add eth0 netns {} type veth peer name eth0 netns {}", ends.0, ends.1));
    for (end, address) in [(&namespace, "fd90:5::2/64"), (&other, "fd90:5::1/64")] {
        end.run(&["busybox", "sysctl", "-q", "-w", "net.ipv6.conf.eth0.accept_dad=0"]);
        ip(&format!("-n {} addr add {address} dev eth0", end.name()));
        ip(&format!("-n {} link set eth0 up", end.name()));
    }
    let id = start(engine, &namespace);
    // Who has an address is asked for in a group that is made of it.
    other.run(&ping("fd90:5::2"));
    other.run(&ping("ff02::1%eth0"));

    let kept_back = || -> u64 {
        let count = namespace.run(&["cat", "/sys/class/net/mh0/statistics/tx_dropped"]);
        count.trim().parse().expect("a number")
    };
    let before = kept_back();
    let routers = ["ping", "-c", "3", "-i", "0.2", "-W", "1", "ff02::2%eth0"];
    assert_eq!(finish(&mut other.command(&routers)).code(), 1, "there are none");
    assert!(kept_back() >= before + 3);
    engine.remove(&id);
}

fn transfer(engine: &Engine) {
    const SIZE: usize = 32 << 20;
    let mut namespace = Namespace::new(&id("bulk"));
    namespace.add("eth0", &ptp_config(&["10.90.21.0/24"], &[]));
    let id = start(engine, &namespace);
    let (port, server) = exchange(pattern(SIZE));
    inside(engine, &id, &["sh", "-c", &format!("nc 10.90.21.1 {port} < /dev/null > /dev/shm/blob")]);
    server.join().expect("the server ends");
    let (port, server) = exchange(Vec::new());
    inside(engine, &id, &["sh", "-c", &format!("nc 10.90.21.1 {port} < /dev/shm/blob")]);
    let received = server.join().expect("the server ends");
    assert_eq!(received.len(), SIZE);
    assert!(received == pattern(SIZE), "the data is not the same");
    engine.remove(&id);
}

fn port_forward(engine: &Engine) {
    let mut namespace = Namespace::new(&id("forward"));
    namespace.add("eth0", &ptp_config(&["10.90.22.0/24"], &[]));
    let id = start(engine, &namespace);
    serve(engine, &id, "127.0.0.1:8080");
    // As containerd does it: enter the namespace, dial localhost.
    for address in ["127.0.0.1:8080", "[::1]:8080"] {
        assert_eq!(fetch(&namespace, address), "from the guest\n", "{address}");
    }
    let mut refused = namespace.command(&["busybox", "nc", "127.0.0.1", "8081"]);
    assert_eq!(finish(&mut refused).text(), "");

    // More than a buffer's worth, both ways; wget posts text.
    let cgi = "mkdir /www/cgi-bin; printf '#!/bin/sh\\necho; cat\\n' > /www/cgi-bin/echo; chmod 755 /www/cgi-bin/echo";
    inside(engine, &id, &["sh", "-c", cgi]);
    let text: String = (0..100_000).map(|number| format!("{number}\n")).collect();
    let data = engine.scratch().join(&id);
    std::fs::write(&data, &text).expect("a file to send");
    let file = format!("--post-file={}", data.display());
    let url = "http://127.0.0.1:8080/cgi-bin/echo";
    let output = finish(&mut namespace.command(&["busybox", "wget", "-q", "-O-", &file, url]));
    assert!(output.text() == text, "{} bytes came back: {}", output.stdout.len(), output.stderr);
    engine.remove(&id);
}

fn leaves_nothing(engine: &Engine) {
    let mut namespace = Namespace::new(&id("leak"));
    namespace.add("eth0", &ptp_config(&["10.90.23.0/24"], &[]));
    // The ingress queue of eth0 stays until the engine removes eth0; it leads nowhere.
    let queue = "qdisc ingress ffff: dev eth0 parent ffff:fff1 ---------------- \n";
    let state = |namespace: &Namespace| {
        let words = ["sh", "-c", "ip -o link | cut -d: -f2; ip route; tc filter show dev eth0 ingress"];
        namespace.run(&words).replace(queue, "")
    };
    let (before, links) = (Census::take(&engine.bundles()), state(&namespace));
    let id = start(engine, &namespace);
    serve(engine, &id, "127.0.0.1:8080");
    assert_eq!(fetch(&namespace, "127.0.0.1:8080"), "from the guest\n");
    assert!(state(&namespace).contains("mh0"));
    engine.remove(&id);
    assert_nothing_beyond(engine, &before);
    assert_eq!(state(&namespace), links);
    let refused = finish(&mut namespace.command(&["busybox", "nc", "127.0.0.1", "8080"]));
    assert_ne!(refused.code(), 0, "connections are still redirected");

    // The namespace is as good as new.
    namespace.run(&ping("10.90.23.1"));
    let id = start(engine, &namespace);
    inside(engine, &id, &ping("10.90.23.1"));

    // Nor is anything left of a pod whose shim was killed.
    shim_of("default", &id).kill();
    engine.remove(&id);
    assert_eq!(state(&namespace), links);
}

/// What nerdctl makes of networks.
pub(crate) const NERDCTL_CASES: &[Case] = &[
    ("network::a_published_port_of_a_bridge_leads_to_the_container", published_port),
    ("network::two_networks_are_attached_by_hooks", two_networks),
    ("network::network_none_has_loopback_only", none),
];

fn nerdctl(engine: &Engine, words: &[&str]) -> String {
    let output = finish(&mut engine.nerdctl(words));
    assert_eq!(output.code(), 0, "{words:?}: {}{}", output.stderr, engine.log());
    output.text()
}

fn published_port(engine: &Engine) {
    let id = id("published");
    let mut run = Run::new(&id, &["sleep", "1000"]);
    run.detach = true;
    run.extra = ["--net", "bridge", "-p", "8088:80"].map(str::to_owned).to_vec();
    let output = engine.run(&run);
    assert_eq!(output.code(), 0, "{}{}", output.stderr, engine.log());
    serve(engine, &id, "80");
    let words = get("127.0.0.1:8088");
    let output = finish(std::process::Command::new(&words[0]).args(&words[1..]));
    assert_eq!(output.text(), "from the guest\n", "{}", output.stderr);
    engine.remove(&id);
}

fn two_networks(engine: &Engine) {
    nerdctl(engine, &["network", "create", "--subnet", "10.91.1.0/24", "front"]);
    nerdctl(engine, &["network", "create", "--subnet", "10.91.2.0/24", "back"]);
    let id = id("both");
    let mut run = Run::new(&id, &["sleep", "1000"]);
    run.detach = true;
    run.extra = ["--net", "front", "--net", "back"].map(str::to_owned).to_vec();
    let output = engine.run(&run);
    assert_eq!(output.code(), 0, "{}{}", output.stderr, engine.log());
    for gateway in ["10.91.1.1", "10.91.2.1"] {
        inside(engine, &id, &ping(gateway));
    }
    engine.remove(&id);
    nerdctl(engine, &["network", "rm", "front", "back"]);
}

fn none(engine: &Engine) {
    let output = engine.run(&Run::new(&id("none"), &["ls", "/sys/class/net"]));
    assert_eq!(output.text(), "lo\n", "{}", output.stderr);
}
