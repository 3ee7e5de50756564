//! The tools of corescope, one module each, and the registry that lists them.

// It panics where nobody reads.
#![warn(clippy::print_stdout)]

/// Declare the modules of the tools and the one list of them; behind a tool, in parentheses, what it cannot be called
/// without, and in brackets arguments that make it use other hooks or parts of the kernel.
macro_rules! registry {
    ($($tool:ident $(($least:literal))? $([$($args:literal),+])?),+ $(,)?) => {
        $(pub mod $tool;)+

        /// Every tool of the suite, by name.
        pub const TOOLS: &[common::app::Entry] = &[$(entry!($tool)),+];

        /// For each tool, the least arguments that it takes, and those that make it use other hooks or parts of the kernel.
        /// CGROUP and PID stand for one that exists.
        pub const VARIANTS: &[(&str, &[&str])] = &[$((stringify!($tool), &[concat!("" $(, $least)?), $($($args),+)?])),+];
    };
}

/// The registry entry of one tool, without a reference to the others, so that a binary links only what it runs; with
/// the records it writes, where those are not declared by its module.
#[macro_export]
macro_rules! entry {
    ($tool:ident) => {
        $crate::entry!($tool, $crate::$tool::records)
    };
    // The same tool under another name, where an option has another default.
    ($name:ident = $tool:ident $option:ident $preset:literal) => {
        common::app::Entry {
            name: stringify!($name),
            command: || {
                let command = ($crate::entry!($tool).command)().name(stringify!($name));
                command.mut_arg(stringify!($option), |option| option.default_value($preset))
            },
            ..$crate::entry!($tool)
        }
    };
    ($tool:ident, $records:expr) => {
        common::app::Entry {
            name: stringify!($tool),
            is: stringify!($tool),
            command: || common::target::letters(<$crate::$tool::Args as clap::CommandFactory>::command()),
            records: $records,
            run: |matches| {
                $crate::$tool::run(<$crate::$tool::Args as clap::FromArgMatches>::from_arg_matches(matches)?)
            },
        }
    };
}

/// The `main` of one tool's binary.
#[macro_export]
macro_rules! main {
    ($name:ident = $tool:ident $option:ident $preset:literal) => {
        fn main() -> std::process::ExitCode {
            common::app::main(&$crate::entry!($name = $tool $option $preset), std::env::args_os())
        }
    };
    ($tool:ident $(, $records:expr)?) => {
        fn main() -> std::process::ExitCode {
            common::app::main(&$crate::entry!($tool $(, $records)?), std::env::args_os())
        }
    };
}

#[cfg(test)]
mod events;
/// What the tests of `common` damage inputs with, and what rows of any event must look like.
#[cfg(test)]
#[path = "../../common/src/fuzz.rs"]
mod fuzz;

pub mod corescope;
pub mod doctor;
pub mod flamediff;
pub mod install;

registry! {
    biolatency ["-c CGROUP", "--by unit"],
    biosnoop,
    biotop,
    cachestat,
    cpudist ["-O"],
    execsnoop ["-x"],
    exitsnoop,
    filetop,
    fsdist ["-t ext4", "--by comm"],
    fsslower ["-t ext4"],
    funclatency("c:gethostid") ["-p PID c:gethost*"],
    gethostlatency ["-p PID"],
    hardirqs ["-d"],
    memleak ["-p PID", "--percpu"],
    offcputime ["--early-stacks"],
    offwaketime,
    oomkill,
    opensnoop ["-F", "-c", "-p PID --follow --comm x --uid 0 --cgroup CGROUP --show cgroup"],
    profile,
    runqlat ["--pidnss", "-p PID --follow --comm x --uid 0 --cgroup CGROUP --show cgroup -P", "--by comm"],
    runqslower,
    softirqs ["-d"],
    syscount ["-P", "-L", "-x"],
    tcpaccept,
    tcpconnect ["-x", "-c", "-d"],
    tcpconnlat,
    tcpdrop ["-a"],
    tcplife,
    tcpretrans ["-c"],
    tcptop,
}

/// Programs of the suite that trace nothing.
pub const COMPANIONS: &[common::app::Entry] = &[entry!(flamediff, Vec::new)];

/// Names of BCC's for tools of the suite with an option preset.
pub const PRESETS: &[common::app::Entry] = &[
    entry!(btrfsdist = fsdist fs_type "btrfs"),
    entry!(btrfsslower = fsslower fs_type "btrfs"),
    entry!(ext4dist = fsdist fs_type "ext4"),
    entry!(ext4slower = fsslower fs_type "ext4"),
    entry!(f2fsdist = fsdist fs_type "f2fs"),
    entry!(f2fsslower = fsslower fs_type "f2fs"),
    entry!(fusedist = fsdist fs_type "fuse"),
    entry!(fuseslower = fsslower fs_type "fuse"),
    entry!(nfsdist = fsdist fs_type "nfs"),
    entry!(nfsslower = fsslower fs_type "nfs"),
    entry!(xfsdist = fsdist fs_type "xfs"),
    entry!(xfsslower = fsslower fs_type "xfs"),
];
/// The least arguments that a tool takes.
pub fn least(tool: &str) -> &'static str {
    VARIANTS.iter().find(|(name, _)| *name == tool).map_or("", |(_, variants)| variants[0])
}

/// All that is called by a name of its own.
pub fn programs() -> impl Iterator<Item = &'static common::app::Entry> {
    TOOLS.iter().chain(COMPANIONS).chain(PRESETS)
}

#[cfg(test)]
mod tests {
    use super::corescope::OWN;
    use super::{TOOLS, programs};

    #[test]
    fn every_command_line_is_sound() {
        for tool in programs().chain(OWN) {
            (tool.command)().debug_assert();
            assert_eq!((tool.command)().get_name(), tool.name);
        }
    }

    /// Run with CORESCOPE_WRITE_DOCS=1, it writes the page instead.
    #[test]
    fn the_page_on_json_is_current() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/json.md");
        let page = common::schema::page(TOOLS);
        if std::env::var_os("CORESCOPE_WRITE_DOCS").is_some() {
            std::fs::write(path, page).unwrap();
        } else {
            let written = std::fs::read_to_string(path).unwrap_or_default();
            assert!(written == page, "docs/json.md is stale: CORESCOPE_WRITE_DOCS=1 cargo test -p tools json");
        }
    }

    /// Its four places: kernel half, page, live test, binary.
    #[test]
    fn every_tool_has_its_places() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for tool in TOOLS {
            for place in ["bpf/NAME.bpf.c", "tools/src/bin/NAME.rs", "tests/live/NAME.rs", "docs/tools/NAME.md"] {
                let place = place.replace("NAME", tool.name);
                assert!(root.join(&place).exists(), "{place} is missing");
            }
        }
    }
}
