//! How the processes of a running pod are confined, seen from the host.

use std::fs;
use std::process::Command;

use monohull_tests::engine::{Engine, Run, finish};
use serde_json::Value;

use crate::Case;
use crate::containers::id;
use crate::failures::vmm_of;

pub(crate) const CASES: &[Case] = &[
    ("security::a_vmm_has_no_rights_no_path_and_no_other_process", vmm_confinement),
    ("security::a_vmm_has_no_file_but_what_its_vm_is_made_of", vmm_files),
    ("security::a_vmm_of_a_host_without_user_namespaces_has_no_rights_either", vmm_without_user_namespaces),
    ("security::a_vmms_threads_can_make_few_system_calls", vmm_filters),
    ("security::an_fs_server_has_only_the_rights_over_files", fs_confinement),
    ("security::a_shim_keeps_few_rights_but_in_the_thread_that_starts_hooks", shim_confinement),
];

/// The first number that VMMs run as (`monohull_vmm::api::user_of`).
const FIRST_USER: u64 = 0x7000_0000;
/// Limits of a VMM, soft and hard. Guest memory is in no core file.
const LIMITS: [(&str, &str); 5] = [
    ("Max core file size", "0"),
    ("Max processes", "512"),
    ("Max open files", "4096"),
    ("Max locked memory", "0"),
    ("Max msgqueue size", "0"),
];
/// The most calls that a thread of a class may be able to make.
const MOST_CALLS: [(&str, u64); 4] = [("main", 40), ("vcpu", 20), ("io", 26), ("starter", 40)];

/// A running pod with a volume, for which there is an fs server.
fn pod(engine: &Engine) -> String {
    let name = id("security");
    let mut run = Run::new(&name, &["sleep", "1000"]);
    run.detach = true;
    let output = engine.run(&run);
    assert_eq!(output.code(), 0, "{}{}", output.stderr, engine.log());
    name
}

/// What `monohull ps --security` says of a process of a pod.
fn confinement(pod: &str, process: &str) -> Value {
    let shown = finish(Command::new("monohull").args(["ps", "--security"]));
    assert_eq!(shown.code(), 0, "{}", shown.stderr);
    println!("{}", shown.text());
    let output = finish(Command::new("monohull").args(["ps", "--security", "--json"]));
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let row = rows.into_iter().find(|row| row["pod"] == pod && row["process"] == process);
    row.unwrap_or_else(|| panic!("no {process} of {pod} in {}", output.text()))
}

/// Asserts what holds for every VMM, with these namespaces of its own.
fn assert_confined(vmm: &Value, namespaces: &[&str]) {
    assert!(vmm["user"].as_u64().is_some_and(|user| user >= FIRST_USER), "{vmm}");
    assert_eq!(vmm["namespaces"], serde_json::json!(namespaces));
    assert_eq!(vmm["capabilities"], 0);
    assert_eq!(vmm["no_new_privileges"], true);
    assert!(vmm["seccomp_filters"].as_u64().is_some_and(|filters| filters >= 1), "{vmm}");
    assert_eq!(vmm["root_is_empty"], true);
}

fn vmm_confinement(engine: &Engine) {
    let pod = pod(engine);
    assert_confined(&confinement(&pod, "vmm"), &["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]);
    let pid = vmm_of(&pod).pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let field = |name: &str| {
        let field = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        field.unwrap_or_else(|| panic!("no {name} in {status}")).split_whitespace().collect::<Vec<_>>()
    };
    assert_eq!(field("Groups"), [""; 0], "no groups");
    assert_eq!(field("Seccomp"), ["2"], "filters, not strict mode");
    assert_eq!(field("NSpid").last(), Some(&"1"), "the first process of its namespace");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("its limits");
    for (name, most) in LIMITS {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).expect("a limit");
        assert_eq!(line.split_whitespace().take(2).collect::<Vec<_>>(), [most; 2], "{name}");
    }
    engine.remove(&pod);
}

/// The host's limit of user namespaces, put back when dropped.
struct UserNamespaces {
    before: String,
}

impl UserNamespaces {
    const LIMIT: &str = "/proc/sys/user/max_user_namespaces";

    fn none() -> Self {
        let before = fs::read_to_string(Self::LIMIT).expect("the limit");
        fs::write(Self::LIMIT, "0").expect("no more of them");
        Self { before }
    }
}

impl Drop for UserNamespaces {
    fn drop(&mut self) {
        let _ = fs::write(Self::LIMIT, &self.before);
    }
}

fn vmm_without_user_namespaces(engine: &Engine) {
    let _none = UserNamespaces::none();
    let pod = pod(engine);
    assert_confined(&confinement(&pod, "vmm"), &["cgroup", "ipc", "mnt", "net", "pid", "uts"]);
    engine.remove(&pod);
}

fn vmm_files(engine: &Engine) {
    let pod = pod(engine);
    let pid = vmm_of(&pod).pid();
    let mut files: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("its files")
        .map(|entry| {
            fs::read_link(entry.expect("a file").path()).expect("a link").to_string_lossy().into_owned()
        })
        .collect();
    files.sort_unstable();
    println!("open files of a VMM: {files:#?}");
    let known = |file: &String| {
        let kinds = ["anon_inode:", "socket:[", "pipe:[", "/dev/null", "/dev/kvm", "/dev/net/tun", "/memfd:"];
        kinds.iter().any(|kind| file.starts_with(kind)) || file.starts_with("/run/monohull/_templates/")
    };
    let others: Vec<_> = files.iter().filter(|file| !known(file)).collect();
    assert!(others.is_empty(), "{others:#?}");
    engine.remove(&pod);
}

fn vmm_filters(_: &Engine) {
    let output = finish(Command::new("/usr/libexec/monohull/monohull-vmm").arg("--filters"));
    assert_eq!(output.code(), 0, "{}", output.stderr);
    let text = output.text();
    println!("{text}");
    for (class, most) in MOST_CALLS {
        let line = text.lines().find(|line| line.starts_with(&format!("{class}: ")));
        let count = line.and_then(|line| line.split(' ').nth(1)?.parse::<u64>().ok());
        assert!(count.is_some_and(|count| count <= most), "{class}: {count:?}, at most {most}");
    }
}

fn fs_confinement(engine: &Engine) {
    let pod = pod(engine);
    let server = confinement(&pod, "fs");
    assert_eq!(server["namespaces"], serde_json::json!(["ipc", "mnt", "net", "pid", "uts"]));
    assert_eq!(server["capabilities"], 8);
    assert_eq!(server["no_new_privileges"], true);
    assert!(server["seccomp_filters"].as_u64().is_some_and(|filters| filters >= 1), "{server}");
    engine.remove(&pod);
}

/// Of some forty rights of root (`shim/src/rights.rs`).
const RIGHTS_OF_A_SHIM: u64 = 15;

fn shim_confinement(engine: &Engine) {
    let pod = pod(engine);
    let shim = confinement(&pod, "owner");
    assert_eq!(shim["capabilities"], RIGHTS_OF_A_SHIM);
    assert_eq!(shim["no_new_privileges"], true);
    let mut keeps_all = Vec::new();
    for thread in fs::read_dir(format!("/proc/{}/task", shim["pid"])).expect("its threads") {
        let thread = thread.expect("a thread").path();
        let read = |name: &str| fs::read_to_string(thread.join(name)).expect("of a living thread");
        let status = read("status");
        let set =
            status.lines().find_map(|line| line.strip_prefix("CapBnd:")).expect("its capabilities").trim();
        let set = u64::from_str_radix(set, 16).expect("a number");
        if u64::from(set.count_ones()) > RIGHTS_OF_A_SHIM {
            keeps_all.push(read("comm").trim().to_owned());
        }
    }
    assert_eq!(keeps_all, ["host"]);
    engine.remove(&pod);
}
