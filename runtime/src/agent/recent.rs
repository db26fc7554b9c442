//! The last statistics of each container, which are those of now while the guest has done nothing that they would show.
//!
//! Engines ask often: containerd from 2.3 on every second, for every container. Each question wakes a guest that would else sleep for
//! seconds, and of one that idles all answers are the same.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use monohull_protocol::agent::Metrics;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use tokio::time::Instant;

/// How old an answer may be: cAdvisor looks at a container as often.
const AGE: Duration = Duration::from_secs(10);
/// CPU time that the VMM and its guest may have used since: their own, when nothing happens, is less.
const WORK: Duration = Duration::from_millis(4);

/// Of one pod.
#[derive(Debug, Default)]
pub(super) struct Recent {
    answers: Mutex<Answers>,
    /// Whether one is still to come that was due.
    awaited: AtomicBool,
}

#[derive(Debug, Default)]
struct Answers {
    /// Changes with everything that the guest is told to do.
    generation: u64,
    of: HashMap<String, Answer>,
}

#[derive(Debug)]
struct Answer {
    metrics: Metrics,
    at: Instant,
    /// What the VMM had used by then.
    used: Duration,
}

impl Recent {
    /// To be called before and after all that changes something in the guest.
    pub(super) fn forget(&self) {
        let mut answers = self.lock();
        answers.generation += 1;
        answers.of.clear();
    }

    /// What an answer that is now asked for has to be kept with.
    pub(super) fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// A container's last answer, when the VMM has used `used` until now.
    pub(super) fn get(&self, container: &str, used: Option<Duration>) -> Option<Metrics> {
        let answers = self.lock();
        let answer = answers.of.get(container)?;
        let since = used?.checked_sub(answer.used)?;
        (since < WORK && answer.at.elapsed() < AGE).then(|| answer.metrics.clone())
    }

    /// Keeps an answer, unless something has been changed since it was asked for in this `generation`.
    pub(super) fn keep(&self, container: &str, metrics: &Metrics, used: Option<Duration>, generation: u64) {
        let mut answers = self.lock();
        if let Some(used) = used
            && answers.generation == generation
        {
            let answer = Answer { metrics: metrics.clone(), at: Instant::now(), used };
            answers.of.insert(container.to_owned(), answer);
        }
    }

    /// Whether the guest owes an answer.
    pub(super) fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::Relaxed)
    }

    pub(super) fn set_awaited(&self, awaited: bool) {
        self.awaited.store(awaited, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// CPU time that a process has used, its guest's included.
pub(super) fn used_by(pid: i32) -> Option<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid)).ok()?;
    clock_gettime(clock).ok().map(Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Option<Duration> = Some(Duration::from_secs(3));

    fn metrics(pids: u64) -> Metrics {
        let pids = monohull_protocol::agent::PidsStat { current: pids, ..Default::default() };
        Metrics { pids: Some(pids).into(), ..Default::default() }
    }

    fn after(work: Duration) -> Option<Duration> {
        START.map(|start| start + work)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_good_while_nothing_happens_and_not_for_ever() {
        let recent = Recent::default();
        recent.keep("a", &metrics(1), START, recent.generation());
        assert_eq!(recent.get("a", after(WORK / 2)), Some(metrics(1)));
        assert_eq!(recent.get("b", START), None);
        assert_eq!(recent.get("a", after(WORK)), None, "the guest has done something");
        assert_eq!(recent.get("a", None), None, "nobody knows what it has done");
        tokio::time::advance(AGE).await;
        assert_eq!(recent.get("a", START), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_guest_is_told_to_do_makes_answers_old_also_those_under_way() {
        let recent = Recent::default();
        let asked = recent.generation();
        recent.keep("a", &metrics(1), START, asked);
        recent.forget();
        assert_eq!(recent.get("a", START), None);
        recent.keep("a", &metrics(2), START, asked);
        assert_eq!(recent.get("a", START), None, "it may be from before");
        recent.keep("a", &metrics(3), START, recent.generation());
        assert_eq!(recent.get("a", START), Some(metrics(3)));
    }

    #[test]
    fn the_time_that_a_process_has_used_is_known_and_of_none_nothing() {
        let own = std::process::id().cast_signed();
        let before = used_by(own).unwrap();
        while used_by(own).unwrap() < before + WORK {}
        assert_eq!(used_by(4 << 20), None, "no process has so high a number");
    }
}
