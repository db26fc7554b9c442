//! How the agent is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // At a fixed address: else every helper, one for each process of a container, would begin with relocating 36,000
    // pointers on pages that it then has for itself.
    for argument in ["-no-pie", "-static"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
