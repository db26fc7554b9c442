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
    // The first of each are not counted.
    (0..HANDLERS.len()).try_for_each(|number| start(&cri, number, 1).map(drop))?;
    for (kind, count, rounds) in [("a pod", 1, RUNS), ("10 pods at once", AT_ONCE, ROUNDS)] {
        let mut starts = Starts::of(kind, HANDLERS.map(|(name, _)| name));
        for _ in 0..rounds {
            starts.round(|number| start(&cri, number, count))?;
        }
        let title = format!("Start of {kind} with CNI's bridge, containerd 2.3, {rounds} runs each in turn");
        report.starts(&title, "`crictl runp`, `create`, `start` of busybox", &starts);
    }
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
