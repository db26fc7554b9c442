//! Deadlines of guests on busy hosts.
//!
//! A VM that starts beside many others on few CPUs, in a cgroup of little weight (a Kubernetes pod without requests has the least
//! there is), waits for a CPU most of the time. Whoever gives it up then throws its work away, and the next attempt competes with
//! those of all others again. So a deadline counts only the time for which the pod's processes could run.

use std::fs;
use std::pin::pin;
use std::time::Duration;

use tokio::time::Instant;

/// So many times its length is the longest that a deadline lasts, however busy the host is: two minutes of 30 s, four of 60 s. So
/// long the kubelet waits for a container and for a pod (its `runtimeRequestTimeout`, and twice that).
const MOST: u32 = 4;
/// The same where nobody waits for an answer: half an hour of 30 s.
const MOST_UNASKED: u32 = 60;
/// A wait for a CPU that is shorter is no reason to go on: every process has such. In the first such time nobody looks.
const SHORTEST: Duration = Duration::from_secs(1);

/// What `future` gives, or nothing if that takes longer than `limit`. The time for which threads of the VMM `vmm`, of this process,
/// which owns it, and of the fs server have waited for a CPU meanwhile is not counted.
pub(crate) async fn within<T>(
    limit: Duration,
    vmm: Option<i32>,
    future: impl Future<Output = T>,
) -> Option<T> {
    within_but((limit, MOST), || vmm.map_or(Duration::ZERO, pod_kept_waiting), future).await
}

/// [`within`] for what nobody waits for: the host may be busy for much longer.
pub(crate) async fn unasked<T>(limit: Duration, vmm: i32, future: impl Future<Output = T>) -> Option<T> {
    within_but((limit, MOST_UNASKED), || pod_kept_waiting(vmm), future).await
}

/// [`within`] a limit that lasts at most so many times its length, where `kept` says how much time up to now is not to be counted. Only differences of it are used.
async fn within_but<T>(
    (limit, most): (Duration, u32),
    kept: impl Fn() -> Duration,
    future: impl Future<Output = T>,
) -> Option<T> {
    let mut future = pin!(future);
    let end = Instant::now() + limit * most;
    // Nearly everything is done by then, at no cost.
    let early = SHORTEST.min(limit);
    if let Ok(done) = tokio::time::timeout(early, &mut future).await {
        return Some(done);
    }
    let mut before = kept();
    let mut left = limit - early;
    loop {
        let until = (Instant::now() + left).min(end);
        if let Ok(done) = tokio::time::timeout_at(until, &mut future).await {
            return Some(done);
        }
        let now = kept();
        // Several threads may have waited at once.
        left = now.saturating_sub(before).min(left);
        before = now;
        if left < SHORTEST || until == end {
            return None;
        }
    }
}

/// For how long the processes of a pod have waited. The fs server is one of its owner's children, as the VMM is.
fn pod_kept_waiting(vmm: i32) -> Duration {
    let own = std::process::id().cast_signed();
    let mut pids = children(own);
    pids.extend([own, vmm]);
    pids.sort_unstable();
    pids.dedup();
    pids.into_iter().map(kept_waiting).sum()
}

/// The children of a process. None, where the kernel does not tell (CONFIG_PROC_CHILDREN).
fn children(pid: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let texts = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    texts
        .flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// For how long the threads of a process have waited for a CPU since they began, those that have ended left out
/// (Documentation/scheduler/sched-stats.rst: KVM has the kernel count it). Nothing, if it can't be known.
fn kept_waiting(pid: i32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let waited = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
    };
    threads.filter_map(waited).sum()
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    /// How long it takes until a future that gives nothing is given up, when that part of all time is spent waiting for a CPU.
    async fn patience(part: f64) -> Duration {
        let start = Instant::now();
        let given = within_but((LIMIT, MOST), || start.elapsed().mul_f64(part), pending::<()>()).await;
        assert!(given.is_none());
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_run_has_its_time_and_no_more() {
        assert_eq!(patience(0.0).await, LIMIT);
        assert_eq!(patience(0.01).await, LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_from_running_has_more_of_it() {
        let half = patience(0.5).await;
        assert!(half > LIMIT * 19 / 10 && half <= LIMIT * 2, "{half:?}");
        assert_eq!(patience(1.0).await, LIMIT * MOST);
        // Two threads that wait at once wait no longer than there is time.
        assert_eq!(patience(2.0).await, LIMIT * MOST);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_after_the_limit_is_one_when_the_host_was_busy() {
        let start = Instant::now();
        let late = async { tokio::time::sleep(LIMIT * 3).await };
        assert!(within_but((LIMIT, MOST), || start.elapsed(), late).await.is_some());
        assert!(within(LIMIT, None, ready(())).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_quick_answer_costs_no_look_at_the_threads() {
        let quick = async { tokio::time::sleep(SHORTEST / 2).await };
        let kept = || -> Duration { unreachable!("nobody has waited for long") };
        assert!(within_but((LIMIT, MOST), kept, quick).await.is_some());
    }

    #[test]
    fn the_fs_server_is_found_among_the_children() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let found = children(std::process::id().cast_signed());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.contains(&child.id().cast_signed()), "{found:?}");
    }

    #[test]
    fn waiting_is_read_of_every_thread() {
        let (own, done) = (std::process::id() as i32, AtomicBool::new(false));
        let before = kept_waiting(own);
        let threads = std::thread::available_parallelism().map_or(1, usize::from) + 1;
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            // There are more of them than CPUs, so one waits.
            while kept_waiting(own) == before {}
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(kept_waiting(i32::MAX), Duration::ZERO);
    }
}
