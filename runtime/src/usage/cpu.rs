//! CPU time of a pod's processes, and of its guest.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// How the VMM names the threads that run the guest's CPUs (`vmm/src/vcpu.rs`).
const GUEST_THREADS: &str = "vcpu";

/// CPU time of a process and all threads it ever had, to the nanosecond.
pub(super) fn of_process(pid: i32) -> io::Result<Duration> {
    Ok(clock_gettime(clock_getcpuclockid(Pid::from_raw(pid))?)?.into())
}

/// CPU time of the threads that run the guest's CPUs, what the VMM does for them in between included.
pub(super) fn of_guest(vmm: i32) -> io::Result<Duration> {
    let mut sum = Duration::ZERO;
    for thread in fs::read_dir(format!("/proc/{vmm}/task"))? {
        sum += of_guest_thread(&thread?.path())?;
    }
    Ok(sum)
}

fn of_guest_thread(thread: &Path) -> io::Result<Duration> {
    // Other threads come and go.
    let name = fs::read_to_string(thread.join("comm")).unwrap_or_default();
    if !name.starts_with(GUEST_THREADS) {
        return Ok(Duration::ZERO);
    }
    let text = fs::read_to_string(thread.join("schedstat"))?;
    // Documentation/scheduler/sched-stats.rst: time spent on the CPU, in nanoseconds, is the first of three numbers.
    let spent = text.split_whitespace().next().and_then(|number| number.parse().ok());
    spent.map(Duration::from_nanos).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Instant;

    use super::*;

    #[test]
    fn threads_named_as_the_guests_are_counted_and_are_part_of_the_process() {
        let own = i32::try_from(std::process::id()).unwrap();
        let before = of_process(own).unwrap();
        let busy = move || {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(50) {}
            let guest = of_guest(own).unwrap();
            assert!(guest > Duration::ZERO, "{guest:?}");
            assert!(of_process(own).unwrap() - before + Duration::from_millis(1) >= guest);
        };
        thread::Builder::new().name("vcpu0".into()).spawn(busy).unwrap().join().unwrap();
        assert!(of_process(own).unwrap() > before);
    }
}
