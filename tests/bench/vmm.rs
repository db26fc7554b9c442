//! The VMM without anything above it: from its exec to its exit, with a guest that resets at once.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use monohull_tests::vm::{Guest, Start};
use monohull_vmm::api::{Event, ExitReason, FdRole, FromVmm, Rates, VmConfig, WorkingSet, user_of};
use monohull_vmm::client::Vmm;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::RUNS;
use crate::report::Report;
use crate::table::{Spread, Table};

const VMM: &str = "/usr/libexec/monohull/monohull-vmm";
const KERNEL: &str = "/usr/share/monohull/vmlinux";
/// An initramfs whose init is `reboot-init`.
const INITRAMFS: &str = "/opt/tests/reboot.cpio";

/// Measures and prints.
pub(crate) fn exec_to_exit(report: &mut Report) -> io::Result<()> {
    let mut table = Table::new(&["1 vCPU, 128 MiB, ms", "min", "median", "max"]);
    for (name, huge_pages) in [("exec to exit", false), ("exec to exit, huge pages", true)] {
        let mut times = Vec::new();
        for round in 0..=RUNS {
            let start = Instant::now();
            boot(huge_pages)?;
            if round > 0 {
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
        table.row(&[vec![name.to_owned()], Spread::of(times).cells().to_vec()].concat());
    }
    report.table(&format!("The bare VMM with a guest that resets at once, {RUNS} runs each"), &table);
    Ok(())
}

/// When a step of a start was done.
type Step = fn(&Start) -> Duration;

/// A pod's guest, booted and forked in turn, from the VMM's exec to the agent's answer.
pub(crate) fn forks(report: &mut Report) -> io::Result<()> {
    let mut original = Guest::boot()?;
    original.wait_for_agent()?;
    let begun = Instant::now();
    let (snapshot, saved) = original.snapshot()?;
    let took = begun.elapsed().as_secs_f64() * 1e3;
    drop(original);
    let (mut boots, mut forks) = (Vec::new(), Vec::new());
    for round in 0..=RUNS {
        let starts = [Guest::boot()?.measure()?, Guest::fork(&snapshot)?.measure()?];
        if round > 0 {
            let [boot, fork] = starts;
            boots.push(boot);
            forks.push(fork);
        }
    }
    let mut table = Table::new(&["1 vCPU, 128 MiB, ms", "min", "median", "max"]);
    for (name, starts) in [("cold boot", &boots), ("fork", &forks)] {
        let steps: [(&str, Step); 3] = [
            ("CPUs run", |start| start.cpus_run),
            ("agent connected", |start| start.agent_ready),
            ("agent has answered", |start| start.answered),
        ];
        for (step, at) in steps {
            let times = starts.iter().map(|start| at(start).as_secs_f64() * 1e3).collect();
            table.row(&[vec![format!("{name}: {step}")], Spread::of(times).cells().to_vec()].concat());
        }
    }
    let title = format!("The bare VMM with a pod's guest, from its exec, {RUNS} runs each in turn");
    report.table(&title, &table);
    println!(
        "\nPause and snapshot took {took:.0} ms: {} KiB of state, {} KiB of memory that is not zero.",
        saved.state_bytes >> 10,
        saved.memory_bytes >> 10
    );
    Ok(())
}

fn boot(huge_pages: bool) -> io::Result<()> {
    let directory = tempfile::tempdir()?;
    let vsock = UnixListener::bind(directory.path().join("vsock"))?;
    let files = ["/dev/kvm", KERNEL, INITRAMFS].map(Path::new);
    let kvm = File::options().read(true).write(true).open(files[0])?;
    let [kernel, initramfs] = [File::open(files[1])?, File::open(files[2])?];
    let config = VmConfig {
        name: "bench".into(),
        user: user_of(std::process::id()),
        memory_mib: 128,
        hotplug_mib: 0,
        vcpus: 1,
        cmdline: String::new(),
        nics: 0,
        huge_pages,
        rates: Rates::default(),
        working_set: WorkingSet::default(),
        paused: false,
        fds: vec![FdRole::Kvm, FdRole::Kernel, FdRole::Initramfs, FdRole::Vsock],
    };
    let fds = [kvm.as_fd(), kernel.as_fd(), initramfs.as_fd(), vsock.as_fd()];
    let mut vmm = Vmm::spawn(Path::new(VMM), &config, &fds, Stdio::inherit()).map_err(io::Error::other)?;
    let mut reason = None;
    loop {
        poll(&mut [PollFd::new(vmm.socket(), PollFlags::POLLIN)], PollTimeout::NONE)?;
        match vmm.receive()? {
            Some((FromVmm::Event(Event::Exited { reason: end }), _)) => reason = Some(end),
            Some(_) => {}
            None => break,
        }
    }
    vmm.wait()?;
    match reason {
        Some(ExitReason::GuestShutdown) => Ok(()),
        other => Err(io::Error::other(format!("the guest ended with {other:?}"))),
    }
}
