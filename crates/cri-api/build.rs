//! Compiles `/proto` with protox, in process: no protoc is needed.

use std::path::PathBuf;
use std::{env, error::Error, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let proto = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", proto.display());

    let files = protox::Compiler::new([&proto])?
        .include_source_info(true)
        .include_imports(true)
        .open_files([
            "runtime/v1/runtime_service.proto",
            "runtime/v1/image_service.proto",
            "holdfast/v1/admin.proto",
        ])?
        .file_descriptor_set();

    // Reflection needs the names and numbers; the comments would only sit in memory.
    let mut bare = files.clone();
    for file in &mut bare.file {
        file.source_code_info = None;
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(
        out.join("descriptors.bin"),
        protox::prost::Message::encode_to_vec(&bare),
    )?;

    tonic_prost_build::configure()
        .btree_map(".")
        // Its Debug would print passwords: see lib.rs.
        .skip_debug([".runtime.v1.AuthConfig"])
        .compile_fds(files)?;
    Ok(())
}
