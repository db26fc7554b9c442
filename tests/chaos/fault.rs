//! Faults: how they come about, and how they go.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use monohull_tests::leaks::processes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, prlimit};

use crate::host::{CGROUP, Host, STATE, fill, make_room};
use crate::plan::{Fault, Plan, Victim};

/// How many files a process may open when there is no fault: what systemd gives containerd's shims and more.
const MANY_FILES: u64 = 1 << 19;

/// A fault that is there.
#[derive(Debug, Default)]
pub(crate) struct Active {
    /// Whether there was something for it to meet.
    pub(crate) met: bool,
    /// Stopped processes, and until when.
    stopped: Vec<u32>,
    pub(crate) until: Option<Instant>,
    /// Full file systems.
    full: Vec<PathBuf>,
    /// Limits of the cgroup.
    limits: Vec<&'static str>,
}

impl Active {
    /// Makes the fault happen.
    pub(crate) fn inject(host: &mut Host, plan: &Plan) -> io::Result<Self> {
        let mut active = Self { met: true, ..Self::default() };
        match plan.fault {
            Fault::Kill(Victim::Containerd) => host.restart_containerd(plan.pause)?,
            // One process: before a shim serves there are two, and after its end there is `delete`.
            Fault::Kill(victim) => {
                let mut victims = victims(victim, host);
                victims.sort_unstable();
                let one = usize::try_from(plan.slack).unwrap_or(0) % victims.len().max(1);
                active.met = signal(victims.get(one..=one).unwrap_or_default(), Signal::SIGKILL);
            }
            Fault::Stop(victim) => {
                active.stopped = victims(victim, host);
                active.met = signal(&active.stopped, Signal::SIGSTOP);
                active.until = Some(Instant::now() + plan.pause);
            }
            Fault::FullState => active.fill(STATE.into())?,
            Fault::FullBundles => active.fill(host.engine.scratch().join("state"))?,
            Fault::Descriptors(victim) => {
                let victims = victims(victim, host);
                active.met = !victims.is_empty();
                for pid in victims {
                    // It may have ended meanwhile.
                    let _ = limit_files(pid, highest_file(pid) + 1 + plan.slack);
                }
            }
            Fault::Pids => active.limit("pids.max", used("pids.current")? + plan.slack)?,
            Fault::Memory => active.limit("memory.max", used("memory.current")? + (plan.slack << 20))?,
        }
        Ok(active)
    }

    fn fill(&mut self, path: PathBuf) -> io::Result<()> {
        fill(&path)?;
        self.full.push(path);
        Ok(())
    }

    fn limit(&mut self, file: &'static str, most: u64) -> io::Result<()> {
        self.limits.push(file);
        fs::write(Path::new(CGROUP).join(file), most.to_string())
    }

    /// Lets stopped processes go on.
    pub(crate) fn go_on(&mut self) {
        self.until = None;
        signal(&std::mem::take(&mut self.stopped), Signal::SIGCONT);
    }

    /// Ends the fault, as an operator would: there is room again, and what was stopped goes on.
    pub(crate) fn lift(&mut self) -> io::Result<()> {
        self.go_on();
        for path in std::mem::take(&mut self.full) {
            make_room(&path)?;
        }
        for file in std::mem::take(&mut self.limits) {
            fs::write(Path::new(CGROUP).join(file), "max")?;
        }
        for (pid, name) in processes() {
            if name.contains("monohull") && !name.ends_with("chaos") {
                let _ = limit_files(pid, MANY_FILES);
            }
        }
        Ok(())
    }
}

/// The processes that a fault meets. There is one pod, and no other's are there.
fn victims(victim: Victim, host: &Host) -> Vec<u32> {
    let name = match victim {
        Victim::Shim => "containerd-shim-monohull-v2",
        Victim::Vmm => "monohull-vmm",
        Victim::FsServer => "monohull-fs",
        Victim::Containerd => return vec![host.engine.pid()],
    };
    processes().into_iter().filter(|(_, process)| process == name).map(|(pid, _)| pid).collect()
}

/// Signals processes; whether one was there.
fn signal(pids: &[u32], signal: Signal) -> bool {
    let send = |pid: &u32| i32::try_from(*pid).is_ok_and(|pid| kill(Pid::from_raw(pid), signal).is_ok());
    pids.iter().filter(|pid| send(pid)).count() > 0
}

fn limit_files(pid: u32, most: u64) -> io::Result<()> {
    // Without a pid the limit would be the harness's own.
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::NotFound)?;
    prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) })?;
    Ok(())
}

/// The highest descriptor of a process: the limit is one of numbers.
fn highest_file(pid: u32) -> u64 {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).max().unwrap_or(0)
}

fn used(file: &str) -> io::Result<u64> {
    fs::read_to_string(Path::new(CGROUP).join(file))?.trim().parse().map_err(io::Error::other)
}
