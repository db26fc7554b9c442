//! What `monohull metrics` and `monohull top` tell agrees with what the host's kernel tells others.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use monohull_tests::cri::{Pod, remove};
use monohull_tests::engine::{Engine, Run, finish};
use monohull_tests::memory;
use monohull_tests::watch::Watch;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Case;
use crate::containers::id;
use crate::failures::{shim_of, vmm_of};

pub(crate) const CASES: &[Case] = &[
    ("metrics::figures_of_a_pod_agree_with_the_hosts_own", agreement),
    ("metrics::starts_and_ends_of_pods_are_counted_when_they_are_gone", counters),
    ("metrics::figures_are_served_by_http_until_the_server_is_ended", served),
    ("metrics::top_shows_a_pod_with_what_it_uses", top),
];
pub(crate) const CRI_CASES: &[Case] = &[("metrics::figures_know_pods_by_their_kubernetes_names", names)];

/// Figures by name and labels, as they are printed.
type Figures = BTreeMap<String, f64>;

fn figures() -> Figures {
    let output = finish(Command::new("monohull").arg("metrics"));
    assert_eq!(output.code(), 0, "{}", output.stderr);
    parse(&output.text())
}

fn parse(text: &str) -> Figures {
    let figure = |line: &str| {
        let (name, value) = line.rsplit_once(' ').expect("a figure");
        (name.to_owned(), value.parse().expect("a number"))
    };
    text.lines().filter(|line| !line.starts_with('#')).map(figure).collect()
}

/// A figure of a pod of containerd's namespace `default`; `more` are labels.
fn of(figures: &Figures, name: &str, pod: &str, more: &str) -> f64 {
    let key = format!("{name}{{pod=\"{pod}\",namespace=\"default\"{more}}}");
    *figures.get(&key).unwrap_or_else(|| panic!("no {key} in {figures:#?}"))
}

fn start(engine: &Engine, script: &str) -> String {
    let mut run = Run::sh(&id("metrics"), script);
    run.detach = true;
    let output = engine.run(&run);
    assert_eq!(output.code(), 0, "{}{}", output.stderr, engine.log());
    run.id
}

fn assert_close(what: &str, told: f64, host: f64) {
    println!("{what}: {told} told, {host} by the host");
    assert!((told - host).abs() <= 0.05 * host.max(told), "{what}: {told} told, but {host} by the host");
}

/// A number of a file of lines "name number".
fn number(path: &Path, name: &str) -> f64 {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next()?.parse().ok());
    number.unwrap_or_else(|| panic!("no {name} in {text}"))
}

fn agreement(engine: &Engine) {
    // Some guest memory and CPU time, and then nothing that changes.
    let script =
        "dd if=/dev/zero of=/dev/shm/x bs=1M count=40 2> /dev/null; touch /dev/shm/done; exec sleep 1000";
    let pod = start(engine, script);
    while engine.exec(&pod, &["test", "-e", "/dev/shm/done"]).code() != 0 {}
    let figures = figures();
    let [vmm, owner] = [vmm_of(&pod).pid(), shim_of("default", &pod).pid()];

    let part = |part: &str| of(&figures, "monohull_pod_memory_bytes", &pod, &format!(",part=\"{part}\""));
    let rollup =
        |pid: i32, name: &str| 1024.0 * number(Path::new(&format!("/proc/{pid}/smaps_rollup")), name);
    let private = |pid| rollup(pid, "Private_Clean") + rollup(pid, "Private_Dirty");
    assert_close("owner", part("owner"), private(owner));
    let guest = memory::of(vmm.try_into().expect("a pid")).guest as f64 * 1024.0;
    assert_close("guest", part("guest"), guest);
    assert!(guest >= f64::from(40 << 20), "{guest}: the guest has written 40 MiB");
    // What the VMM has beside its guest's memory is some of its anonymous memory and its program.
    let anonymous = rollup(vmm, "Anonymous");
    let most = 1.05 * (part("guest") + part("vmm"));
    assert!(part("guest") <= 1.05 * anonymous && anonymous <= most, "{anonymous} {figures:#?}");
    assert!(part("template") + part("guest") <= 1.05 * rollup(vmm, "Rss"), "{figures:#?}");

    let cgroup = Path::new("/sys/fs/cgroup/default").join(format!("monohull-{pod}"));
    let current = fs::read_to_string(cgroup.join("memory.current")).expect("memory.current");
    let current: f64 = current.trim().parse().expect("a number");
    assert_close("cgroup", of(&figures, "monohull_pod_cgroup_memory_bytes", &pod, ""), current);
    let used = number(&cgroup.join("cpu.stat"), "usage_usec") / 1e6;
    let told = of(&figures, "monohull_pod_cgroup_cpu_seconds_total", &pod, "");
    assert_close("CPU of the cgroup", told, used);
    let process =
        |name| of(&figures, "monohull_pod_cpu_seconds_total", &pod, &format!(",process=\"{name}\""));
    let sum: f64 = ["owner", "vmm", "fs"].map(process).iter().sum();
    assert!(sum <= 1.05 * told, "{sum} s by process, {told} s by cgroup");
    let guest = of(&figures, "monohull_pod_guest_cpu_seconds_total", &pod, "");
    assert!(0.0 < guest && guest <= process("vmm"), "{figures:#?}");
    assert_eq!(figures["monohull_scrape_failures"], 0.0);
    engine.remove(&pod);
}

/// How often VMs have ended so.
fn ends(figures: &Figures, reason: &str) -> f64 {
    figures[&format!("monohull_vm_exits_total{{reason=\"{reason}\"}}")]
}

fn starts(figures: &Figures) -> f64 {
    let named = |name: &&String| name.starts_with("monohull_pod_starts_total") && !name.contains("failed\"");
    figures.keys().filter(named).map(|name| figures[name]).sum()
}

fn counters(engine: &Engine) {
    let before = figures();
    let [orderly, killed, orphaned] = [(); 3].map(|()| start(engine, "exec sleep 1000"));
    let started = figures();
    assert_eq!(starts(&started) - starts(&before), 3.0);
    let steps = "monohull_pod_start_step_seconds_count{step=\"sandbox created\"}";
    assert_eq!(started[steps] - before.get(steps).copied().unwrap_or_default(), 3.0);
    let containers = "monohull_container_start_seconds_count";
    assert_eq!(started[containers] - before[containers], 3.0);

    engine.remove(&orderly);
    vmm_of(&killed).kill();
    assert_eq!(engine.wait(&killed), 137);
    engine.remove(&killed);
    // containerd cleans up after it, and the pod is counted before its directory goes.
    let (directory, deadline) =
        (Path::new("/run/monohull/default"), Instant::now() + Duration::from_secs(30));
    let watch = Watch::new(vec![directory.into()]).expect("inotify");
    shim_of("default", &orphaned).kill();
    let cleaned = watch.until(deadline, &[], || !directory.join(&orphaned).exists());
    assert!(cleaned.expect("poll"), "{}", engine.log());
    engine.remove(&orphaned);

    let after = figures();
    let orderly_ends = |figures| ends(figures, "stopped") + ends(figures, "guest_shutdown");
    assert_eq!(orderly_ends(&after) - orderly_ends(&before), 1.0);
    for reason in ["killed", "owner_died"] {
        assert_eq!(ends(&after, reason) - ends(&before, reason), 1.0, "{reason}");
    }
}

/// A server that is ended with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already if the test has come to its end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ask(request: &str) -> Option<String> {
    let mut stream = TcpStream::connect("127.0.0.1:9476").ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn served(engine: &Engine) {
    let pod = start(engine, "exec sleep 1000");
    let spawned = Command::new("monohull").args(["metrics", "--listen", "127.0.0.1:9476"]).spawn();
    let mut server = Server(spawned.expect("a server"));
    let deadline = Instant::now() + Duration::from_secs(30);
    while ask("GET /healthz HTTP/1.0\r\n\r\n").is_none() {
        assert!(Instant::now() < deadline, "it does not listen");
    }
    let answer = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").expect("an answer");
    let (head, text) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains("version=0.0.4"), "{head}");
    assert_eq!(of(&parse(text), "monohull_pod_containers", &pod, ""), 1.0);
    kill(Pid::from_raw(server.0.id().try_into().expect("a pid")), Signal::SIGTERM).expect("it is there");
    assert_eq!(server.0.wait().expect("its end").code(), Some(0));
    engine.remove(&pod);
}

fn top(engine: &Engine) {
    let pod = start(engine, "while :; do :; done");
    let once = finish(Command::new("monohull").args(["top", "--once", "-d", "3"]));
    assert_eq!(once.code(), 0, "{}", once.stderr);
    let text = once.text();
    println!("{text}");
    let line = text.lines().find(|line| line.starts_with(&pod)).unwrap_or_else(|| panic!("{text}"));
    let cells: Vec<_> = line.split_whitespace().collect();
    let cpu: f64 = cells[2].parse().expect("a rate");
    assert!(cpu > 20.0, "a busy guest: {line}");
    let size = cells[3].split_once('/').and_then(|(_, size)| size.parse::<u32>().ok());
    // 512 MiB for its container, 128 for the guest, and a little for the guest's page structures.
    assert!(size.is_some_and(|mib| (640..=660).contains(&mib)), "{line}");

    // Without a terminal it says what to do; in batches it goes on until it is ended.
    let refused = finish(Command::new("monohull").arg("top"));
    assert_eq!(refused.code(), 2);
    assert!(refused.stderr.contains("--once"), "{}", refused.stderr);
    let spawned = Command::new("monohull").args(["top", "-b", "-d", "0.5"]).stdout(Stdio::piped()).spawn();
    let mut batch = Server(spawned.expect("monohull top"));
    let lines = BufReader::new(batch.0.stdout.take().expect("its output")).lines().map_while(Result::ok);
    assert_eq!(lines.filter(|line| line.starts_with(&pod)).take(2).count(), 2);
    engine.remove(&pod);
}

/// With a containerd of its own: the others have no CRI.
fn names(_: &Engine) {
    let cri = Engine::start_cri().expect("a containerd with a CRI");
    for handler in ["monohull", "monohull-sandbox"] {
        let pod = Pod::new(&cri, &format!("named-by-{handler}"), "/e2e-metrics").expect("its configuration");
        let id = pod.run(&cri, handler).expect("a pod");
        let output = finish(Command::new("monohull").arg("metrics"));
        let text = output.text();
        let info = text.lines().find(|line| line.starts_with("monohull_pod_info{") && line.contains(&id));
        let info = info.unwrap_or_else(|| panic!("no pod {id} in {text}"));
        let name = format!("kubernetes_pod=\"named-by-{handler}\",kubernetes_namespace=\"default\"");
        assert!(info.contains(&name), "{info}");
        assert!(info.contains(&format!("kubernetes_uid=\"named-by-{handler}\"")), "{info}");
        let received = format!(
            "monohull_pod_network_receive_bytes_total{{pod=\"{id}\",namespace=\"k8s.io\",interface=\"eth0\"}} "
        );
        assert!(text.contains(&received), "no {received} in {text}");
        let removed = remove(&cri, &id);
        assert_eq!(removed.code(), 0, "{}{}", removed.stderr, cri.log());
    }
    fs::remove_dir("/sys/fs/cgroup/e2e-metrics").expect("nothing is in the pods' cgroup");
}
