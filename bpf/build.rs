//! Compile every `*.bpf.c` of this crate and generate its skeleton, in parallel.
//!
//! Incremental: an object is compiled again only when a file that clang's depfile names is newer than its skeleton.
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;
use std::{env, fs, process};

use anyhow::Context;
use flate2::Compression;
use flate2::write::DeflateEncoder;
use libbpf_cargo::SkeletonBuilder;

struct Build {
    out: PathBuf,
    include: Vec<PathBuf>,
    clang: String,
    /// When this build script was built: skeletons that another one made are stale.
    script: SystemTime,
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

/// The prerequisites that `-MD -MF` recorded. libbpf's own headers lie in a temporary folder; Cargo.lock pins them.
fn prerequisites(depfile: &Path) -> Option<Vec<PathBuf>> {
    let text = fs::read_to_string(depfile).ok()?.replace("\\\n", " ");
    let paths = text.split_once(": ")?.1.split_whitespace().map(PathBuf::from);
    Some(paths.filter(|path| path.starts_with(crate_dir()) || !path.starts_with(env::temp_dir())).collect())
}

fn crate_dir() -> PathBuf {
    PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default())
}

impl Build {
    fn fresh(&self, skeleton: &Path, depfile: &Path) -> bool {
        let Some(built) = modified(skeleton) else {
            return false;
        };
        built >= self.script
            && prerequisites(depfile)
                .is_some_and(|paths| paths.iter().all(|path| modified(path).is_some_and(|at| at <= built)))
    }

    fn compile(&self, source: &Path, tool: &str) -> anyhow::Result<()> {
        let file = |extension| self.out.join(format!("{tool}.{extension}"));
        let (object, depfile, skeleton) = (file("bpf.o"), file("d"), file("skel.rs"));
        if self.fresh(&skeleton, &depfile) {
            return Ok(());
        }
        let mut args: Vec<String> = self.include.iter().map(|dir| format!("-I{}", dir.display())).collect();
        // The kernel embeds tagged structs without a name since 7.0, and so does its vmlinux.h. A hook is called with
        // all its arguments, wanted or not.
        args.extend(["-mcpu=v3", "-Wall", "-Wextra", "-Werror", "-fms-extensions"].map(String::from));
        args.extend(["-Wno-microsoft-anon-tag", "-Wno-unused-parameter", "-MD", "-MF"].map(String::from));
        args.push(depfile.display().to_string());
        // The line information of an object names its sources the same way wherever the repository lies.
        args.push(format!("-ffile-prefix-map={}=/corescope/bpf", crate_dir().display()));
        SkeletonBuilder::new()
            .source(source)
            .obj(&object)
            .clang(&self.clang)
            .clang_args(&args)
            .reference_obj(true)
            // There is no such program, so nothing is formatted: 40 ms saved for each file that nobody reads.
            .rustfmt("/nonexistent")
            .build_and_generate(&skeleton)?;
        let mut text = fs::read_to_string(&skeleton)?;
        // A binary carries its objects packed: they are a fourth of their size, and unpacked in a fraction of a ms.
        let bytes = fs::read(&object)?;
        let mut packer = DeflateEncoder::new(Vec::new(), Compression::best());
        packer.write_all(&bytes)?;
        let packed = file("bpf.o.deflate");
        fs::write(&packed, packer.finish()?)?;
        let start = text.find("#[unsafe(link_section").context("no object in the skeleton")?;
        let end = start + text[start..].find(");").context("no end of the object in the skeleton")? + 2;
        text.replace_range(
            start..end,
            &format!(
                "static DATA: std::sync::LazyLock<Vec<u8>> = \
                 std::sync::LazyLock::new(|| crate::unpack(include_bytes!({packed:?}), {}));",
                bytes.len()
            ),
        );
        let exported: Vec<String> = text
            .match_indices("pub __export_")
            .filter_map(|(at, prefix)| Some(text[at + prefix.len()..].split_once(':')?.0.to_owned()))
            .collect();
        for name in exported {
            text.push_str(&format!(
                "// SAFETY: a BPF struct without bool, enum or reference members: every bit pattern is valid.\n\
                 unsafe impl plain::Plain for types::{name} {{}}\n"
            ));
        }
        fs::write(&skeleton, text)?;
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    let dir = crate_dir();
    let vmlinux = dir.join("../vmlinux").join(env::var("CARGO_CFG_TARGET_ARCH")?);
    println!("cargo:rerun-if-env-changed=CLANG");
    println!("cargo:rerun-if-changed={}", vmlinux.display());
    println!("cargo:rerun-if-changed={}", dir.join("include").display());
    println!("cargo:rerun-if-changed={}", dir.display());
    let mut sources = Vec::new();
    for entry in fs::read_dir(&dir)? {
        let path = entry?.path();
        let tool = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".bpf.c")).map(str::to_owned);
        if let Some(tool) = tool {
            sources.push((path, tool));
        }
    }
    sources.sort();

    let build = Build {
        out: env::var("OUT_DIR")?.into(),
        include: vec![dir.join("include"), vmlinux],
        clang: env::var("CLANG").unwrap_or_else(|_| "clang".into()),
        script: modified(&env::current_exe()?).unwrap_or(SystemTime::UNIX_EPOCH),
    };
    let (next, errors) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some((source, tool)) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = build.compile(source, tool) {
                        errors.lock().unwrap().push(format!("{}: {error:#}", source.display()));
                    }
                }
            });
        }
    });
    let errors = errors.into_inner()?;
    if !errors.is_empty() {
        eprintln!("{}", errors.join("\n"));
        process::exit(1);
    }
    let modules: String = sources
        .iter()
        .map(|(_, tool)| {
            format!("/// Skeleton of `{tool}.bpf.c`.\npub mod {tool} {{ include!(concat!(env!(\"OUT_DIR\"), \"/{tool}.skel.rs\")); }}\n")
        })
        .collect();
    fs::write(build.out.join("modules.rs"), modules)?;
    Ok(())
}
