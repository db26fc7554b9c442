//! The table of system calls.

use libc::c_long;

use super::Class::{self, Cpu, Io, Main, Start};

/// A call that threads of `classes` may make.
#[derive(Debug)]
pub(super) struct Rule {
    /// Its number.
    pub call: c_long,
    /// Its name, as libc's constant for the number has it.
    pub name: &'static str,
    /// What its arguments must be, all of these; another rule with conditions for the same call may allow others.
    pub when: &'static [Argument],
    /// Who may make it. What the other two may that it starts, [`Start`] may too: they inherit its filter.
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

/// All rules, by what they are for: data, memory, waiting, descriptors, threads, the guest, snapshots.
pub(super) const TABLE: &[Rule] = table! {
    SYS_read [] [Main, Io] "events, frames of the network";
    SYS_write [] [Main, Cpu, Io] "events and interrupts, frames, the console; what a panic has to say";
    SYS_recvfrom [] [Main, Cpu] "the length of a request before it; streams, and what is left in them at a reset";
    SYS_sendto [] [Main] "streams of the guest's sockets";
    SYS_writev [] [Main] "streams whose bytes waited in two parts of a buffer";
    SYS_recvmsg [] [Main, Io] "requests with their descriptors; replies of the fs server";
    SYS_sendmsg [] [Main, Io] "replies and events, with the guest's connections; requests to the fs server";
    SYS_preadv [] [Io] "reads of the image disk";
    SYS_pwritev [] [Io] "writes to the image disk";
    SYS_pwrite64 [] [Main, Io] "zeroes, where a file system can't deallocate; snapshots";
    SYS_fallocate [] [Io] "discarded sectors of the image disk";
    SYS_fdatasync [] [Main, Io] "flushes of the image disk, the last one too";

    SYS_mmap [Lacks(2, EXEC)] [Main, Start] "large buffers, stacks, the fs server's slots, added guest memory";
    SYS_mprotect [Lacks(2, EXEC)] [Main, Start] "guard pages of stacks; added guest memory";
    SYS_munmap [] [Main, Cpu, Io] "large buffers, stacks";
    SYS_mremap [] [Main] "large buffers grow";
    SYS_brk [] [Main, Cpu, Io] "the heap, which all threads share, grows";
    SYS_madvise [] [Main, Cpu, Io] "memory that the guest gives back, stacks of threads that have ended";
    SYS_getrandom [] [Main] "the entropy device; names of snapshots";

    SYS_futex [] [Main, Cpu, Io] "locks, threads";
    SYS_sched_yield [] [Main, Start] "channels between threads";
    SYS_epoll_wait [] [Main, Io] "events";
    SYS_epoll_ctl [] [Main, Cpu, Io] "what is waited for";
    SYS_epoll_create1 [] [Main] "the event loop of a thread that is to be started";
    SYS_eventfd2 [] [Main] "the end of such a thread";
    SYS_timerfd_settime [] [Main, Io] "when a device that is limited goes on";
    SYS_clock_gettime [] [Main, Io] "how long a limited device has waited, where the kernel's clock can't be read without a call";
    SYS_poll [] [Main, Cpu] "room for the last message to the owner, and for a byte of the console";

    SYS_accept4 [] [Main] "the host's connections to the guest's sockets";
    SYS_socketpair [Is(0, libc::AF_UNIX as u32)] [Main] "the guest's connections to the host";
    SYS_shutdown [] [Main, Cpu] "half-closed streams";
    SYS_close [] [Main, Cpu, Io] "streams, extents";
    SYS_fcntl [Is(1, libc::F_DUPFD_CLOEXEC as u32)] [Main] "copies of events";
    SYS_fcntl [Is(1, libc::F_GETFL as u32)] [Main] "how a new tap or extent was opened";
    SYS_fcntl [Is(1, libc::F_SETFL as u32)] [Main] "taps that don't block";
    SYS_fcntl [Is(1, libc::F_GET_SEALS as u32)] [Main] "that the memory of the fs server can't shrink";
    #[cfg(debug_assertions)]
    SYS_fcntl [Is(1, libc::F_GETFD as u32)] [Main, Cpu, Io] "the standard library's check of what it closes";
    SYS_statx [] [Main] "the sizes of new extents and of the fs server's memory, the kind of a snapshot's files";
    SYS_lseek [] [Main] "the size of a new extent that is a block device";
    SYS_ioctl [Request(T, 0x21)] [Main] "FIONBIO: sockets that don't block";
    SYS_ioctl [Request(T, 208)] [Main, Cpu] "TUNSETOFFLOAD: what the guest's driver takes";
    SYS_ioctl [Request(T, 210)] [Main] "TUNGETIFF: the kind of a new tap";
    SYS_ioctl [Request(T, 213)] [Main] "TUNATTACHFILTER: the groups that the guest's driver has joined";
    SYS_ioctl [Request(T, 214)] [Main, Cpu] "TUNDETACHFILTER: a driver that wants all, or that has gone";
    SYS_ioctl [Request(T, 216)] [Main] "TUNSETVNETHDRSZ: a new tap's frames";

    SYS_clone3 [] [Start] "threads; without capabilities, and as nobody's user, it makes no namespace";
    SYS_rseq [] [Start] "a thread's start";
    SYS_set_robust_list [] [Start] "a thread's start";
    SYS_gettid [] [Start] "a thread's start: what panics call it";
    SYS_sched_getaffinity [] [Start] "a thread's start: where its stack is";
    SYS_sigaltstack [] [Main, Cpu, Io] "a thread's start and end: a stack to report an overflow on";
    SYS_prctl [Is(0, libc::PR_SET_NAME as u32)] [Start] "a thread's name";
    SYS_prctl [Is(0, libc::PR_SET_NO_NEW_PRIVS as u32)] [Start] "a thread's filter";
    SYS_seccomp [Is(0, libc::SECCOMP_SET_MODE_FILTER)] [Start] "a thread's filter";
    SYS_rt_sigprocmask [] [Main, Cpu, Io] "a thread's start and end, and signals to it";
    SYS_getpid [] [Main] "signals to threads";
    SYS_tgkill [] [Main] "takes a CPU out of the guest";
    SYS_rt_sigreturn [] [Cpu] "the return from the signal";
    SYS_exit [] [Cpu, Io] "a thread's end";
    SYS_exit_group [] [Main, Cpu, Io] "the end, a panic's too";

    SYS_ioctl [Request(KVM, 0x80)] [Cpu] "KVM_RUN";
    SYS_ioctl [Request(KVM, 0x81)] [Main, Cpu] "KVM_GET_REGS: where KVM failed; snapshots";
    SYS_ioctl [Request(KVM, 0xad)] [Main] "KVM_KVMCLOCK_CTRL: a guest that was paused";
    SYS_ioctl [Request(KVM, 0x46)] [Main] "KVM_SET_USER_MEMORY_REGION: added memory";

    SYS_ioctl [Request(KVM, 0x02)] [Main] "KVM_GET_MSR_INDEX_LIST: snapshots";
    SYS_ioctl [Request(KVM, 0x62)] [Main] "KVM_GET_IRQCHIP: snapshots";
    SYS_ioctl [Request(KVM, 0x7c)] [Main] "KVM_GET_CLOCK: snapshots";
    SYS_ioctl [Request(KVM, 0x83)] [Main] "KVM_GET_SREGS: snapshots";
    SYS_ioctl [Request(KVM, 0x88)] [Main] "KVM_GET_MSRS: snapshots";
    SYS_ioctl [Request(KVM, 0x8e)] [Main] "KVM_GET_LAPIC: snapshots";
    SYS_ioctl [Request(KVM, 0x98)] [Main] "KVM_GET_MP_STATE: snapshots";
    SYS_ioctl [Request(KVM, 0x9f)] [Main] "KVM_GET_VCPU_EVENTS: snapshots";
    SYS_ioctl [Request(KVM, 0xa1)] [Main] "KVM_GET_DEBUGREGS: snapshots";
    SYS_ioctl [Request(KVM, 0xa3)] [Main] "KVM_GET_TSC_KHZ: snapshots";
    SYS_ioctl [Request(KVM, 0xa4)] [Main] "KVM_GET_XSAVE: snapshots";
    SYS_ioctl [Request(KVM, 0xa6)] [Main] "KVM_GET_XCRS: snapshots";
};
