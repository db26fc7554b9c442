//! Snapshots of a pod's guest by the bare VMM, and pods that are forked from templates.

use std::collections::HashSet;
use std::process::Command;

use libtest_mimic::Trial;
use monohull_tests::engine::{Output, finish, image};
use monohull_tests::templates;
use monohull_tests::vm::Guest;
use monohull_vmm::api::WorkingSet;

/// A long one.
pub(crate) const ALL_UNIQUE: &str = "monohull::100_forks_share_no_random_numbers";

/// Not on a host before Linux 6.11.
const MAPPED_AHEAD: &str = "what_a_fork_is_said_to_use_is_there_before_it_runs";

pub(crate) fn trials() -> Vec<Trial> {
    let cases: [(&str, bool, fn()); 8] = [
        ("a_guest_that_is_ready_is_forked_and_each_fork_answers", false, forks_answer),
        (MAPPED_AHEAD, false, mapped_ahead),
        ("a_fork_takes_memory_that_is_added", false, memory_is_added),
        ("12_forks_share_no_random_numbers", true, || share_no_random_numbers(12)),
        ("100_forks_share_no_random_numbers", true, || share_no_random_numbers(100)),
        ("a_pod_without_a_template_boots", false, boots_without),
        ("a_pod_whose_template_is_damaged_boots_and_the_template_is_gone", true, boots_with_a_damaged_one),
        ("the_vmm_passes_its_own_tests_on_this_hosts_kvm", false, own_tests),
    ];
    let trial = |(name, needs_templates, case): (&str, bool, fn())| {
        let name = format!("monohull::{name}");
        let unable = name.ends_with(MAPPED_AHEAD) && !kvm_maps_ahead();
        let ignored = name == ALL_UNIQUE || needs_templates && !templates::are_on() || unable;
        let run = move || {
            case();
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(ignored)
    };
    cases.into_iter().map(trial).collect()
}

/// The agent's answer has the kernel's release in it, an error has not.
fn assert_answers(guest: &mut Guest) {
    let answer = guest.create_sandbox().expect("an answer of the agent");
    let text = String::from_utf8_lossy(&answer);
    assert!(text.contains("-monohull"), "{text:?}");
}

/// The VMM's tests with guests of a few instructions, which `make unit` runs on whatever KVM the developer has.
fn own_tests() {
    for program in ["/opt/tests/vmm-machine", "/opt/tests/vmm-snapshot"] {
        let output = finish(&mut Command::new(program));
        assert_eq!(output.code(), 0, "{program}: {}", output.text());
    }
}

fn forks_answer() {
    let mut original = Guest::boot().expect("a guest");
    original.wait_for_agent().expect("its agent");
    let (snapshot, saved) = original.snapshot().expect("a snapshot");
    assert!(saved.state_bytes < 64 << 10 && saved.memory_bytes < 128 << 20, "{saved:?}");
    drop(original);
    // Two at a time: they share the file's pages, and nothing else.
    let mut forks = [0, 1].map(|_| Guest::fork(&snapshot).expect("a fork"));
    forks.iter_mut().for_each(assert_answers);
    assert_answers(&mut Guest::fork(&snapshot).expect("one more, later"));
}

/// Whether this KVM has KVM_CAP_PRE_FAULT_MEMORY (linux/kvm.h).
fn kvm_maps_ahead() -> bool {
    const PRE_FAULT_MEMORY: std::ffi::c_ulong = 236;
    kvm_ioctls::Kvm::new().is_ok_and(|kvm| kvm.check_extension_raw(PRE_FAULT_MEMORY) > 0)
}

fn mapped_ahead() {
    let mut original = Guest::boot().expect("a guest");
    original.wait_for_agent().expect("its agent");
    let (snapshot, _) = original.snapshot().expect("a snapshot");
    drop(original);
    let all = vec![(0, 128 << 8)];
    let [without, with] = [Vec::new(), all].map(|used| {
        let working_set = WorkingSet { written: Vec::new(), used };
        let mut fork = Guest::fork_with(&snapshot, working_set).expect("a fork");
        assert_answers(&mut fork);
        fork.exits().expect("KVM's account")
    });
    println!("exits until the agent has answered: {without}, and {with} with its memory mapped ahead");
    assert!(with < without / 2, "{with}, {without}");
}

fn memory_is_added() {
    let mut original = Guest::boot().expect("a guest");
    original.wait_for_agent().expect("its agent");
    let (snapshot, _) = original.snapshot().expect("a snapshot");
    let mut fork = Guest::fork(&snapshot).expect("a fork");
    assert_answers(&mut fork);
    fork.add_memory(128).expect("the fork takes memory");
    assert!(fork.snapshot().is_err(), "a guest with added memory is not saved");
}

fn monohull(arguments: &[&str]) -> Output {
    finish(Command::new("monohull").args(arguments))
}

/// Runs a command in a pod of its own, which was forked if `forked` and has booted if not.
fn in_a_pod(forked: bool, command: &[&str]) -> String {
    let image = image();
    let run = ["run", "--timeline", "--image", &image, "--volume", "/opt/tests:/opt/tests:ro", "--"];
    let output = monohull(&[&run, command].concat());
    assert_eq!(output.code(), 0, "{}", output.stderr);
    assert_eq!(output.stderr.contains("state restored"), forked, "{}", output.stderr);
    output.text()
}

fn share_no_random_numbers(pods: usize) {
    let mut seen = HashSet::new();
    for _ in 0..pods {
        let text = in_a_pod(true, &["/opt/tests/in-container", "unique"]);
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), 8, "{text}");
        for line in lines {
            // Two of 28,000 ports may well be the same, four hardly.
            assert!(seen.insert(line.clone()), "twice: {line}");
        }
    }
}

/// `monohull template ls`, as its keys.
fn keys() -> Vec<String> {
    let list = monohull(&["template", "ls", "--json"]);
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).expect("JSON");
    let keys = list.as_array().expect("a list").iter().map(|entry| entry["key"].as_str().expect("a key"));
    keys.map(str::to_owned).collect()
}

fn boots_without() {
    let settings = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(settings.path(), "templates = \"off\"\n").expect("settings");
    let mut run = Command::new("monohull");
    run.env("MONOHULL_CONFIG", settings.path());
    let output = finish(run.args(["run", "--timeline", "--image", &image(), "--", "uname", "-r"]));
    assert!(output.text().contains("-monohull"), "{}", output.stderr);
    assert!(output.stderr.contains("kernel loaded"), "{}", output.stderr);
}

fn boots_with_a_damaged_one() {
    let before = keys();
    for key in &before {
        let state = format!("/run/monohull/_templates/{key}/state");
        let mut bytes = std::fs::read(&state).expect("its state");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&state, bytes).expect("its state");
    }
    let text = monohull(&["run", "--timeline", "--image", &image(), "--", "uname", "-r"]);
    assert!(text.text().contains("-monohull"), "{}", text.stderr);
    assert!(text.stderr.contains("fork failed") && text.stderr.contains("kernel loaded"), "{}", text.stderr);
    assert_eq!(keys().len(), before.len() - 1);
    templates::make().expect("templates");
    in_a_pod(true, &["true"]);
}
