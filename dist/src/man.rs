//! Man pages: options from the command line, the rest from the page below docs/tools.

use std::fmt::Write;

use clap::{Arg, ArgAction, Command};

use crate::markdown::{Block, blocks};
use crate::roff::{body, escape, filled};

const EXIT_STATUS: &str = "| status | meaning |\n|---|---|\n| 0 | it ended as asked, by a signal, or because nobody reads its output any more |\n\
    | 1 | it failed |\n| 2 | the command line is wrong |\n| 3 | this kernel, or the caller's privileges, cannot do it |\n";

const ENVIRONMENT: &str = "| variable | meaning |\n|---|---|\n| NO_COLOR | where it is set to anything, a terminal is shown no colours |\n\
    | TERM | `dumb`, or none at all: the same |\n";

/// The man page of a command. `prose` is its page; `date` stands at the foot.
pub fn page(command: &Command, prose: &str, date: &str) -> String {
    let mut command = command.clone();
    command.build();
    let (name, version) = (command.get_name().to_owned(), command.get_version().unwrap_or_default().to_owned());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let parsed = blocks(prose);
    let lead = parsed.iter().skip(1).take_while(|block| !matches!(block, Block::Heading(..))).count();
    let (lead, rest) = parsed.get(1..).unwrap_or_default().split_at(lead);

    // The first line has man(1) run tbl(1) first.
    let mut out = String::from("'\\\" t\n");
    let _ = writeln!(
        out,
        ".TH {} 8 \"{date}\" \"corescope {version}\" \"System Administration\"",
        escape(&name.to_uppercase(), true)
    );
    // No hyphenation and no stretched lines: names of options and fields stay whole.
    out.push_str(".nh\n.ad l\n");
    let _ = writeln!(out, ".SH NAME\n{} \\- {}", escape(&name, true), escape(&lower_first(&about), false));
    let _ = writeln!(out, ".SH SYNOPSIS\n{}", synopsis(&mut command));
    out.push_str(".SH DESCRIPTION\n");
    out.push_str(&body(lead));
    if let Some(long) = command.get_long_about().map(ToString::to_string) {
        for paragraph in long.split("\n\n").skip(1) {
            let _ = write!(out, ".PP\n{}", filled(&quoted(paragraph)));
        }
    }
    if command.has_subcommands() {
        out.push_str(".SH COMMANDS\n");
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
            let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
            let page = if crate::own(sub.get_name()) { "" } else { "(8)" };
            let _ = write!(out, ".TP\n\\fB{}\\fR{page}\n{}", escape(sub.get_name(), true), filled(&quoted(&about)));
        }
    }
    out.push_str(".SH OPTIONS\n");
    out.push_str(&options(&command, ".SS", |_| true));
    for sub in command.get_subcommands().filter(|sub| crate::own(sub.get_name())) {
        let _ = writeln!(out, ".SS Of {} {}", escape(&name, false), escape(sub.get_name(), false));
        // The same help and version as of the command itself.
        out.push_str(&options(sub, ".PP\n.I", |arg| !["help", "version"].contains(&arg.get_id().as_str())));
    }
    out.push_str(&body(rest));
    out.push_str(".SH EXIT STATUS\n");
    out.push_str(&body(&blocks(EXIT_STATUS)));
    out.push_str(".SH PRIVILEGES\n");
    out.push_str(&filled(&privileges(&command)));
    out.push_str(".SH ENVIRONMENT\n");
    out.push_str(&body(&blocks(ENVIRONMENT)));
    out.push_str(".SH SEE ALSO\n");
    out.push_str(&filled(&see_also(&name, prose)));
    out
}

/// What the caller must be allowed.
fn privileges(command: &Command) -> String {
    let has = |id: &str| command.get_arguments().any(|arg| arg.get_id() == id);
    let mut text = match (command.has_subcommands(), has("verbose")) {
        (true, _) => "Those of the tool that is run.".to_owned(),
        (_, false) => "None.".to_owned(),
        _ => "Root, or the capabilities `CAP_BPF` and `CAP_PERFMON` (`CAP_SYS_RESOURCE` too before 5.11). Once it has attached \
             its programs, it gives up what it no longer needs."
            .to_owned(),
    };
    if has("perf_max_stack_depth") {
        text += " The functions of other users' processes have names only with `CAP_SYS_PTRACE`, those of the kernel with \
                 `CAP_SYSLOG`, unless `kernel.kptr_restrict` lets everybody see their addresses.";
    }
    if has("hertz") || has("frequency") {
        text += " Where `kernel.perf_event_paranoid` is above 2, as Debian's kernels have it, perf events take `CAP_SYS_ADMIN`.";
    }
    if has("obj") {
        text += " `-p` needs `CAP_SYS_PTRACE` for a process of another user.";
    }
    text
}

/// Help texts are no Markdown: what would be marks there is text.
fn quoted(text: &str) -> String {
    // Code keeps all but backticks as they are; only words that look like options are made code.
    text.split(' ')
        .map(|word| {
            let bare = word.trim_matches(['(', ')', ',', '.', ';', ':']);
            let is_option = bare.len() > 1 && bare.starts_with('-') && !bare.contains('`');
            if is_option { word.replacen(bare, &format!("`{bare}`"), 1) } else { word.to_owned() }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// As a phrase: without the capital that a sentence begins with, unless the word is one of capitals.
fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match (chars.next(), chars.clone().next()) {
        (Some(first), Some(second)) if !second.is_uppercase() => format!("{}{}", first.to_lowercase(), chars.as_str()),
        _ => text.to_owned(),
    }
}

fn synopsis(command: &mut Command) -> String {
    let usage = command.render_usage().to_string();
    let usage = usage.trim().trim_start_matches("Usage: ");
    let (name, rest) = usage.split_once(' ').unwrap_or((usage, ""));
    format!("\\fB{}\\fR {}", escape(name, true), escape(rest, true))
}

/// The options that a user is told of.
pub fn visible(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| !arg.is_hide_set())
}

/// The options that `wanted` takes, under the headings that `--help` has, each made by a request of roff's.
fn options(command: &Command, request: &str, wanted: fn(&Arg) -> bool) -> String {
    let args: Vec<&Arg> = visible(command).filter(|arg| wanted(arg)).collect();
    let mut headings: Vec<Option<&str>> = args.iter().map(|arg| arg.get_help_heading()).collect();
    // Those without a heading first, each heading once.
    headings.sort_by_key(Option::is_some);
    let mut seen = Vec::new();
    headings.retain(|heading| {
        !seen.contains(heading) && {
            seen.push(*heading);
            true
        }
    });
    let mut out = String::new();
    for heading in headings {
        if let Some(heading) = heading {
            let _ = writeln!(out, "{request} {}", escape(heading, false));
        }
        for arg in args.iter().filter(|arg| arg.get_help_heading() == heading) {
            let _ = write!(out, ".TP\n{}\n{}", syntax(arg), filled(&explanation(arg)));
        }
    }
    out
}

/// What the values of an option are called.
pub fn value_names(arg: &Arg) -> Vec<String> {
    match arg.get_value_names() {
        Some(names) => names.iter().map(|name| name.to_uppercase()).collect(),
        None => vec![arg.get_id().as_str().to_uppercase()],
    }
}

/// How an option is written: `-d, --duration DURATION`.
fn syntax(arg: &Arg) -> String {
    let mut forms: Vec<String> = Vec::new();
    forms.extend(arg.get_short_and_visible_aliases().unwrap_or_default().iter().map(|short| format!("-{short}")));
    forms.extend(arg.get_long_and_visible_aliases().unwrap_or_default().iter().map(|long| format!("--{long}")));
    let forms: Vec<String> = forms.iter().map(|form| format!("\\fB{}\\fR", escape(form, true))).collect();
    let mut out = forms.join(", ");
    let range = arg.get_num_args().unwrap_or_default();
    if arg.get_action().takes_values() && range.max_values() > 0 {
        let names = value_names(arg);
        let mut value =
            names.iter().map(|name| format!("\\fI{}\\fR", escape(name, true))).collect::<Vec<_>>().join(" ");
        if range.max_values() > names.len().max(range.min_values())
            || (arg.is_positional() && matches!(arg.get_action(), ArgAction::Append))
        {
            value.push_str("...");
        }
        let optional = range.min_values() == 0 || (arg.is_positional() && !arg.is_required_set());
        let value = if optional { format!("[{value}]") } else { value };
        let between = match (forms.is_empty(), arg.is_require_equals_set()) {
            (true, _) => "",
            (false, true) => "=",
            (false, false) => " ",
        };
        out = format!("{out}{between}{value}");
    }
    out
}

/// What an option does, what it may be, and what it is by itself.
fn explanation(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut text = quoted(&help.replace('\n', " "));
    if !text.ends_with('.') {
        text.push('.');
    }
    let values: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set() && arg.get_action().takes_values() && !arg.is_hide_possible_values_set())
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if !values.is_empty() {
        let _ = write!(text, " One of {}.", values.join(", "));
    }
    let defaults: Vec<String> =
        arg.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
    if !defaults.is_empty() && arg.get_action().takes_values() && !arg.is_hide_default_value_set() {
        let _ = write!(text, " Default: {}.", defaults.join(" "));
    }
    text
}

/// The pages that this one mentions, and the suite's own.
fn see_also(name: &str, prose: &str) -> String {
    let mut names: Vec<&str> =
        tools::TOOLS.iter().map(|tool| tool.name).filter(|tool| prose.contains(&format!("]({tool}.md)"))).collect();
    names.push("corescope");
    names.retain(|other| *other != name);
    names.dedup();
    let mut pages: Vec<String> = names.iter().map(|name| format!("[{name}]({name}.md)")).collect();
    pages.push("`/usr/share/doc/corescope`".into());
    pages.join(", ")
}
