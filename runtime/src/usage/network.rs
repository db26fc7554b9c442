//! What a pod's interfaces have received and sent: those of its network namespace, which its owner is in.

use std::fs;
use std::io;

/// What one interface has received and sent, seen from the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Its name in the pod's network namespace, which is that in the guest.
    pub interface: String,
    /// Bytes to the pod.
    pub received_bytes: u64,
    /// Packets to the pod.
    pub received_packets: u64,
    /// Bytes from the pod.
    pub sent_bytes: u64,
    /// Packets from the pod.
    pub sent_packets: u64,
}

/// The interfaces of the network namespace of process `owner`. None if that is the host's own: `monohull run` is in it.
pub(super) fn of(owner: i32) -> io::Result<Vec<Traffic>> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net"));
    let own = namespace(&owner.to_string())?;
    // An exporter in a container is not in the host's, but sees its first process.
    if ["self", "1"].into_iter().any(|pid| namespace(pid).is_ok_and(|hosts| hosts == own)) {
        return Ok(Vec::new());
    }
    Ok(parse(&fs::read_to_string(format!("/proc/{owner}/net/dev"))?))
}

/// Reads `/proc/PID/net/dev` (proc(5)), without the loopback interface and the taps that join interfaces to the guest.
fn parse(text: &str) -> Vec<Traffic> {
    let mut all = Vec::new();
    for (name, rest) in text.lines().filter_map(|line| line.split_once(':')) {
        let name = name.trim();
        let numbers: Vec<u64> = rest.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let [received_bytes, received_packets, _, _, _, _, _, _, sent_bytes, sent_packets, ..] = numbers[..]
        else {
            continue;
        };
        if name != "lo" && !crate::network::is_tap(name) {
            let interface = name.to_owned();
            all.push(Traffic { interface, received_bytes, received_packets, sent_bytes, sent_packets });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0: 4000        40    0    0    0     0          0         0      500       5    0    0    0     0       0          0
   mh0:     500       5    0    0    0     0          0         0     4000      40    0    0    0     0       0          0
";

    #[test]
    fn interfaces_are_counted_without_loopback_and_taps() {
        let eth0 = Traffic {
            interface: "eth0".into(),
            received_bytes: 4000,
            received_packets: 40,
            sent_bytes: 500,
            sent_packets: 5,
        };
        assert_eq!(parse(DEV), [eth0]);
    }

    #[test]
    fn the_hosts_own_interfaces_are_no_pods() {
        assert_eq!(of(std::process::id().try_into().unwrap()).unwrap(), []);
    }
}
