//! Compile the C workloads: one program for each file of `workloads/`.

use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let source_dir = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("workloads");
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo:rerun-if-changed={}", source_dir.display());
    println!("cargo:rustc-env=WORKLOADS={}", out_dir.display());
    for entry in fs::read_dir(&source_dir)? {
        let source = entry?.path();
        let Some(name) = source.file_name().and_then(|name| name.to_str()?.strip_suffix(".c")) else {
            continue;
        };
        let compiler = cc::Build::new().opt_level(1).debug(false).get_compiler();
        let mut command = compiler.to_command();
        // Frame pointers and no merged or inlined calls: the stacks of these programs are the truth of some tests.
        command.args(["-Wall", "-Werror", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls", "-fno-inline"]);
        let status = command.arg("-o").arg(out_dir.join(name)).arg(&source).args(["-pthread", "-rdynamic"]).status()?;
        if !status.success() {
            return Err(format!("{} does not compile", source.display()).into());
        }
    }
    Ok(())
}
