//! The network of a container: throughput both ways, and round trips.

use std::io::{self, BufRead, BufReader};
use std::process::{Command, Stdio};

use monohull_tests::engine::{Engine, MONOHULL, RUNC, Run, finish, unique};
use monohull_tests::network::Namespace;

use crate::program::Program;
use crate::report::Report;
use crate::table::Table;

const IPERF: &str = "/usr/bin/iperf3";
const HOST: &str = "10.90.100.1";
const CONTAINER: &str = "10.90.100.2";
/// Of each direction.
const SECONDS: &str = "5";
const PINGS: &str = "100";

/// Measures and prints.
pub(crate) fn both_ways(engine: &Engine, report: &mut Report) -> io::Result<()> {
    let iperf = Program::copy(IPERF, engine.scratch())?;
    let mut table = Table::new(&[
        "veth (CNI's ptp), one TCP stream",
        "to the container, Mbit/s",
        "from it, Mbit/s",
        "ping, ms",
    ]);
    for (name, runtime) in [("runc", RUNC), ("Monohull", MONOHULL)] {
        let id = format!("bench-net-{}", unique());
        let mut namespace = Namespace::new(&id);
        namespace.add(
            "eth0",
            r#""type": "ptp", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.90.100.0/24", "rangeStart": "10.90.100.2", "rangeEnd": "10.90.100.2"}]]}"#,
        );
        let mut run = Run::new(&id, &["sleep", "1000"]);
        run.detach = true;
        runtime.clone_into(&mut run.runtime);
        run.extra = vec!["--with-ns".into(), format!("network:{}", namespace.path().display())];
        run.extra.extend(iperf.mount());
        let output = engine.run(&run);
        assert!(output.status.success(), "{name}: {}", output.stderr);
        let to = throughput(engine, &id, &iperf, &["-R"])?;
        let from = throughput(engine, &id, &iperf, &[])?;
        let round_trip = ping()?;
        table.row(&[name.to_owned(), format!("{to:.0}"), format!("{from:.0}"), format!("{round_trip:.3}")]);
        engine.remove(&id);
    }
    report.table(&format!("Network, iperf3 for {SECONDS} s each way, {PINGS} pings"), &table);
    Ok(())
}

/// Mbit/s from the container, or with `-R` to it.
fn throughput(engine: &Engine, id: &str, iperf: &Program, options: &[&str]) -> io::Result<f64> {
    let mut server = Command::new(IPERF);
    let mut server = server
        .args(["--server", "--one-off", "--forceflush"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = server.stdout.take().ok_or_else(|| io::Error::other("iperf3 has no stdout"))?;
    let mut lines = BufReader::new(stdout).lines();
    lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("listening")));
    let program = iperf.words();
    let program: Vec<&str> = program.iter().map(String::as_str).collect();
    let arguments = ["--client", HOST, "--time", SECONDS, "--json"];
    let output = engine.exec(id, &[&program[..], &arguments[..], options].concat());
    // Its last lines go nowhere.
    lines.for_each(drop);
    server.wait()?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let bits = report.pointer("/end/sum_received/bits_per_second").and_then(serde_json::Value::as_f64);
    bits.map(|bits| bits / 1e6).ok_or_else(|| io::Error::other(format!("iperf3: {}", output.text())))
}

/// Average round trip from the host to the container in ms.
fn ping() -> io::Result<f64> {
    let output = finish(Command::new("ping").args(["-q", "-c", PINGS, "-i", "0.01", CONTAINER]));
    let text = output.text();
    let average = text.rsplit(" = ").next().and_then(|times| times.split('/').nth(1)?.parse().ok());
    average.ok_or_else(|| io::Error::other(format!("ping: {text}{}", output.stderr)))
}
