//! Completions for three shells.

use clap::{ArgGroup, Command};
use clap_complete::{Shell, generate};

/// The name of the file that completes a command.
pub type Named = fn(&str) -> String;

/// The shells, and the name that each wants the file of a command to have.
pub const SHELLS: &[(Shell, Named)] = &[
    (Shell::Bash, |name| name.to_owned()),
    (Shell::Zsh, |name| format!("_{name}")),
    (Shell::Fish, |name| format!("{name}.fish")),
];

/// The command without what its user is not told of: some generators offer hidden options.
fn shown(command: &Command) -> Command {
    // clap keeps names for good; this program ends when it has written its files.
    let name: &'static str = command.get_name().to_owned().leak();
    let mut shown = Command::new(name).version(env!("CARGO_PKG_VERSION")).disable_help_subcommand(true);
    if let Some(about) = command.get_about() {
        shown = shown.about(about.clone());
    }
    let known: Vec<_> = crate::man::visible(command).map(|arg| arg.get_id().clone()).collect();
    let groups = command.get_groups().map(|group| {
        ArgGroup::new(group.get_id().clone())
            .multiple(true)
            .args(group.get_args().filter(|id| known.contains(id)).cloned())
    });
    shown
        .groups(groups.collect::<Vec<_>>())
        .args(crate::man::visible(command).cloned())
        .subcommands(command.get_subcommands().filter(|sub| !sub.is_hide_set()).map(self::shown))
}

/// What completes `command` in `shell`.
pub fn script(command: &Command, shell: Shell) -> String {
    let mut script = Vec::new();
    generate(shell, &mut shown(command), command.get_name(), &mut script);
    String::from_utf8(script).expect("completions are text")
}
