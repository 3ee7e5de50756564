//! What ships beside the binaries, made of the registry: man pages and completions. Not shipped itself.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Command;

pub mod completions;
pub mod man;
pub mod markdown;
pub mod roff;

/// Every command that has a page and completions: the programs, and the file that holds them all.
pub fn commands() -> Vec<Command> {
    tools::programs().map(|program| (program.command)()).chain([tools::corescope::command()]).collect()
}

/// Whether this is a command of `corescope` that is no program of its own, and is described on its page.
pub(crate) fn own(name: &str) -> bool {
    tools::corescope::OWN.iter().any(|entry| entry.name == name)
}

/// The page of a command: that of the tool which it is.
///
/// # Errors
/// Where it cannot be read.
pub fn prose(name: &str) -> Result<String> {
    let name = tools::programs().find(|entry| entry.name == name).map_or(name, |entry| entry.is);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/tools").join(format!("{name}.md"));
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// Write it all below `dir`: `man8/NAME.8` and, for each shell, `bash/NAME`, `zsh/_NAME`, `fish/NAME.fish`.
///
/// # Errors
/// Where a page is missing or something cannot be written.
pub fn write(dir: &Path, date: &str) -> Result<()> {
    let file = |folder: &str, name: String, text: String| -> Result<()> {
        let path: PathBuf = dir.join(folder);
        fs::create_dir_all(&path)?;
        fs::write(path.join(name), text)?;
        Ok(())
    };
    for command in commands() {
        let name = command.get_name();
        file("man8", format!("{name}.8"), man::page(&command, &prose(name)?, date))?;
        for (shell, named) in completions::SHELLS {
            file(&shell.to_string(), named(name), completions::script(&command, *shell))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Command as Process, Stdio};

    use clap::Arg;

    use super::*;
    use crate::markdown::Block;

    const DATE: &str = "2026-11-01";

    fn page(command: &Command) -> String {
        man::page(command, &prose(command.get_name()).unwrap(), DATE)
    }

    /// The option as it is typed, its short form where it has no other; nothing for what has no name.
    fn typed(arg: &Arg) -> Option<String> {
        arg.get_long().map(|long| format!("--{long}")).or(arg.get_short().map(|short| format!("-{short}")))
    }

    /// The options of a command as built, so with --help and --version.
    fn built(command: &Command) -> Command {
        let mut command = command.clone();
        command.build();
        command
    }

    #[test]
    fn the_pages_of_all_tools_have_the_same_headings() {
        for tool in tools::TOOLS {
            let blocks = markdown::blocks(&prose(tool.name).unwrap());
            let headings: Vec<&str> = blocks
                .iter()
                .filter_map(|block| match block {
                    Block::Heading(depth, text) if *depth <= 2 => Some(text.as_str()),
                    _ => None,
                })
                .collect();
            let expected = [tool.name, "Examples", "How to read it", "Accuracy and limits", "Cost", "Kernel"];
            assert_eq!(headings, expected, "docs/tools/{}.md", tool.name);
            let asks = matches!(&blocks[1], Block::Paragraph(text) if text.starts_with("**") && text.contains("?**"));
            assert!(asks, "docs/tools/{}.md begins with no question", tool.name);
            let at = blocks.iter().position(|block| *block == Block::Heading(2, "Examples".into())).unwrap();
            let shown = blocks[at..].iter().find_map(|block| match block {
                Block::Code(lines) => Some(lines),
                _ => None,
            });
            let of_tool = |lines: &Vec<String>| lines[0].contains(&format!("$ sudo {}", tool.name)) && lines.len() > 1;
            assert!(shown.is_some_and(of_tool), "docs/tools/{}.md has no example with output", tool.name);
        }
    }

    #[test]
    fn every_option_is_on_its_page_and_in_the_completions() {
        for command in commands() {
            let text = page(&command);
            let scripts: Vec<String> =
                completions::SHELLS.iter().map(|(shell, _)| completions::script(&command, *shell)).collect();
            let built = built(&command);
            let mut described: Vec<&Command> = vec![&built];
            described.extend(built.get_subcommands().filter(|sub| own(sub.get_name())));
            for described in described {
                for arg in man::visible(described) {
                    let Some(typed) = typed(arg) else {
                        let name = roff::escape(&man::value_names(arg)[0], true);
                        assert!(text.contains(&format!("\\fI{name}\\fR")), "{}: {name}", command.get_name());
                        continue;
                    };
                    let on_page = format!("\\fB{}\\fR", roff::escape(&typed, true));
                    assert!(text.contains(&on_page), "{}: {typed} is not on its page", command.get_name());
                    // fish has names without their dashes.
                    let bare = typed.trim_start_matches('-');
                    for script in &scripts {
                        assert!(script.contains(bare), "{}: {typed} is not completed", command.get_name());
                    }
                    assert!(scripts[0].contains(&typed) && scripts[1].contains(&typed), "{typed}");
                }
            }
        }
    }

    #[test]
    fn what_is_hidden_is_in_none() {
        for command in commands() {
            let all = std::iter::once(page(&command))
                .chain(completions::SHELLS.iter().map(|(shell, _)| completions::script(&command, *shell)));
            for text in all {
                for hidden in ["ready-fd", "ready\\-fd", "--plan", "--hook", "l plan", "l hook"] {
                    assert!(!text.contains(hidden), "{}: {hidden}", command.get_name());
                }
            }
        }
    }

    #[test]
    fn corescope_completes_the_names_of_all_tools() {
        let command = tools::corescope::command();
        for (shell, _) in completions::SHELLS {
            let script = completions::script(&command, *shell);
            for name in tools::programs().chain(tools::corescope::OWN).map(|entry| entry.name) {
                assert!(script.contains(name), "{shell}: {name}");
            }
        }
    }

    /// What another program says of a page, where there is such a program.
    fn told(program: &[&str], file: &Path) -> Option<String> {
        let output = Process::new(program[0]).args(&program[1..]).arg(file).stdin(Stdio::null()).output().ok()?;
        let both = [output.stdout, output.stderr].concat();
        Some(String::from_utf8_lossy(&both).into_owned())
    }

    #[test]
    fn man_and_whatis_understand_every_page() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), DATE).unwrap();
        for command in commands() {
            let name = command.get_name();
            let line = page(&command).lines().skip_while(|line| *line != ".SH NAME").nth(1).unwrap().to_owned();
            assert!(line.starts_with(&format!("{name} \\- ")) && line.len() > name.len() + 10, "{line}");
            let file = dir.path().join("man8").join(format!("{name}.8"));
            // Neither is part of every system.
            if let Some(said) = told(&["lexgrog"], &file) {
                assert!(said.contains(&format!("\"{name} - ")), "{said}");
            }
            if let Some(said) = told(&["mandoc", "-Tlint", "-W", "warning"], &file) {
                assert_eq!(said, "", "mandoc on {name}.8");
            }
            if let Some(said) = told(&["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"], &file) {
                assert!(!said.contains(": warning"), "man on {name}.8: {said}");
            }
        }
    }

    /// The shells themselves, where they are there.
    #[test]
    fn shells_accept_the_completions() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), DATE).unwrap();
        for command in commands() {
            for (shell, named) in completions::SHELLS {
                let file = dir.path().join(shell.to_string()).join(named(command.get_name()));
                if let Some(said) = told(&[&shell.to_string(), "-n"], &file) {
                    assert_eq!(said, "", "{}", file.display());
                }
            }
        }
    }
}
