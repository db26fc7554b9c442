//! What an idle pod may cost.

use std::fs;
use std::thread;
use std::time::Duration;

use monohull_tests::engine::{Engine, Run};
use monohull_tests::leaks::processes;
use monohull_tests::memory::private_kib;
use monohull_tests::templates;

use crate::Case;
use crate::containers::id;

pub(crate) const CASES: &[Case] = &[
    ("an_idle_pod_costs_little_private_memory", private_memory),
    ("an_idle_guest_wakes_up_less_than_twice_a_second", wake_ups),
];

/// For how long a guest is looked at.
const WHILE: Duration = Duration::from_secs(20);
/// How long a guest is busy with what its start leaves to be done: reporting what is free, most of all, which a template has done
/// for its copies.
const SETTLES: Duration = Duration::from_secs(10);
const SETTLES_COLD: Duration = Duration::from_secs(45);

/// Two pods, so that what all pods of a node share (program text) is not counted as any one's own.
fn private_memory(engine: &Engine) {
    let names = [id("idle"), id("idle")];
    for name in &names {
        let mut run = Run::new(name, &["sleep", "1000"]);
        run.detach = true;
        assert_eq!(engine.run(&run).code(), 0);
    }
    for (process, limit_kib) in [("containerd-shim-monohull-v2", 1536), ("monohull-vmm", 3 << 10)] {
        let pids: Vec<u32> =
            processes().into_iter().filter(|(_, name)| name == process).map(|(pid, _)| pid).collect();
        assert_eq!(pids.len(), names.len(), "{process}");
        for pid in pids {
            let kib = private_kib(pid);
            let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
            assert!(
                kib <= limit_kib,
                "{process} has {kib} KiB of private memory, budget {limit_kib}:\n{maps}"
            );
        }
    }
    for name in &names {
        engine.remove(name);
    }
}

/// How often the thread of its CPU leaves the sleep of a halted CPU.
fn wake_ups(engine: &Engine) {
    // Others may have had the host remove what there was.
    templates::make().expect("templates");
    let mut run = Run::new(&id("sleeping"), &["sleep", "1000"]);
    run.detach = true;
    assert_eq!(engine.run(&run).code(), 0);
    let vmm = processes().into_iter().find(|(_, name)| name == "monohull-vmm").expect("a VMM").0;
    let count = || {
        let tasks = fs::read_dir(format!("/proc/{vmm}/task")).expect("threads").flatten();
        let mut statuses = tasks.flat_map(|task| fs::read_to_string(task.path().join("status")));
        let status =
            statuses.find(|status| status.starts_with("Name:\tvcpu0\n")).expect("the thread of its CPU");
        let number =
            status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).expect("a number");
        number.trim().parse::<u64>().expect("a number")
    };
    thread::sleep(if templates::are_on() { SETTLES } else { SETTLES_COLD });
    let before = count();
    thread::sleep(WHILE);
    let wake_ups = count() - before;
    println!("{wake_ups} wake-ups in {} s", WHILE.as_secs());
    assert!(wake_ups < 2 * WHILE.as_secs(), "{wake_ups} wake-ups in {WHILE:?}");
    engine.remove(&run.id);
}
