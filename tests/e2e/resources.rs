//! What a pod may use: of the VM's memory and CPUs, and of the host.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use monohull_tests::engine::{Client, Engine, Output, Run, in_container};
use monohull_tests::hog::Hog;
use monohull_tests::leaks::processes;
use monohull_tests::memory::anonymous_kib;

use crate::Case;
use crate::containers::id;
use crate::failures::{shim_of, vmm_of};
use crate::volumes::volume;

pub(crate) const CASES: &[Case] = &[
    ("a_vms_memory_is_its_containers_limit_and_the_overhead", memory),
    ("a_pods_least_size_can_be_set_by_annotation", annotations),
    ("a_pod_has_the_cpus_of_its_limit_that_the_host_has", cpus),
    ("a_container_can_use_the_memory_it_was_promised", promised_memory),
    ("memory_that_a_container_frees_is_the_hosts_again_within_seconds", freed_memory),
    ("a_pod_grows_with_its_members", members),
    ("shim_and_vmm_are_in_the_pods_cgroup_which_goes_with_them", cgroup),
    ("a_dead_shims_cgroup_is_removed", cgroup_after_crash),
    ("a_vmm_killed_for_want_of_host_memory_is_reported_as_that", |engine| host_oom(engine, false)),
    ("a_pod_killed_whole_for_want_of_host_memory_is_reported_as_that", |engine| host_oom(engine, true)),
];

/// Memory of a VM beyond its containers': what the guest's kernel does not keep for itself, at most.
const OVERHEAD_KIB: u64 = 128 << 10;

fn mem_total_kib(output: &Output) -> u64 {
    let text = output.text();
    let total = text.split_whitespace().nth(1).and_then(|kib| kib.parse().ok());
    total.unwrap_or_else(|| panic!("no MemTotal in {text:?}: {}", output.stderr))
}

const MEM_TOTAL: [&str; 3] = ["grep", "MemTotal:", "/proc/meminfo"];

fn assert_memory(output: &Output, mib: u64) {
    let (total, wanted) = (mem_total_kib(output), mib << 10);
    assert!(total >= wanted && total <= wanted + OVERHEAD_KIB, "{total} KiB, {mib} MiB were asked for");
}

fn memory(engine: &Engine) {
    assert_memory(&engine.run(&Run::new(&id("default"), &MEM_TOTAL)), 512);
    let mut run = Run::new(&id("limit"), &MEM_TOTAL);
    run.memory_mib = Some(300);
    assert_memory(&engine.run(&run), 300);
}

fn annotations(engine: &Engine) {
    let mut run = Run::new(&id("annotated"), &MEM_TOTAL);
    run.annotations = vec!["io.monohull.memory_mib=700".into()];
    assert_memory(&engine.run(&run), 700);
    run.id = id("annotated");
    run.annotations = vec!["io.monohull.memory_mib=much".into()];
    let output = engine.run(&run);
    assert!(output.stderr.contains("annotations[io.monohull.memory_mib]"), "{}", output.stderr);
}

fn cpus(engine: &Engine) {
    let host = std::thread::available_parallelism().map_or(1, usize::from);
    let mut run = Run::new(&id("cpus"), &["nproc"]);
    run.annotations = vec!["io.monohull.cpus=2".into()];
    let output = engine.run(&run);
    assert_eq!(output.text().trim(), host.min(2).to_string(), "{}", output.stderr);
}

fn promised_memory(engine: &Engine) {
    let mut run = Run::new(&id("fill"), &["dd", "if=/dev/zero", "of=/dev/null", "bs=350M", "count=1"]);
    run.memory_mib = Some(400);
    let output = engine.run(&run);
    assert_eq!(output.code(), 0, "{}", output.stderr);
}

fn freed_memory(engine: &Engine) {
    const MIB: u32 = 256;
    // The guest's kernel reports what is free every other second.
    const PATIENCE: Duration = Duration::from_secs(8);
    let mut run = Run::new(&id("free"), &["sleep", "1000"]);
    run.memory_mib = Some(2 * MIB);
    run.extra.extend(volume(engine, Path::new(&in_container()), "/bin/in-container", true));
    let vmm = u32::try_from(vmm_of(&start(engine, &run)).pid()).expect("a pid");
    let used = || anonymous_kib(vmm).expect("the VMM's memory");
    let mut hog = Hog::start(engine, &run.id, "/bin/in-container", MIB).expect("a program in the container");
    let before = used();
    hog.take().expect("memory");
    let taken = used() - before;
    assert!(taken > u64::from(MIB) * 900, "{taken} KiB of the host's are used");
    hog.free().expect("freed");
    let begun = Instant::now();
    while used() > before + taken / 10 {
        let left = used().saturating_sub(before);
        assert!(begun.elapsed() < PATIENCE, "{left} of {taken} KiB are not the host's again");
        thread::sleep(Duration::from_millis(100));
    }
    hog.end().expect("it ends");
    engine.remove(&run.id);
}

/// Memory in MiB that `monohull ps` tells of a pod.
fn ps_mib(pod: &str) -> u64 {
    let output = std::process::Command::new("monohull").args(["ps", "--json"]).output().expect("monohull ps");
    let pods: serde_json::Value = serde_json::from_slice(&output.stdout).expect("monohull ps prints JSON");
    let pods = pods.as_array().expect("an array");
    let pod = pods.iter().find(|entry| entry["id"] == pod).expect("the pod is listed");
    pod["memory_mib"].as_u64().expect("a number")
}

/// Starts a container in the background. Returns its id, which with nerdctl is not its name.
fn start(engine: &Engine, run: &Run) -> String {
    let run = Run { detach: true, ..run.clone() };
    let output = engine.run(&run);
    assert_eq!(output.code(), 0, "{}", output.stderr);
    if engine.client() == Client::Nerdctl { output.text().trim().to_owned() } else { run.id }
}

fn members(engine: &Engine) {
    let mut sandbox = Run::new(&id("pod"), &["sleep", "1000"]);
    // A pod that nothing is known of begins with the default, which would be enough.
    sandbox.annotations = vec![
        "io.kubernetes.cri.container-type=sandbox".into(),
        format!("io.kubernetes.cri.sandbox-memory={}", 16 << 20),
    ];
    let pod = start(engine, &sandbox);
    let before = ps_mib(&pod);

    let mut member = Run::new(&id("member"), &MEM_TOTAL);
    member.memory_mib = Some(300);
    member.annotations = vec![
        "io.kubernetes.cri.container-type=container".into(),
        format!("io.kubernetes.cri.sandbox-id={pod}"),
    ];
    let output = engine.run(&member);

    assert_memory(&output, 300);
    assert_eq!(ps_mib(&pod), before, "it is given back");
    engine.remove(&sandbox.id);
}

/// The unified cgroup of a process, as a directory.
fn cgroup_of(pid: u32) -> PathBuf {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).expect("a unified cgroup");
    Path::new("/sys/fs/cgroup").join(path)
}

/// Names of our processes whose cgroup is the pod's.
pub(crate) fn members_of(cgroup: &Path) -> Vec<String> {
    let is_in = |pid: &u32| cgroup_of(*pid) == cgroup;
    let mut names: Vec<_> =
        processes().into_iter().filter(|(pid, _)| is_in(pid)).map(|(_, name)| name).collect();
    names.sort();
    names
}

/// The cgroup of pod `id`, wherever it is.
fn cgroup_named(id: &str) -> PathBuf {
    let name = format!("monohull-{id}");
    let found = processes().into_iter().map(|(pid, _)| cgroup_of(pid));
    let mut found = found.filter(|path| path.file_name().is_some_and(|last| *last == *name));
    found.next().unwrap_or_else(|| panic!("no process is in {name}"))
}

fn cgroup(engine: &Engine) {
    let run = Run::new(&id("cgroup"), &["sleep", "1000"]);
    let pod = start(engine, &run);
    let cgroup = cgroup_named(&pod);
    let mut members = members_of(&cgroup);
    // The engine's logger.
    members.retain(|name| name != "nerdctl");
    assert_eq!(members, ["containerd-shim-monohull-v2", "monohull-fs", "monohull-vmm"]);
    // What the pod shares with its template is in nobody's cgroup.
    let filled = engine.exec(&run.id, &["dd", "if=/dev/zero", "of=/dev/shm/fill", "bs=1M", "count=32"]);
    assert_eq!(filled.code(), 0, "{}", filled.stderr);
    let usage = fs::read_to_string(cgroup.join("memory.current")).expect("memory is accounted");
    assert!(usage.trim().parse().is_ok_and(|bytes: u64| bytes > 32 << 20), "the guest's memory: {usage}");
    engine.remove(&run.id);
    assert!(!cgroup.exists(), "{}", cgroup.display());
}

fn cgroup_after_crash(engine: &Engine) {
    let run = Run::new(&id("crash"), &["sleep", "1000"]);
    let pod = start(engine, &run);
    let cgroup = cgroup_named(&pod);
    let shim = processes().into_iter().find(|(pid, name)| name.contains("shim") && cgroup_of(*pid) == cgroup);
    let shim = i32::try_from(shim.expect("a shim").0).expect("a pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL)
        .expect("kill");
    engine.remove(&run.id);
    assert!(!cgroup.exists(), "{}", cgroup.display());
}

/// `whole`: the kernel kills all processes of the pod's cgroup at once, the shim too.
fn host_oom(engine: &Engine, whole: bool) {
    let parent = Path::new("/sys/fs/cgroup").join(id("host-oom"));
    let name = id("oom");
    let mut run = Run::new(&name, &["sleep", "1000"]);
    let path = format!("/{}", parent.file_name().map(|name| name.to_string_lossy()).unwrap_or_default());
    run.extra = match engine.client() {
        Client::Ctr => vec!["--cgroup".into(), format!("{path}/{name}")],
        Client::Nerdctl => vec!["--cgroup-parent".into(), path],
    };
    let mut events = engine.ctr(&["events"]).stdout(Stdio::piped()).spawn().expect("ctr events");
    let pod = start(engine, &run);
    let (cgroup, shim) = (cgroup_named(&pod), shim_of("default", &pod).pid());
    assert_eq!(cgroup.parent(), Some(parent.as_path()));
    fs::write(cgroup.join("memory.oom.group"), u8::from(whole).to_string()).expect("kill all or one");

    // The guest's memory is the host's when it is used. Were the limit below what is used already, the kernel would go on killing
    // while the VMM ends.
    let used = fs::read_to_string(parent.join("memory.current")).expect("memory is accounted");
    let limit = used.trim().parse::<u64>().expect("a number") + (8 << 20);
    fs::write(parent.join("memory.max"), limit.to_string()).expect("limit the pod");
    let _ = engine.exec(&name, &["dd", "if=/dev/zero", "of=/dev/shm/data", "bs=1M", "count=48"]);

    let lines = BufReader::new(events.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
    let of_pod = lines.filter(|line| line.contains(&pod));
    let told: Vec<String> =
        of_pod.filter(|line| line.contains("/tasks/oom") || line.contains("/tasks/exit")).take(2).collect();
    let _ = events.kill();
    let _ = events.wait();
    assert!(told[0].contains("/tasks/oom"), "{told:?}");
    assert!(told[1].contains("137"), "{told:?}");
    let lives = processes().into_iter().any(|(pid, _)| i32::try_from(pid) == Ok(shim));
    assert_eq!(lives, !whole);
    engine.remove(&name);
    assert!(fs::remove_dir(&parent).is_ok(), "nothing is left in {}", parent.display());
}
