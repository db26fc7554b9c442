//! Snapshots of a pod's guest, by the bare VMM.

use std::process::Command;

use libtest_mimic::Trial;
use monohull_tests::engine::finish;
use monohull_tests::vm::Guest;

pub(crate) fn trials() -> Vec<Trial> {
    let cases: [(&str, fn()); 3] = [
        ("a_guest_that_is_ready_is_forked_and_each_fork_answers", forks_answer),
        ("a_fork_takes_memory_that_is_added", memory_is_added),
        ("the_vmm_passes_its_own_tests_on_this_hosts_kvm", own_tests),
    ];
    let trial = |(name, case): (&str, fn())| {
        Trial::test(format!("monohull::{name}"), move || {
            case();
            Ok(())
        })
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

fn memory_is_added() {
    let mut original = Guest::boot().expect("a guest");
    original.wait_for_agent().expect("its agent");
    let (snapshot, _) = original.snapshot().expect("a snapshot");
    let mut fork = Guest::fork(&snapshot).expect("a fork");
    assert_answers(&mut fork);
    fork.add_memory(128).expect("the fork takes memory");
    assert!(fork.snapshot().is_err(), "a guest with added memory is not saved");
}
