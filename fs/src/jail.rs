//! What the server gives up before it reads the first request of a guest.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use capng::{Action, Set, Type};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, Scope,
};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::unistd::{chdir, pivot_root};
use virtiofsd::seccomp::{SeccompAction, enable_seccomp};

/// What serving files for any owner takes (capabilities(7)).
const CAPABILITIES: [&str; 8] =
    ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETGID", "SETUID", "MKNOD", "SETFCAP"];
/// Descriptors that the server needs for itself; the guest's files may have all others.
const OWN_FILES: u64 = 64;

/// The jail can't be built.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}: {why}")]
pub struct JailError {
    doing: &'static str,
    why: String,
}

fn failed<E: std::fmt::Display>(doing: &'static str) -> impl FnOnce(E) -> JailError {
    move |error| JailError { doing, why: error.to_string() }
}

/// What is left of the world outside.
#[derive(Debug)]
pub struct Jail {
    /// `/proc/self/fd`, and nothing above it.
    pub descriptors: File,
    /// How many files may be open for the guest.
    pub files: u64,
}

/// Asks to be killed when the thread that started this process ends.
pub fn die_with_owner() -> Result<(), JailError> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed("tie itself to its owner"))
}

/// Makes `tree`, a mount point, the root of everything, and drops all rights but those over files. The process must have
/// one thread.
///
/// Mounts that are made below `tree` in the namespace this is called in appear in the new root.
pub fn enter(tree: &Path) -> Result<Jail, JailError> {
    let limit =
        virtiofsd::limits::setup_rlimit_nofile(None).map_err(failed("raise its limit of open files"))?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    unshare(namespaces).map_err(failed("make namespaces of its own"))?;
    let descriptors = confine(tree).map_err(failed("make the shared directories its root"))?;
    // The modes that the guest asks for are the modes that files get.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    nix::sys::prctl::set_no_new_privs().map_err(failed("give up new privileges"))?;
    deny_the_rest()?;
    enable_seccomp(SeccompAction::Kill, false).map_err(failed("filter its system calls"))?;
    drop_capabilities().map_err(|error| failed("drop its capabilities")(format!("{error:?}")))?;
    Ok(Jail { descriptors, files: limit.saturating_sub(OWN_FILES) })
}

/// Changes the root; returns `/proc/self/fd`.
fn confine(tree: &Path) -> io::Result<File> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)?;
    // As the root of a mount: no path leads up from it to other processes.
    mount(Some("/proc/self/fd"), "/proc", none, MsFlags::MS_BIND, none)?;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
    let descriptors = File::options().read(true).custom_flags(flags.bits()).open("/proc")?;
    chdir(tree)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    // The exports are writable as their mounts say; the directory that holds them is not the guest's.
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(none, "/", none, read_only, none).map_err(|error: Errno| io::Error::from(error))?;
    Ok(descriptors)
}

/// Denies all that the running kernel's Landlock knows of, but for the use of files below the root: no path that leads elsewhere,
/// whatever descriptor it begins with, no execution of what the guest can make there, no requests to devices, no ports, no
/// processes outside. Linux 5.13 to 5.18 could allow no renaming from one directory into another: without Landlock there.
fn deny_the_rest() -> Result<(), JailError> {
    const NEWEST: ABI = ABI::V6;
    const DOING: &str = "deny itself what is not shared";
    let all = AccessFs::from_all(NEWEST);
    let unused: BitFlags<AccessFs> = AccessFs::Execute | AccessFs::IoctlDev;
    let root = PathFd::new("/").map_err(failed(DOING))?;
    let rules = || {
        Ruleset::default()
            .set_compatibility(CompatLevel::SoftRequirement)
            .handle_access(AccessFs::Refer)?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(all)?
            .handle_access(AccessNet::from_all(NEWEST))?
            .scope(Scope::from_all(NEWEST))?
            .create()?
            .add_rule(PathBeneath::new(root, all & !unused))?
            .restrict_self()
    };
    rules().map(drop).map_err(|error: RulesetError| failed(DOING)(error))
}

fn drop_capabilities() -> Result<(), capng::Error> {
    capng::clear(Set::BOTH);
    capng::updatev(Action::ADD, Type::PERMITTED | Type::EFFECTIVE, CAPABILITIES.to_vec())?;
    capng::apply(Set::BOTH)
}

#[cfg(test)]
mod tests;
