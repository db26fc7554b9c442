//! What the VMM gives up before it looks at anything that a guest could have made: every path, every other process, the
//! network, and the rights of root. What it has left are the descriptors that its owner handed to it.
//!
//! A process id namespace can only be entered by being born in one: the owner sees to that ([`crate::client`]).
#![deny(unsafe_code)]

pub(crate) mod filter;

use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError,
    RulesetStatus, Scope,
};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, chdir, pivot_root, setgroups, setresgid, setresuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities,
};

/// What is used up by numbers, and the most that a VMM needs of it.
const LIMITS: [(Resource, u64); 5] = [
    // Guest memory is in no core file.
    (Resource::RLIMIT_CORE, 0),
    // Threads: one for each CPU, the main one, and a few for devices. The user number is nobody else's.
    (Resource::RLIMIT_NPROC, 512),
    // Of the VM, its CPUs and devices some hundreds, 255 extents, and two for each of 1024 connections of its guest, of which the
    // owner has taken one soon.
    (Resource::RLIMIT_NOFILE, 4096),
    (Resource::RLIMIT_MEMLOCK, 0),
    (Resource::RLIMIT_MSGQUEUE, 0),
];

/// The VMM can't be confined.
#[derive(Debug, thiserror::Error)]
#[error("can't confine the VMM: {doing}")]
pub(crate) struct JailError {
    doing: &'static str,
    #[source]
    source: io::Error,
}

fn failed<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> JailError {
    move |error| JailError { doing, source: error.into() }
}

/// Confines this process for good. It must have one thread, the rights of root, and all the descriptors it needs. It runs as
/// `user` afterwards, which should be nobody else's number.
///
/// What a host may lack is done without: user namespaces, and Landlock, of which it returns how much is in force.
pub(crate) fn enter(user: u32) -> Result<RulesetStatus, JailError> {
    if user == 0 {
        return Err(failed("its user is root")(io::Error::from(Errno::EINVAL)));
    }
    for (resource, most) in LIMITS {
        let (_, hard) = getrlimit(resource).map_err(failed("read its limits"))?;
        let most = most.min(hard);
        setrlimit(resource, most, most).map_err(failed("limit its resources"))?;
    }
    // As root, so that they are the host's, and not of the user namespace that comes last.
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(namespaces).map_err(failed("make namespaces of its own"))?;
    leave_file_system().map_err(failed("leave the host's file system"))?;
    become_user(user)?;
    give_up_capabilities().map_err(failed("give up capabilities"))?;
    prctl::set_no_new_privs().map_err(failed("give up new privileges"))?;
    // Changing the user has undone it. The owner may have gone meanwhile; then the control socket says so.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed("tie itself to its owner"))?;
    deny_everything()
}

/// Makes an empty, read-only file system the root, and lets go of the host's.
fn leave_file_system() -> Result<(), Errno> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Any directory will do; this one is everywhere.
    mount(Some("none"), "/proc", Some("tmpfs"), flags, Some("size=4k,nr_inodes=1,mode=555"))?;
    chdir("/proc")?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}

/// Becomes `user` and nobody's member, within a user namespace where that number means nothing.
fn become_user(user: u32) -> Result<(), JailError> {
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    setgroups(&[]).map_err(failed("leave root's groups"))?;
    setresgid(gid, gid, gid).map_err(failed("change its group"))?;
    // Some hosts let none but root make user namespaces.
    set_keep_capabilities(true).map_err(failed("keep its capabilities for a moment"))?;
    setresuid(uid, uid, uid).map_err(failed("change its user"))?;
    let kept = capabilities(None).map_err(failed("read its capabilities"))?;
    let effective = CapabilitySets { effective: kept.permitted, ..kept };
    set_capabilities(None, effective).map_err(failed("keep its capabilities for a moment"))?;
    // A host that has no user namespaces, or no more, has nothing that this one would keep from the VMM.
    let _ = unshare(CloneFlags::CLONE_NEWUSER);
    Ok(())
}

/// A new user namespace comes with all capabilities in it: these, or those that were kept.
fn give_up_capabilities() -> Result<(), rustix::io::Errno> {
    for number in 0..u64::BITS {
        // The kernel's last capability is followed by EINVAL.
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Err(rustix::io::Errno::INVAL) => break,
            done => done?,
        }
    }
    let nothing = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: nothing, permitted: nothing, inheritable: nothing })
}

/// Denies every access that the running kernel's Landlock knows of: to paths, ports, and processes outside.
fn deny_everything() -> Result<RulesetStatus, JailError> {
    const NEWEST: ABI = ABI::V6;
    let rules = || {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(AccessNet::from_all(NEWEST))?
            .scope(Scope::from_all(NEWEST))?
            .create()?
            .restrict_self()
    };
    let failed_by = |error: RulesetError| failed("deny itself every path")(io::Error::other(error));
    rules().map(|status| status.ruleset).map_err(failed_by)
}

#[cfg(test)]
mod tests;
