//! Command lines of any kind for a program of the suite: its own options, with values of all sorts, and nonsense.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use common::app::Entry;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// What a person, a script or a mistake puts behind an option.
const VALUES: &[&[u8]] = &[
    b"0",
    b"1",
    b"2",
    b"64",
    b"-1",
    b"-0",
    b"0.1",
    b"1e-300",
    b"1e99",
    b"nan",
    b"inf",
    b"4294967295",
    b"4294967296",
    b"18446744073709551615",
    b"99999999999999999999",
    b"0x10",
    b"1,2,3",
    b"50,99.9",
    b",",
    b"soon",
    b"",
    b" ",
    b"-",
    b"--",
    b"---",
    b"=",
    b"a b",
    b"it's",
    b"\"",
    b"a\nb",
    b"\xff",
    b"\xc3\xa9",
    b"/",
    b"/nonexistent/x",
    b"/dev/null",
    b"json",
    b"root",
    b"@",
    b"%s",
    b"O_CREAT",
    b"true",
];

/// Arguments for this program, without its name.
pub fn arguments(program: &Entry) -> impl Strategy<Value = Vec<OsString>> + use<> {
    let command = (program.command)();
    let (mut options, mut values) = (Vec::new(), VALUES.iter().map(|value| value.to_vec()).collect::<Vec<_>>());
    for argument in command.get_arguments() {
        let long = argument.get_long_and_visible_aliases().unwrap_or_default();
        options.extend(long.iter().map(|name| format!("--{name}").into_bytes()));
        options.extend(argument.get_short().map(|name| format!("-{name}").into_bytes()));
        values.extend(argument.get_possible_values().iter().map(|value| value.get_name().as_bytes().to_vec()));
    }
    options.extend([&b"--help"[..], b"-h", b"--version", b"-V", b"--no-such-option", b"-9"].map(<[u8]>::to_vec));
    let (option, value) = (move || select(options.clone()), move || select(values.clone()));
    let words = prop_oneof![
        2 => option().prop_map(|option| vec![option]),
        4 => (option(), value()).prop_map(|(option, value)| vec![option, value]),
        1 => (option(), value()).prop_map(|(option, value)| vec![[&option[..], b"=", &value].concat()]),
        1 => (option(), value()).prop_map(|(option, value)| vec![[option, value].concat()]),
        1 => value().prop_map(|value| vec![value]),
        1 => vec(any::<u8>().prop_filter("ends an argument", |byte| *byte != 0), 0..9).prop_map(|value| vec![value]),
    ];
    vec(words, 0..6).prop_map(|words| words.into_iter().flatten().map(OsString::from_vec).collect())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use common::app::{Unrun, parse};
    use proptest::test_runner::TestRunner;

    use super::*;

    #[test]
    fn any_command_line_is_taken_or_refused_in_one_line() {
        for program in tools::programs().chain(tools::corescope::OWN) {
            let mut runner = TestRunner::new(ProptestConfig::with_cases(300));
            let (taken, refused) = (Cell::new(0), Cell::new(0));
            let outcome = runner.run(&arguments(program), |args| {
                let args = [program.name.into()].into_iter().chain(args);
                match parse(program, args) {
                    Ok(_) => taken.set(taken.get() + 1),
                    Err(Unrun::Help(text)) => prop_assert!(text.contains(program.name), "{text}"),
                    Err(Unrun::Wrong(line)) => {
                        refused.set(refused.get() + 1);
                        prop_assert!(line.starts_with(&format!("{}: ", program.name)), "{line}");
                        prop_assert!(!line.contains(char::is_control) && line.ends_with(" --help)"), "{line:?}");
                        prop_assert!(line.len() > program.name.len() * 2 + 20, "it says nothing: {line}");
                    }
                }
                Ok(())
            });
            outcome.unwrap();
            // Or the generator makes nothing that matters. What a program insists on is seldom made.
            let insists = (program.command)().get_arguments().any(|arg| arg.is_required_set());
            let seen = (taken.get(), refused.get());
            assert!((insists || seen.0 > 0) && seen.1 > 0, "{}: {seen:?} taken and refused", program.name);
        }
    }
}
