//! The guest's CPUs: one thread each.

// Reaching into the kvm_run page, which is shared with the kernel, has no safe interface.
#![allow(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use kvm_ioctls::{VcpuExit, VcpuFd};
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::api::ExitReason;
use crate::bus::{Bus, Effect, FLOATING};
use crate::ending::{Cause, Ending};
use crate::jail::filter::Class;
use crate::threads::{Starter, Thread};

/// Devices' registers are served on these threads; nothing there recurses.
const STACK: usize = 128 << 10;

/// A running CPU.
#[derive(Debug)]
pub(crate) struct Vcpu {
    // The thread returns what it ran, so the page that `stop` points into stays mapped until the thread is joined.
    thread: Thread<VcpuFd>,
    stop: StopFlag,
}

impl Vcpu {
    /// Lets a CPU run, until it is stopped or ends the VM.
    pub(crate) fn start(
        starter: &Starter,
        id: u8,
        mut fd: VcpuFd,
        bus: Arc<Bus>,
        ending: Ending,
    ) -> io::Result<Self> {
        fd.set_kvm_immediate_exit(0);
        let stop = StopFlag::of(&mut fd);
        let stopped = stop.requested.clone();
        let thread = starter.start(&format!("vcpu{id}"), STACK, Class::Cpu, move || {
            if let Some(reason) = run(&mut fd, &bus, &stopped) {
                ending.set(Cause::Reason(reason));
            }
            fd
        })?;
        Ok(Self { thread, stop })
    }

    /// Takes the CPU out of the guest and ends its thread. The CPU can be started again: KVM has completed the instruction
    /// that made it leave the guest. `None` when the thread has panicked.
    pub(crate) fn stop(self) -> Option<VcpuFd> {
        self.stop.set();
        self.thread.signal(SIGRTMIN());
        self.thread.join()
    }
}

/// Prepares the signal that interrupts KVM_RUN. Once per process, before the first CPU starts.
pub(crate) fn init() -> io::Result<()> {
    extern "C" fn ignore(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}
    register_signal_handler(SIGRTMIN(), ignore).map_err(io::Error::from)
}

/// Asks a CPU's thread to stop.
#[derive(Debug)]
struct StopFlag {
    requested: Arc<AtomicBool>,
    /// `immediate_exit` of the CPU's kvm_run page: KVM_RUN returns EINTR at once when it is set. Set before the signal
    /// is sent, so that it does not matter whether the signal comes before KVM_RUN or during it.
    immediate_exit: *mut u8,
}

// SAFETY: the pointer is used by `set` alone, atomically, and what it points to is mapped as long as a `Vcpu` exists,
// whichever thread has it.
unsafe impl Send for StopFlag {}

impl StopFlag {
    fn of(fd: &mut VcpuFd) -> Self {
        Self { requested: Arc::default(), immediate_exit: &raw mut fd.get_kvm_run().immediate_exit }
    }

    fn set(&self) {
        self.requested.store(true, Ordering::SeqCst);
        // SAFETY: the page is mapped until the VcpuFd is dropped, which `Vcpu::stop` does after this. The kernel reads
        // the byte at any time, the CPU's thread neither reads nor writes it.
        unsafe { AtomicU8::from_ptr(self.immediate_exit) }.store(1, Ordering::SeqCst);
    }
}

/// Runs until the VM ends by this CPU's doing (returns why), or until the CPU is stopped.
fn run(fd: &mut VcpuFd, bus: &Bus, stopped: &AtomicBool) -> Option<ExitReason> {
    loop {
        match fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => bus.port_read(port, data),
            Ok(VcpuExit::IoOut(port, data)) => {
                if bus.port_write(port, data) == Effect::Reset {
                    return Some(ExitReason::GuestShutdown);
                }
            }
            Ok(VcpuExit::MmioRead(_, data)) => data.fill(FLOATING),
            Ok(VcpuExit::MmioWrite(address, data)) => bus.memory_write(address, data),
            Ok(VcpuExit::Shutdown) => return Some(ExitReason::TripleFault),
            Ok(VcpuExit::InternalError) => return Some(ExitReason::Failure(internal_error(fd))),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                let text =
                    format!("KVM can't enter the guest: hardware reason {reason:#x} on host CPU {cpu}");
                return Some(ExitReason::Failure(text));
            }
            Ok(VcpuExit::Intr) => {}
            Ok(exit) => {
                return Some(ExitReason::Failure(format!("KVM left the guest unexpectedly: {exit:?}")));
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                if stopped.load(Ordering::SeqCst) {
                    return None;
                }
            }
            Err(error) => return Some(ExitReason::Failure(format!("KVM can't run the guest: {error}"))),
        }
    }
}

/// Describes KVM_EXIT_INTERNAL_ERROR: the kinds are `KVM_INTERNAL_ERROR_*` of linux/kvm.h, 1 is an instruction that
/// KVM can't emulate.
fn internal_error(fd: &mut VcpuFd) -> String {
    // SAFETY: the exit reason tells that this member of the union is the one the kernel filled in.
    let internal = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal };
    let rip = fd.get_regs().map(|regs| regs.rip).unwrap_or_default();
    format!("KVM internal error {} at guest address {rip:#x}", internal.suberror)
}
