//! `monohull-initramfs AGENT OUTPUT`: writes the guest's initramfs.

fn main() {}
