//! `monohull-vmm`: runs the one VM whose configuration arrives on fd 3.

fn main() {}
