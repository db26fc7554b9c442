//! What is read from and written to the host's disks for a pod.

use std::fs;
use std::io;

use super::required;

/// Bytes that have gone to and from the host's disks. What its page cache has served is not among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    /// Read from disks.
    pub read: u64,
    /// Written, or to be written by the kernel soon.
    pub written: u64,
}

/// What a process had the kernel transfer (`/proc/PID/io` of proc(5)).
pub(super) fn of(pid: i32) -> io::Result<Transfer> {
    let text = fs::read_to_string(format!("/proc/{pid}/io"))?;
    Ok(Transfer { read: required(&text, "read_bytes")?, written: required(&text, "write_bytes")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_transfers_is_told() {
        of(std::process::id().try_into().unwrap()).unwrap();
    }
}
