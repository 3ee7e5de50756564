//! `corescope install`: links by which the one file is found under the name of every tool.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Parser;
use common::cli::Output;
use common::out::Out;
use common::text::Text;

use crate::programs;

/// Link the name of every tool to this program
///
/// The links are relative. Where a name is taken by anything else than a link to this program, that is said and
/// nothing is made.
#[derive(Parser)]
#[command(name = "install", version)]
pub struct Args {
    /// Where to make the links; the directory must exist
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    dir: PathBuf,
    /// Remove the links to this program that are there
    #[arg(long)]
    remove: bool,
}

/// What stands at a path.
enum Place {
    Free,
    /// A link to this program.
    Ours,
    /// Anything else.
    Taken,
}

fn shown(path: &Path) -> Text<'_> {
    Text::new(path.as_os_str().as_bytes())
}

/// What stands at `path`, for the program `exe`.
fn place(path: &Path, exe: &Path) -> Result<Place> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Place::Free),
        Err(error) => Err(error).with_context(|| format!("cannot look at {}", shown(path))),
        Ok(meta) if meta.is_symlink() && fs::canonicalize(path).is_ok_and(|target| target == exe) => Ok(Place::Ours),
        Ok(_) => Ok(Place::Taken),
    }
}

/// The path that leads from the directory `from` to `to`, both absolute and without links.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let shared = from.components().zip(to.components()).take_while(|(left, right)| left == right).count();
    let up = from.components().skip(shared).map(|_| Component::ParentDir);
    up.chain(to.components().skip(shared)).collect()
}

/// Make the links in `dir`, or remove them; the lines that say what was done.
fn install(exe: &Path, dir: &Path, remove: bool) -> Result<Vec<String>> {
    let exe = fs::canonicalize(exe).context("cannot find this program")?;
    let dir = fs::canonicalize(dir).with_context(|| format!("cannot use {}", shown(dir)))?;
    let target = relative(&dir, &exe);
    let places: Vec<(PathBuf, Place)> = programs()
        .map(|program| dir.join(program.name))
        .map(|path| place(&path, &exe).map(|place| (path, place)))
        .collect::<Result<_>>()?;
    let taken: Vec<String> = places
        .iter()
        .filter(|(_, place)| matches!(place, Place::Taken))
        .map(|(path, _)| shown(path).to_string())
        .collect();
    if !remove && !taken.is_empty() {
        bail!("not a link to this program, nothing is made: {}", taken.join(", "));
    }
    let mut said = Vec::new();
    for (path, place) in &places {
        let name = shown(path);
        match (place, remove) {
            (Place::Free, false) => {
                symlink(&target, path).with_context(|| format!("cannot make {name}"))?;
                said.push(format!("{name} -> {}", shown(&target)));
            }
            (Place::Ours, false) => said.push(format!("{name} is there already")),
            (Place::Ours, true) => {
                fs::remove_file(path).with_context(|| format!("cannot remove {name}"))?;
                said.push(format!("{name} removed"));
            }
            (Place::Taken, true) => said.push(format!("{name} left: not a link to this program")),
            (Place::Free, true) | (Place::Taken, false) => {}
        }
    }
    Ok(said)
}

/// Run it.
///
/// # Errors
/// Where the directory is not there or not ours to write, or a name is taken.
pub fn run(args: Args) -> Result<()> {
    let exe = std::env::current_exe().context("cannot find this program")?;
    let mut out = Out::new(Output::default());
    for line in install(&exe, &args.dir, args.remove)? {
        out.text(format!("{line}\n"));
    }
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn all() -> Vec<&'static str> {
        let mut all: Vec<&str> = programs().map(|program| program.name).collect();
        all.sort();
        all
    }

    /// A program, and a directory reached by a link, as /sbin is one.
    fn scene() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let top = tempfile::tempdir().unwrap();
        let (exe, dir) = (top.path().join("opt/corescope"), top.path().join("sbin"));
        fs::create_dir_all(top.path().join("opt")).unwrap();
        fs::create_dir_all(top.path().join("usr/sbin")).unwrap();
        symlink("usr/sbin", &dir).unwrap();
        fs::write(&exe, "").unwrap();
        (top, exe, dir)
    }

    #[test]
    fn links_are_relative_and_lead_to_the_program() {
        let (_top, exe, dir) = scene();
        install(&exe, &dir, false).unwrap();
        assert_eq!(names(&dir), all());
        for name in names(&dir) {
            assert_eq!(fs::read_link(dir.join(&name)).unwrap(), Path::new("../../opt/corescope"));
            assert_eq!(fs::canonicalize(dir.join(&name)).unwrap(), fs::canonicalize(&exe).unwrap());
        }
    }

    #[test]
    fn a_second_time_changes_nothing_and_remove_undoes_it() {
        let (_top, exe, dir) = scene();
        fs::write(dir.join("bystander"), "").unwrap();
        install(&exe, &dir, false).unwrap();
        assert!(install(&exe, &dir, false).unwrap().iter().all(|line| line.ends_with("is there already")));
        let removed = install(&exe, &dir, true).unwrap();
        assert_eq!(removed.len(), all().len());
        assert_eq!(names(&dir), ["bystander"]);
        assert!(install(&exe, &dir, true).unwrap().is_empty());
    }

    #[test]
    fn what_is_not_ours_is_neither_replaced_nor_removed() {
        for taken_by_link in [false, true] {
            let (top, exe, dir) = scene();
            let taken = dir.join("opensnoop");
            if taken_by_link {
                let other = top.path().join("opt/other");
                fs::write(&other, "").unwrap();
                symlink(&other, &taken).unwrap();
            } else {
                fs::write(&taken, "theirs").unwrap();
            }
            let error = install(&exe, &dir, false).unwrap_err().to_string();
            assert!(error.contains("opensnoop") && !error.contains("biolatency"), "{error}");
            assert_eq!(names(&dir), ["opensnoop"]);
            let said = install(&exe, &dir, true).unwrap();
            assert_eq!(said.len(), 1);
            assert_eq!(names(&dir), ["opensnoop"]);
        }
    }

    #[test]
    fn a_link_to_nothing_is_not_ours() {
        let (_top, exe, dir) = scene();
        symlink("/nowhere/corescope", dir.join("biotop")).unwrap();
        assert!(install(&exe, &dir, false).is_err());
        assert!(install(&exe, &dir.join("missing"), false).is_err());
    }

    #[test]
    fn beside_the_program_its_name_is_enough() {
        assert_eq!(relative(Path::new("/a/b"), Path::new("/a/b/corescope")), Path::new("corescope"));
        assert_eq!(relative(Path::new("/a/b"), Path::new("/c/corescope")), Path::new("../../c/corescope"));
    }
}
