//! `monohull`: containers in microVMs from the command line, and tools to look at running pods.

fn main() {}
