//! What an idle pod may cost.

use std::fs;

use monohull_tests::engine::{Engine, Run};
use monohull_tests::leaks::processes;
use monohull_tests::memory::private_kib;

use crate::Case;
use crate::containers::id;

pub(crate) const CASES: &[Case] = &[("an_idle_pod_costs_little_private_memory", private_memory)];

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
