//! Generates the messages of `protocol/`, without protoc.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=protocol");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(["protocol/pod_sandbox_config.proto"])
        .include("protocol")
        .rust_protobuf()
        .run()?;
    // The generated file begins with inner attributes, so it is a module by path, not by include!.
    let path = out.join("pod_sandbox_config.rs");
    std::fs::write(out.join("modules.rs"), format!("#[path = {path:?}]\npub mod pod_sandbox_config;\n"))?;
    Ok(())
}
