//! What PID 1 does before anything else: the pod's filesystem tree, cgroups and limits.
//!
//! The kernel starts us in the initramfs, whose root can be neither unmounted nor left with pivot_root, which
//! containers need (Documentation/filesystems/ramfs-rootfs-initramfs.rst). So a tmpfs becomes the root: it is moved
//! over `/` and entered with chroot. The agent's binary is not copied: a read-only bind mount carries it along, at
//! [`AGENT`]. Helpers are executed from there, so that a container that gets hold of their `/proc/self/exe` can't
//! write to the agent.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rustix::mount::{MountFlags, mount, mount_bind, mount_move, mount_remount};
use rustix::process::{Resource, Rlimit, chroot, setrlimit};

use crate::cgroup;
use crate::error::{Doing, Result};

/// Where the agent's binary is after the root switch, on a read-only mount.
pub(crate) const AGENT: &str = "/monohull-agent";

const NEW_ROOT: &str = "/newroot";
const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// A filesystem of the guest's own tree: type, place, flags, options.
struct Early(&'static str, &'static str, MountFlags, &'static std::ffi::CStr);

const TREE: [Early; 7] = [
    Early("proc", "/proc", SAFE, c""),
    Early("sysfs", "/sys", SAFE, c""),
    Early("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=0755"),
    Early(
        "devpts",
        "/dev/pts",
        MountFlags::NOSUID.union(MountFlags::NOEXEC),
        c"gid=5,mode=0620,ptmxmode=0666",
    ),
    Early("mqueue", "/dev/mqueue", SAFE, c""),
    // nsdelegate makes cgroup namespaces of containers a boundary. With favordynmods a process enters a cgroup without waiting
    // for the kernel's other work (some 10 ms, for each container); fork and exec cost some instructions more.
    Early("cgroup2", cgroup::ROOT, SAFE, c"nsdelegate,favordynmods"),
    Early("tmpfs", "/run", MountFlags::NOSUID.union(MountFlags::NODEV), c"mode=0755"),
];

/// Settings of the guest's memory management, below `/proc/sys/vm` (Documentation/admin-guide/sysctl/vm.rst), and what they do.
const MEMORY: [(&str, &str, &str); 2] = [
    // The part of a zone's pages that its CPUs keep for themselves, at most, when they are freed. By itself the kernel makes that
    // an eighth and lets 8 MiB go in a second (mm/page_alloc.c, `decay_pcp_high`). Kept pages do not merge into blocks, and
    // only blocks are reported to the host.
    ("percpu_pagelist_high_fraction", "1024", "have freed pages merge"),
    // Otherwise kcompactd looks around twice a second (mm/compaction.c, HPAGE_FRAG_CHECK_INTERVAL_MSEC), with what follows from
    // that most of what an idle pod does. It still works when an allocation asks for it.
    ("compaction_proactiveness", "0", "have memory compacted on demand only"),
];

/// Brings the machine from the kernel's hands into the state that containers expect. Called once, as PID 1, while the
/// process has one thread.
pub(crate) fn prepare() -> Result<()> {
    switch_root()?;
    for Early(fstype, place, flags, options) in TREE {
        make_directory(place)?;
        mount(fstype, place, fstype, flags, Some(options)).doing(|| format!("mount {fstype} on {place}"))?;
    }
    make_public_directory("/dev/shm")?;
    make_public_directory("/tmp")?;
    detach_console()?;
    raise_limits()?;
    for (setting, value, what) in MEMORY {
        fs::write(format!("/proc/sys/vm/{setting}"), value).doing(|| what.into())?;
    }
    // The agent must be the last process that the OOM killer takes: with it goes the pod.
    fs::write("/proc/self/oom_score_adj", "-1000")
        .doing(|| "protect the agent from the OOM killer".into())?;
    cgroup::prepare()
}

fn make_directory(path: &str) -> Result<()> {
    fs::create_dir_all(path).doing(|| format!("make {path}"))
}

fn make_public_directory(path: &str) -> Result<()> {
    make_directory(path)?;
    // The mode that mkdir takes is subject to the umask.
    fs::set_permissions(path, fs::Permissions::from_mode(0o1777)).doing(|| format!("set the mode of {path}"))
}

fn switch_root() -> Result<()> {
    make_directory(NEW_ROOT)?;
    let agent = format!("{NEW_ROOT}{AGENT}");
    mount("tmpfs", NEW_ROOT, "tmpfs", MountFlags::NODEV, Some(c"mode=0755"))
        .doing(|| "mount the new root".into())?;
    fs::write(&agent, "").doing(|| format!("make {agent}"))?;
    mount_bind("/init", &agent).doing(|| "bind /init into the new root".into())?;
    mount_remount(&agent, MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV, "")
        .doing(|| "make the agent's mount read-only".into())?;
    std::env::set_current_dir(NEW_ROOT).doing(|| "enter the new root".into())?;
    mount_move(".", "/").doing(|| "move the new root over /".into())?;
    chroot(".").doing(|| "chroot into the new root".into())?;
    std::env::set_current_dir("/").doing(|| "enter /".into())
}

/// Points the standard streams at /dev/null: a chatty library must not write to the console, and a descriptor below 3
/// must never be something else.
fn detach_console() -> Result<()> {
    let null =
        fs::OpenOptions::new().read(true).write(true).open("/dev/null").doing(|| "open /dev/null".into())?;
    rustix::stdio::dup2_stdin(&null).doing(|| "redirect standard input".into())?;
    rustix::stdio::dup2_stdout(&null).doing(|| "redirect standard output".into())?;
    rustix::stdio::dup2_stderr(&null).doing(|| "redirect standard error".into())
}

/// Limits that containers inherit when their spec sets none. The kernel derives its defaults from the VM's memory,
/// which is small when the VM boots.
fn raise_limits() -> Result<()> {
    let files = Some(1_048_576);
    setrlimit(Resource::Nofile, Rlimit { current: files, maximum: files })
        .doing(|| "raise the limit of open files".into())?;
    setrlimit(Resource::Nproc, Rlimit { current: None, maximum: None })
        .doing(|| "raise the limit of processes".into())
}
