//! An init that resets its machine at once: the shortest guest there is, for the benchmark of the bare VMM.

fn main() {
    // Returns only on failure; then the kernel panics for want of an init, which the benchmark reports.
    let _ = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_AUTOBOOT);
}
