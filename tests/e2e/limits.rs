//! A pod's disk and network are no faster than the host's settings say.

use monohull_tests::engine::{Engine, Run};
use monohull_tests::network::Namespace;

use crate::block::{Loop, MIB};
use crate::containers::id;
use crate::network::{exchange, inside, pattern, ptp_config, run_in};

/// What is moved at 1 MiB/s. A second's worth passes at once, and so does what is under way at the end.
const SIZE: u64 = 4 * MIB;
/// What that takes at least, in seconds.
const LEAST: f64 = 2.0;
/// Prints the guest's time.
const NOW: &str = "cut -d' ' -f1 /proc/uptime";

/// A runtime with this setting at 1 MiB/s.
fn limited(engine: &Engine, setting: &str) -> String {
    let settings = format!("{setting} = {MIB}\n");
    engine.install_settings(&setting.replace('_', "-"), &settings).expect("a shim to run")
}

/// The seconds between the two times that a script printed.
fn seconds(printed: &str) -> f64 {
    let times: Vec<f64> = printed.split_whitespace().map(|time| time.parse().expect("a time")).collect();
    let [before, after] = times[..] else { panic!("{printed:?}") };
    after - before
}

pub(crate) fn disk(engine: &Engine) {
    let disk = Loop::new(engine, 2 * SIZE);
    let mut run = Run::sh(
        &id("limited"),
        &format!("{NOW}; dd if=/dev/xvda of=/dev/null bs=1M count={} 2>/dev/null; {NOW}", SIZE / MIB),
    );
    run.runtime = limited(engine, "disk_bytes_per_second");
    run.extra = vec!["--device".into(), disk.option("/dev/xvda", "r")];
    let output = engine.run(&run);
    assert_eq!(output.code(), 0, "{}{}", output.stderr, engine.log());
    let took = seconds(&output.text());
    assert!(took >= LEAST, "{took} s");
}

pub(crate) fn network(engine: &Engine) {
    let mut namespace = Namespace::new(&id("limited"));
    namespace.add("eth0", &ptp_config(&["10.90.24.0/24"], &[]));
    let id = id("limited");
    let mut run = run_in(&id, &namespace);
    run.runtime = limited(engine, "network_bytes_per_second");
    let output = engine.run(&run);
    assert_eq!(output.code(), 0, "{}{}", output.stderr, engine.log());
    let size = usize::try_from(SIZE).expect("a small number");

    let (port, server) = exchange(pattern(size));
    let fetch = format!("{NOW}; nc 10.90.24.1 {port} < /dev/null > /dev/shm/blob; {NOW}");
    let took = seconds(&inside(engine, &id, &["sh", "-c", &fetch]));
    server.join().expect("the server ends");
    assert!(took >= LEAST, "received in {took} s");

    let (port, server) = exchange(Vec::new());
    let send = format!("{NOW}; nc 10.90.24.1 {port} < /dev/shm/blob; {NOW}");
    let took = seconds(&inside(engine, &id, &["sh", "-c", &send]));
    assert!(server.join().expect("the server ends") == pattern(size), "the data is not the same");
    assert!(took >= LEAST, "sent in {took} s");
    engine.remove(&id);
}
