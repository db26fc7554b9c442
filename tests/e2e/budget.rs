//! What an idle pod may cost.

use std::fs;

use monohull_tests::engine::{Engine, Run};
use monohull_tests::leaks::processes;
use monohull_tests::memory::private_kib;

use crate::Case;
use crate::containers::id;

pub(crate) const CASES: &[Case] = &[("an_idle_pod_costs_little_private_memory", private_memory)];

fn private_memory(engine: &Engine) {
    let name = id("idle");
    let mut run = Run::new(&name, &["sleep", "1000"]);
    run.detach = true;
    assert_eq!(engine.run(&run).code(), 0);
    let budget = [("containerd-shim-monohull-v2", 4 << 10), ("monohull-vmm", 5 << 10)];
    for (process, limit_kib) in budget {
        let pids: Vec<u32> =
            processes().into_iter().filter(|(_, name)| name == process).map(|(pid, _)| pid).collect();
        assert_eq!(pids.len(), 1, "{process}");
        let kib = private_kib(pids[0]);
        let maps = fs::read_to_string(format!("/proc/{}/smaps", pids[0])).unwrap_or_default();
        assert!(kib <= limit_kib, "{process} has {kib} KiB of private memory, budget {limit_kib}:\n{maps}");
    }
    engine.remove(&name);
}
