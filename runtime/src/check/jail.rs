//! What the kernel has to confine a VMM with.

use std::fs;

use super::Finding;

pub(super) fn look() -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    vec![
        seccomp(&read("/proc/sys/kernel/seccomp/actions_avail")),
        landlock(&read("/sys/kernel/security/lsm")),
        user_namespaces(&read("/proc/sys/user/max_user_namespaces")),
    ]
}

fn seccomp(actions: &str) -> Finding {
    if actions.split_whitespace().any(|action| action == "kill_process") {
        return Finding::ok("seccomp", "a VMM's system calls are filtered");
    }
    let fix = "boot a kernel with CONFIG_SECCOMP_FILTER";
    Finding::problem("seccomp", "the kernel can't filter a VMM's system calls, so none starts", fix)
}

/// Whether Landlock is among the kernel's security modules, which are listed where securityfs is mounted.
fn landlock(modules: &str) -> Finding {
    if modules.trim().split(',').any(|module| module == "landlock") {
        return Finding::ok("landlock", "a VMM can't open any path");
    }
    let fix = "add landlock to the kernel's lsm= parameter (CONFIG_SECURITY_LANDLOCK)";
    let finding = if modules.is_empty() {
        "unknown, because securityfs is not mounted; a VMM does without where it is missing"
    } else {
        "not there; that a VMM can't open a path rests on its empty root and its system call filter"
    };
    Finding::note("landlock", finding, fix)
}

fn user_namespaces(most: &str) -> Finding {
    match most.trim().parse::<u64>() {
        Ok(0) => {
            let finding = "the host allows none; a VMM's user is then an ordinary one of the host";
            Finding::note("user namespaces", finding, "set the sysctl user.max_user_namespaces above 0")
        }
        Ok(_) => Finding::ok("user namespaces", "a VMM's user is nobody outside of its own"),
        Err(_) => {
            let finding = "the kernel has none; a VMM's user is then an ordinary one of the host";
            Finding::note("user namespaces", finding, "boot a kernel with CONFIG_USER_NS")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level::{Note, Ok, Problem};

    #[test]
    fn only_seccomp_is_needed() {
        let full = "kill_process kill_thread trap errno user_notif trace log allow\n";
        assert_eq!(seccomp(full).level, Ok);
        assert_eq!(seccomp("").level, Problem);
        assert_eq!(landlock("capability,landlock,yama,bpf\n").level, Ok);
        for modules in ["", "capability,yama"] {
            assert_eq!(landlock(modules).level, Note, "{modules}");
        }
        assert_eq!(user_namespaces("15432\n").level, Ok);
        for most in ["0\n", ""] {
            assert_eq!(user_namespaces(most).level, Note, "{most}");
        }
    }
}
