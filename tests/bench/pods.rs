//! What the start of a pod takes as the kubelet does it: sandbox, network, container, each by a call of the CRI.

use std::io;
use std::thread;
use std::time::Instant;

use monohull_tests::cri::{self, Pod};
use monohull_tests::engine::{Engine, unique};

use crate::RUNS;
use crate::report::{Report, Starts};

/// What is compared, and its runtime handler.
const HANDLERS: [(&str, &str); 3] =
    [("runc", "runc"), ("Monohull", "monohull"), ("Monohull, sandboxer shim", "monohull-sandbox")];
/// Pods that are started at once, and how often.
const AT_ONCE: usize = 10;
const ROUNDS: usize = 3;
/// The pods' cgroup.
const PARENT: &str = "/bench-pods";

/// Measures and prints.
pub(crate) fn kubelet(report: &mut Report) -> io::Result<()> {
    let cri = Engine::start_cri()?;
    let names = || HANDLERS.iter().map(|(name, _)| *name);
    let mut kinds = [Starts::of("a pod", names()), Starts::of("10 pods at once", names())];
    for ((starts, count), rounds) in kinds.iter_mut().zip([1, AT_ONCE]).zip([RUNS, ROUNDS]) {
        for round in 0..=rounds {
            // The first one is not counted.
            if round == 1 {
                starts.forget();
            }
            starts.round(|number| start(&cri, number, count))?;
        }
    }
    let title = format!(
        "Start of a pod with CNI's bridge, containerd 2.3, {RUNS} runs each in turn, {ROUNDS} of ten at once"
    );
    report.starts(&title, "`crictl runp`, `create`, `start` of busybox", &kinds);
    Ok(())
}

/// How many ms it takes until `count` pods of a handler run.
fn start(cri: &Engine, handler: usize, count: usize) -> io::Result<f64> {
    let handler = HANDLERS.get(handler).map_or("", |(_, handler)| handler);
    let new = |_| Pod::new(cri, &format!("bench-{}", unique()), PARENT);
    let pods = (0..count).map(new).collect::<io::Result<Vec<Pod>>>()?;
    let begun = Instant::now();
    let started: Vec<io::Result<String>> = thread::scope(|scope| {
        let threads: Vec<_> = pods.iter().map(|pod| scope.spawn(|| pod.start(cri, handler))).collect();
        let failed = |_| Err(io::Error::other("a thread panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(failed)).collect()
    });
    let took = begun.elapsed().as_secs_f64() * 1e3;
    for id in started.iter().flatten() {
        let removed = cri::remove(cri, id);
        if !removed.status.success() {
            return Err(io::Error::other(format!("{handler}: {}", removed.stderr)));
        }
    }
    started.into_iter().collect::<io::Result<Vec<_>>>().map(|_| took)
}
