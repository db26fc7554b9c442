//! The table of system calls.

use libc::c_long;

use super::Class::{self, Cpu, Io};

/// A call that is allowed: to threads of the main class, and to those of `classes`.
#[derive(Debug)]
pub(super) struct Rule {
    /// Its number.
    pub call: c_long,
    /// Its name, as libc's constant for the number has it.
    pub name: &'static str,
    /// What its arguments must be, all of these; another rule with conditions for the same call may allow others.
    pub when: &'static [Argument],
    /// Who else may make it.
    pub classes: &'static [Class],
    /// What for.
    pub why: &'static str,
}

/// A condition on an argument, by its index from 0.
#[derive(Clone, Copy, Debug)]
pub(super) enum Argument {
    /// These are its low 32 bits, which are all that the kernel looks at.
    Is(u8, u32),
    /// None of these bits is set.
    Lacks(u8, u32),
    /// The request of ioctl(2): its type and its number within the type. The other bits follow from these two.
    Request(u8, u8),
}

use Argument::{Is, Lacks, Request};

macro_rules! table {
    ($($(#[$attribute:meta])* $call:ident [$($when:expr),*] [$($class:expr),*] $why:literal;)*) => {
        &[$($(#[$attribute])* Rule {
            call: libc::$call,
            name: stringify!($call),
            when: &[$($when),*],
            classes: &[$($class),*],
            why: $why,
        }),*]
    };
}

/// `_IOC_TYPE` of KVM's requests, and of those of terminals, sockets and taps.
const KVM: u8 = 0xae;
const T: u8 = b'T';

const EXEC: u32 = libc::PROT_EXEC as u32;

/// All rules. The order is that of the reasons: data, memory, waiting, descriptors, threads, the guest, snapshots.
pub(super) const TABLE: &[Rule] = table! {
    SYS_read [] [Cpu, Io] "events, frames of the network, streams of the guest's sockets";
    SYS_write [] [Cpu, Io] "events and interrupts, frames, streams; the console; what a panic has to say";
    SYS_recvfrom [] [Cpu, Io] "what is left in the streams of a socket device that is reset; the length of a request before the request; handshakes of streams; replies of the fs server";
    SYS_recvmsg [] [] "requests with their descriptors";
    SYS_sendto [] [Io] "requests to the fs server";
    SYS_sendmsg [] [Io] "replies and events, with the descriptors of the guest's connections";
    SYS_preadv [] [Io] "reads of the image disk";
    SYS_pwritev [] [Io] "writes to the image disk";
    SYS_pwrite64 [] [Io] "zeroes, where a file system can't deallocate; snapshots";
    SYS_fallocate [] [Io] "discarded sectors of the image disk";
    SYS_fdatasync [] [Io] "flushes of the image disk";

    SYS_mmap [Lacks(2, EXEC)] [Cpu, Io] "memory: the heap's, threads' stacks, the fs server's slots, added guest memory";
    SYS_mprotect [Lacks(2, EXEC)] [Cpu, Io] "memory: the heap grows, guard pages, added guest memory";
    SYS_munmap [] [Cpu, Io] "memory";
    SYS_mremap [] [Cpu, Io] "memory: large buffers grow";
    SYS_brk [] [Cpu, Io] "memory: the main heap grows";
    SYS_madvise [] [Cpu, Io] "memory: what the guest gives back, ended threads' stacks";
    SYS_getrandom [] [Cpu, Io] "the entropy device; seeds of hash tables";

    SYS_futex [] [Cpu, Io] "locks, and waiting for threads";
    SYS_epoll_wait [] [Io] "waiting for events";
    SYS_epoll_ctl [] [Cpu, Io] "what is waited for";
    SYS_epoll_create1 [] [] "the event loop of a thread that is started";
    SYS_eventfd2 [] [] "the end of such a thread";

    SYS_accept4 [] [] "the host's connections to the guest's sockets";
    SYS_socketpair [Is(0, libc::AF_UNIX as u32)] [] "the guest's connections to the host";
    SYS_shutdown [] [Cpu] "half-closed streams";
    SYS_close [] [Cpu, Io] "streams, extents";
    SYS_fcntl [Is(1, libc::F_DUPFD_CLOEXEC as u32)] [] "copies of events";
    SYS_fcntl [Is(1, libc::F_GETFL as u32)] [] "how a new tap or extent was opened";
    SYS_fcntl [Is(1, libc::F_SETFL as u32)] [] "taps that don't block";
    #[cfg(debug_assertions)]
    SYS_fcntl [Is(1, libc::F_GETFD as u32)] [Cpu, Io] "the standard library's check that what it closes is open";
    SYS_fcntl [Is(1, libc::F_GET_SEALS as u32)] [] "whether the fs server's slots can shrink";
    SYS_fstat [] [] "the size of the fs server's slots";
    SYS_statx [] [] "the size of a new extent, the kind of a snapshot's files";
    SYS_lseek [] [] "the size of a new extent that is a block device";
    SYS_ioctl [Request(T, 0x21)] [Cpu] "FIONBIO: sockets that don't block";
    SYS_ioctl [Request(T, 208)] [Cpu] "TUNSETOFFLOAD: what the guest's driver takes";
    SYS_ioctl [Request(T, 210)] [] "TUNGETIFF: checks of a new tap";
    SYS_ioctl [Request(T, 216)] [] "TUNSETVNETHDRSZ: a new tap's frames";

    SYS_clone3 [] [] "threads; without capabilities and in a user namespace without users it makes no namespace";
    SYS_rseq [] [] "a thread's start";
    SYS_set_robust_list [] [] "a thread's start";
    SYS_gettid [] [] "a thread's start: what panics call it";
    SYS_sched_getaffinity [] [] "a thread's start: where its stack is";
    SYS_sigaltstack [] [Cpu, Io] "a thread's start and end: a stack for reports of overflows";
    SYS_prctl [] [] "a thread's start: its name, and no new privileges, which are given up already";
    SYS_seccomp [Is(0, libc::SECCOMP_SET_MODE_FILTER)] [] "a thread's start: its own filter";
    SYS_rt_sigprocmask [] [Cpu, Io] "a thread's start and end, and signals to it";
    SYS_getpid [] [] "signals to threads";
    SYS_tgkill [] [] "takes a CPU out of the guest";
    SYS_rt_sigreturn [] [Cpu, Io] "the return from such a signal";
    SYS_exit [] [Cpu, Io] "a thread's end";
    SYS_exit_group [] [Cpu, Io] "the end, a panic's too";
    SYS_poll [] [Cpu] "whether the console's file takes another byte";

    SYS_ioctl [Request(KVM, 0x80)] [Cpu] "KVM_RUN";
    SYS_ioctl [Request(KVM, 0x81)] [Cpu] "KVM_GET_REGS: where KVM failed; snapshots";
    SYS_ioctl [Request(KVM, 0xad)] [] "KVM_KVMCLOCK_CTRL: a guest that was paused";
    SYS_ioctl [Request(KVM, 0x46)] [] "KVM_SET_USER_MEMORY_REGION: added memory";

    SYS_ioctl [Request(KVM, 0x02)] [] "KVM_GET_MSR_INDEX_LIST: snapshots";
    SYS_ioctl [Request(KVM, 0x03)] [] "KVM_CHECK_EXTENSION: snapshots";
    SYS_ioctl [Request(KVM, 0x05)] [] "KVM_GET_SUPPORTED_CPUID: snapshots";
    SYS_ioctl [Request(KVM, 0x62)] [] "KVM_GET_IRQCHIP: snapshots";
    SYS_ioctl [Request(KVM, 0x7c)] [] "KVM_GET_CLOCK: snapshots";
    SYS_ioctl [Request(KVM, 0x83)] [] "KVM_GET_SREGS: snapshots";
    SYS_ioctl [Request(KVM, 0x88)] [] "KVM_GET_MSRS: snapshots";
    SYS_ioctl [Request(KVM, 0x8e)] [] "KVM_GET_LAPIC: snapshots";
    SYS_ioctl [Request(KVM, 0x98)] [] "KVM_GET_MP_STATE: snapshots";
    SYS_ioctl [Request(KVM, 0x9f)] [] "KVM_GET_VCPU_EVENTS: snapshots";
    SYS_ioctl [Request(KVM, 0xa1)] [] "KVM_GET_DEBUGREGS: snapshots";
    SYS_ioctl [Request(KVM, 0xa3)] [] "KVM_GET_TSC_KHZ: snapshots";
    SYS_ioctl [Request(KVM, 0xa4)] [] "KVM_GET_XSAVE: snapshots";
    SYS_ioctl [Request(KVM, 0xa6)] [] "KVM_GET_XCRS: snapshots";
};
