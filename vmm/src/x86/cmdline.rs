//! The kernel command line.

use std::fmt::Write;

use super::layout::{CMDLINE_SIZE, RAMOOPS, RAMOOPS_RECORD, VIRTIO_IRQS, VIRTIO_SIZE, virtio_address};

/// Parameters of every guest.
///
/// - `reboot=k panic=-1`: the guest ends, panic or not, by a reset through the keyboard controller, which the VMM sees.
/// - `maxcpus=1`: the agent puts further CPUs online once the pod needs them.
/// - `noreplace-smp`: patching the LOCK prefixes out for one CPU, and in again for more, costs more than they do.
/// - `tsc=reliable`: no watchdog that wakes an idle guest twice a second.
/// - `swiotlb=noforce`: no device bounces, so no 64 MiB for bounce buffers.
/// - `dummy.numdummies=0`: no interface that nobody has asked for.
/// - `dhash_entries, ihash_entries`: the tables of names and inodes are as large as is good for a container or a few. Each
///   bucket that is used is a page of its own in a large table, that no two VMs share.
const BASE: &str = "reboot=k panic=-1 maxcpus=1 noreplace-smp tsc=reliable swiotlb=noforce dummy.numdummies=0 \
                    dhash_entries=8192 ihash_entries=4096";

/// The command line could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CmdlineError {
    /// The kernel would cut it off.
    #[error("the kernel command line is {0} bytes long, at most {max} work; shorten the configured one", max = CMDLINE_SIZE - 1)]
    TooLong(usize),
    /// The kernel would misread it.
    #[error("the configured kernel command line has a control or non-ASCII character")]
    Character,
}

/// The command line of a guest with `devices` virtio devices, ending in what the configuration adds.
pub(crate) fn build(devices: u32, console: bool, extra: &str) -> Result<String, CmdlineError> {
    if extra.bytes().any(|byte| !(b' '..=b'~').contains(&byte)) {
        return Err(CmdlineError::Character);
    }
    let mut line = String::from(BASE);
    line.push_str(if console { " console=ttyS0 8250.nr_uarts=1" } else { " quiet 8250.nr_uarts=0" });
    // Writing to a String does not fail.
    let _ = write!(
        line,
        " ramoops.mem_address={:#x} ramoops.mem_size={:#x} ramoops.record_size={RAMOOPS_RECORD:#x} \
         ramoops.console_size=0 ramoops.ftrace_size=0 ramoops.pmsg_size=0",
        RAMOOPS.start,
        RAMOOPS.end - RAMOOPS.start
    );
    for (index, irq) in (0..devices).zip(VIRTIO_IRQS) {
        let _ = write!(line, " virtio_mmio.device={VIRTIO_SIZE}@{:#x}:{irq}", virtio_address(index));
    }
    if !extra.is_empty() {
        line.push(' ');
        line.push_str(extra);
    }
    if line.len() >= CMDLINE_SIZE { Err(CmdlineError::TooLong(line.len())) } else { Ok(line) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_with_size_address_and_interrupt() {
        let line = build(2, false, "x=1").unwrap();
        assert!(
            line.ends_with("virtio_mmio.device=512@0xd0000000:5 virtio_mmio.device=512@0xd0000200:6 x=1"),
            "{line}"
        );
        assert!(line.contains(" quiet ") && !line.contains("console=tty"), "{line}");
    }

    #[test]
    fn the_largest_guest_leaves_room_for_a_configured_line() {
        let devices = VIRTIO_IRQS.end - VIRTIO_IRQS.start;
        assert!(build(devices, true, &"a".repeat(512)).is_ok());
    }

    #[test]
    fn lines_the_kernel_would_cut_or_misread_are_refused() {
        assert!(matches!(build(0, false, &"a".repeat(2048)), Err(CmdlineError::TooLong(_))));
        assert!(matches!(build(0, false, "a\nb"), Err(CmdlineError::Character)));
        assert!(matches!(build(0, false, "\0"), Err(CmdlineError::Character)));
    }
}
