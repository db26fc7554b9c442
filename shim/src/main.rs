//! `containerd-shim-monohull-v2`: containerd's shim for Monohull pods.

fn main() {}
