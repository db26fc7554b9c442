//! What root may do and the serving process may not, from its start on: most of it (capabilities(7)).
//!
//! Hooks and logging programs are the engine's and have all of its rights, as from any runtime. They come with any container, so
//! one thread keeps all rights to start them, and does nothing else. All others, and the VMM and the fs server, can't get
//! them back.

use std::io;
use std::sync::mpsc;
use std::thread;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;

/// The thread makes children, and waits.
const STACK: usize = 128 * 1024;

/// What is kept, and what for. Children of the process have no more; what they have of it is said there.
pub(crate) const KEPT: [(CapabilitySet, &str); 15] = [
    (
        CapabilitySet::SYS_ADMIN,
        "mounts; namespaces of its own, of the VMM and of the fs server; the port forward's program",
    ),
    (CapabilitySet::NET_ADMIN, "the pod's taps and what joins them to its links"),
    (CapabilitySet::SYS_CHROOT, "the roots of threads that stand for containers; mount namespaces"),
    (CapabilitySet::DAC_OVERRIDE, "the engine's files, whoever owns them; the fs server"),
    (CapabilitySet::KILL, "the VMM, whose user is another"),
    (CapabilitySet::SYS_PTRACE, "namespaces of processes that have more rights"),
    (CapabilitySet::SYS_RESOURCE, "the fs server's limit of open files"),
    (CapabilitySet::SETUID, "the VMM's user, and the one that connects to a mounted socket; the fs server"),
    (CapabilitySet::SETGID, "their groups"),
    (CapabilitySet::SETPCAP, "VMM and fs server give up theirs for good"),
    (CapabilitySet::CHOWN, "overlays, which act with the rights of who has mounted them; the fs server"),
    (CapabilitySet::FOWNER, "the same"),
    (CapabilitySet::FSETID, "the same"),
    (CapabilitySet::MKNOD, "the same"),
    (CapabilitySet::SETFCAP, "the same"),
];

/// Gives up all but [`KEPT`], and new rights by executing programs, for the calling thread and those that it starts.
pub(crate) fn give_up() -> io::Result<()> {
    let kept = KEPT.iter().fold(CapabilitySet::empty(), |all, (one, _)| all | *one);
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(one) {
            continue;
        }
        match remove_capability_from_bounding_set(one) {
            // The kernel's last one is before it.
            Err(rustix::io::Errno::INVAL) => break,
            done => done?,
        }
    }
    let CapabilitySets { effective, permitted, .. } = capabilities(None)?;
    let rest = CapabilitySets {
        effective: effective & kept,
        permitted: permitted & kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, rest)?;
    Ok(set_no_new_privs(true)?)
}

/// A thread that keeps the rights and the namespaces of the one that made it, and starts programs. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Starter {
    orders: mpsc::Sender<Order>,
}

/// A program to start, and whom to tell.
type Order = (Command, Handle, mpsc::Sender<io::Result<Child>>);

impl Starter {
    /// Starts the thread.
    pub(crate) fn new() -> io::Result<Self> {
        let (orders, received) = mpsc::channel::<Order>();
        let serve = move || {
            for (mut command, runtime, started) in received {
                let _entered = runtime.enter();
                // The one that asked waits for it.
                let _ = started.send(command.spawn());
            }
        };
        thread::Builder::new().name("host".into()).stack_size(STACK).spawn(serve)?;
        Ok(Self { orders })
    }

    /// Starts a program. To be called in an event loop, which hears of its end.
    pub(crate) fn spawn(&self, command: Command) -> io::Result<Child> {
        let (started, told) = mpsc::channel();
        // A thread that has panicked has dropped both.
        let _ = self.orders.send((command, Handle::current(), started));
        told.recv().map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    /// The first number of a field of a process's or thread's status, in hexadecimal.
    fn field(status: &str, name: &str) -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
    }

    #[test]
    fn what_is_kept_is_named_once_and_with_a_reason() {
        let kept = KEPT.iter().fold(CapabilitySet::empty(), |all, (one, _)| all | *one);
        assert_eq!(kept.bits().count_ones() as usize, KEPT.len());
        assert!(KEPT.iter().all(|(_, why)| !why.is_empty()));
    }

    #[tokio::test]
    async fn programs_of_the_host_have_all_rights_and_others_what_is_kept() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let before = field(&status, "CapBnd");
        // A thread of its own: it does not get them back.
        let give_up = || {
            let starter = Starter::new().unwrap();
            give_up().expect("this test needs root");
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let own = std::process::Command::new("cat").arg("/proc/self/status").output().unwrap();
            (starter, status, String::from_utf8(own.stdout).unwrap())
        };
        let (starter, thread, child) = std::thread::spawn(give_up).join().unwrap();
        let kept = KEPT.iter().fold(0, |all, (one, _)| all | one.bits()) & before;
        for status in [thread, child] {
            for set in ["CapBnd", "CapPrm", "CapEff"] {
                assert_eq!(field(&status, set), kept, "{set} in {status}");
            }
            assert_eq!(field(&status, "NoNewPrivs"), 1);
        }
        let mut command = Command::new("cat");
        command.arg("/proc/self/status").stdout(Stdio::piped());
        let output = starter.spawn(command).unwrap().wait_with_output().await.unwrap();
        let status = String::from_utf8(output.stdout).unwrap();
        assert_eq!((field(&status, "CapBnd"), field(&status, "NoNewPrivs")), (before, 0));
    }
}
