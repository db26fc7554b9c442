//! What makes this VM one particular pod: identity, time, randomness, kernel settings, CPUs, shared memory.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use monohull_protocol::agent::{CreateSandboxRequest, ReidentifyRequest};
use rustix::mount::{MountFlags, mount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::{Doing, Error, Result};
use crate::network::{self, Network};
use crate::{clock, sys};

/// Least entropy in bytes that makes one pod's random numbers unlike another's.
const ENTROPY_MIN: usize = 32;
/// The OCI default size of /dev/shm.
const SHM_DEFAULT: u64 = 64 << 20;
/// Pod-wide /dev/shm; containers that share it bind it from here.
const SHM: &str = "/dev/shm";

/// Applies the request; called once.
pub(crate) async fn create(request: &CreateSandboxRequest, network: &mut Network) -> Result<()> {
    // First: nothing below may draw random numbers that another pod draws, too.
    add_entropy(&request.entropy)?;
    clock::set_real_ns(request.realtime_ns)?;
    set_hostname(&request.hostname)?;
    set_cpus(request.cpus)?;
    mount_shared_memory(request.shm_bytes)?;
    network::bring_up_loopback().await?;
    network.configure(request.network.get_or_default()).await?;
    // After the network: some settings are those of its interfaces.
    request.sysctls.iter().try_for_each(|(key, value)| set_sysctl(key, value))
}

/// Makes a copy of a pod another pod than the original. Its containers stand still.
pub(crate) async fn reidentify(request: &ReidentifyRequest, network: &mut Network) -> Result<()> {
    add_entropy(&request.entropy)?;
    clock::set_real_ns(request.realtime_ns)?;
    set_hostname(&request.hostname)?;
    network.configure(request.network.get_or_default()).await
}

fn set_hostname(name: &str) -> Result<()> {
    if name.is_empty() {
        return Ok(());
    }
    rustix::system::sethostname(name.as_bytes())
        .map_err(|error| Error::Invalid(format!("hostname {name:?}: {error}")))
}

/// Sets the host name in the UTS namespace of a process.
pub(crate) fn set_hostname_of(pid: u32, name: &str) -> Result<()> {
    let what = || format!("set the host name of process {pid}");
    let namespace = File::open(format!("/proc/{pid}/ns/uts")).doing(what)?;
    // Namespaces are a thread's, and those of the agent's own stay what they are.
    let set = || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::HostNameAndNISDomainName))?;
        rustix::system::sethostname(name.as_bytes())
    };
    let set = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, set)?;
        thread.join().unwrap_or(Err(rustix::io::Errno::INVAL)).map_err(io::Error::from)
    });
    set.doing(what)
}

fn add_entropy(entropy: &[u8]) -> Result<()> {
    if entropy.len() < ENTROPY_MIN {
        return Err(Error::Invalid(format!(
            "entropy: {} bytes, at least {ENTROPY_MIN} are needed",
            entropy.len()
        )));
    }
    File::open("/dev/random")
        .and_then(|random| sys::add_entropy(random, entropy))
        .doing(|| "add entropy to the kernel's pool".into())
}

/// Puts CPUs online, or takes them off, until `wanted` are.
pub(crate) fn set_cpus(wanted: u32) -> Result<()> {
    // CPU 0 is always online.
    for cpu in 1.. {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/online");
        let online = match fs::read_to_string(&path) {
            Ok(online) => online.trim() == "1",
            Err(error) if error.kind() == io::ErrorKind::NotFound && cpu >= wanted => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Invalid(format!("cpus: the VM has {cpu}, not {wanted}")));
            }
            Err(error) => return Err(error).doing(|| format!("read {path}")),
        };
        match (online, cpu < wanted) {
            (false, true) => fs::write(&path, "1").doing(|| format!("bring up CPU {cpu}"))?,
            (true, false) => fs::write(&path, "0").doing(|| format!("take down CPU {cpu}"))?,
            _ => {}
        }
    }
    Ok(())
}

fn mount_shared_memory(bytes: u64) -> Result<()> {
    let bytes = if bytes == 0 { SHM_DEFAULT } else { bytes };
    let options = std::ffi::CString::new(format!("mode=1777,size={bytes}")).unwrap_or_default();
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("shm", SHM, "tmpfs", flags, options.as_c_str()).doing(|| format!("mount {SHM}"))
}

/// Sets a parameter of the pod's kernel.
pub(crate) fn set_sysctl(key: &str, value: &str) -> Result<()> {
    let path = sysctl_path(key)?;
    fs::write(&path, value).map_err(|error| Error::Invalid(format!("sysctl {key}={value}: {error}")))
}

/// Where a parameter is. A key has dots or slashes; in one with slashes, dots are part of a name, as in
/// sysctl(8): "net/ipv4/conf/eth0.100/rp_filter".
fn sysctl_path(key: &str) -> Result<PathBuf> {
    let names: Vec<&str> = key.split(if key.contains('/') { '/' } else { '.' }).collect();
    let bad = |name: &&str| name.is_empty() || *name == "." || *name == ".." || name.contains('\0');
    if names.iter().any(bad) {
        return Err(Error::Invalid(format!("{key:?} is not the name of a sysctl")));
    }
    Ok(["/proc/sys"].into_iter().chain(names).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_names_become_paths() {
        let path = |key| sysctl_path(key).unwrap();
        assert_eq!(path("net.ipv4.ip_forward"), PathBuf::from("/proc/sys/net/ipv4/ip_forward"));
        assert_eq!(path("net/ipv4/conf/eth0.1/x"), PathBuf::from("/proc/sys/net/ipv4/conf/eth0.1/x"));
    }

    #[test]
    fn sysctl_names_cannot_leave_proc_sys() {
        for key in ["", "..", "../kcore", "net/../../x", "net..x", "/etc/passwd", "a.b\0c"] {
            assert!(sysctl_path(key).is_err(), "{key:?}");
        }
    }
}
