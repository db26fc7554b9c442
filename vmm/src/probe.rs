//! Measures how fast a KVM runs guests: an implementation that interprets every instruction of an ordinary guest (PVM)
//! is a thousand times slower than hardware, and can't boot a kernel in any reasonable time.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryError};

use crate::memory::{self, MemoryError};
use crate::vm::{self, Vm, VmError};
use crate::x86::cpuid::Cpu;
use crate::x86::layout::BOOT_STACK;
use crate::x86::regs;

/// Where the guest's code is.
const CODE: u64 = 0x1_0000;
/// Port that the guest writes when it has counted down.
const DONE: u16 = 0x10;
/// Counts down from RCX, tells, and does it again with whatever RCX the VMM has set by then.
const PROGRAM: [u8; 9] = [
    0x48, 0xff, 0xc9, // 1: dec rcx
    0x75, 0xfb, //          jnz 1b
    0xe6, DONE as u8, //    out DONE, al
    0xeb, 0xf7, //          jmp 1b
];
/// Rounds of the loop between two exits: long against the cost of an exit in hardware, and 20 ms for an interpreter.
const ROUNDS: u64 = 10_000;
/// Instructions per round.
const PER_ROUND: u64 = 2;
/// The measurement ends after this time,
const TIME: Duration = Duration::from_millis(200);
/// or after this many exits.
const EXITS: u64 = 200;

/// How fast guests run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Instructions of a tight loop per microsecond. Hardware makes more than 100 even in a software-emulated host, an
    /// interpreter about 1.
    pub instructions_per_us: f64,
}

/// The measurement failed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// KVM can't make the guest.
    #[error("can't make a guest to measure this host's speed")]
    Vm(#[from] VmError),
    /// No memory for it.
    #[error("can't make a guest to measure this host's speed")]
    Memory(#[from] MemoryError),
    /// Its memory can't be written.
    #[error("can't write the guest that measures this host's speed")]
    Write(#[from] GuestMemoryError),
    /// The guest did something it does not.
    #[error("the guest that measures this host's speed failed: {0}")]
    Run(String),
    /// KVM failed to run it.
    #[error("KVM can't run the guest that measures this host's speed")]
    Kvm(#[from] kvm_ioctls::Error),
    /// The descriptor can't be duplicated.
    #[error("can't duplicate the descriptor of /dev/kvm")]
    Duplicate(#[source] io::Error),
}

/// Measures the speed of the open `/dev/kvm`. Takes a quarter of a second at most on any KVM that runs guests at all.
pub fn probe_speed(kvm: &File) -> Result<Speed, ProbeError> {
    let kvm = vm::open(kvm.try_clone().map_err(ProbeError::Duplicate)?)?;
    let memory = memory::allocate(&[(0, 2 << 20)], false)?;
    memory.memory().write_slice(&PROGRAM, GuestAddress(CODE))?;
    regs::write_tables(&memory.memory())?;
    let vm = Vm::new(kvm, memory, None)?;
    let mut vcpu = vm.create_cpu(Cpu { id: 0, count: 1 })?;
    regs::set(&vcpu, CODE)?;

    // Once to warm up, then by the clock.
    round(&mut vcpu)?;
    let start = Instant::now();
    let mut exits = 0;
    while exits < EXITS && start.elapsed() < TIME {
        round(&mut vcpu)?;
        exits += 1;
    }
    let us = start.elapsed().as_secs_f64() * 1e6;
    Ok(Speed { instructions_per_us: (exits * ROUNDS * PER_ROUND) as f64 / us })
}

/// Runs the guest to its next exit.
fn round(vcpu: &mut VcpuFd) -> Result<(), ProbeError> {
    let mut regs = vcpu.get_regs()?;
    regs.rcx = ROUNDS;
    vcpu.set_regs(&regs)?;
    match vcpu.run()? {
        VcpuExit::IoOut(DONE, _) => Ok(()),
        exit => Err(ProbeError::Run(format!("{exit:?}"))),
    }
}

// The stack is not used, but must not be the code.
const _: () = assert!(BOOT_STACK < CODE);

#[cfg(test)]
mod tests {
    use super::*;

    fn kvm() -> File {
        let kvm = File::options().read(true).write(true).open("/dev/kvm");
        kvm.expect("this test needs /dev/kvm: load the kvm module, or give this user access to it")
    }

    #[test]
    fn any_kvm_has_a_speed_and_tells_it_soon() {
        let start = Instant::now();
        let speed = probe_speed(&kvm()).unwrap();
        assert!(speed.instructions_per_us > 0.01 && speed.instructions_per_us < 1e6, "{speed:?}");
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn something_that_is_not_kvm_is_an_error_that_says_so() {
        let null = File::open("/dev/null").unwrap();
        let error = probe_speed(&null).unwrap_err();
        assert!(crate::describe(&error).contains("not an open /dev/kvm"), "{}", crate::describe(&error));
    }
}
