//! Generates the Rust side of `agent.proto`, without protoc.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=agent.proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let customize = ttrpc_codegen::Customize { async_all: true, ..Default::default() };
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(["agent.proto"])
        .include(".")
        .rust_protobuf()
        .customize(customize)
        .run()?;
    // The generated files begin with inner attributes, so they are modules by path, not by include!.
    let modules: String = ["agent", "agent_ttrpc"]
        .map(|name| format!("#[path = {:?}]\npub mod {name};\n", out.join(format!("{name}.rs"))))
        .concat();
    std::fs::write(out.join("modules.rs"), modules)?;
    Ok(())
}
