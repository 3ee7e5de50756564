//! What happened but is not in the report: the counters of `core.bpf.h` and the kernel's own.

use std::os::fd::AsFd;

use libbpf_rs::{MapCore, MapFlags, Object, ProgramMut};
use serde::Serialize;

use crate::kernel;
use crate::schema::{Field, Kind};

/// Counts of what was lost, by reason. Serialises to the `lost` object of the JSON output.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Lost {
    /// Events for which the buffer had no room.
    pub events: u64,
    /// Operations for whose state there was no memory, or no room in a map.
    pub states: u64,
    /// Values whose key did not fit an aggregation map.
    pub keys: u64,
    /// Stacks that could not be walked or stored, and times that the frames of one did not fit the buffer.
    pub stacks: u64,
    /// Strings that did not fit or could not be read in full.
    pub strings: u64,
    /// Events for which no scratch buffer was free.
    pub scratch: u64,
    /// Intervals whose end was stamped before their beginning.
    pub clock: u64,
    /// Events that must have been, of which the kernel told nobody: two beginnings of the same thing without an end.
    pub unseen: u64,
    /// Runs of a program that the kernel skipped because it was already running on that CPU.
    pub missed_runs: u64,
}

impl Lost {
    /// The words for operations without a state.
    pub const STATES: &str = "operations in flight (no memory or no room for their state)";

    /// Its fields in JSON.
    pub const FIELDS: &[Field] = &[
        Field::new("events", Kind::Count, "events for which the buffer had no room"),
        Field::new("states", Kind::Count, "operations for whose state there was no memory, or no room in a map"),
        Field::new("keys", Kind::Count, "values whose key did not fit an aggregation map"),
        Field::new(
            "stacks",
            Kind::Count,
            "stacks that could not be walked or stored, and times that the frames of one did not fit the buffer",
        ),
        Field::new("strings", Kind::Count, "strings that did not fit or could not be read in full"),
        Field::new("scratch", Kind::Count, "events for which no scratch buffer was free"),
        Field::new("clock", Kind::Count, "intervals whose end was stamped before their beginning"),
        Field::new("unseen", Kind::Count, "events that must have been, of which the kernel told nobody"),
        Field::new(
            "missed_runs",
            Kind::Count,
            "runs of a program that the kernel skipped because it was already running on that CPU",
        ),
    ];

    /// Read the counters of a loaded object. A counter that cannot be read counts as zero: it never was written.
    pub fn read(object: &Object) -> Self {
        let counters = object.maps().find(|map| map.name() == "lost");
        let counter = |reason: u32| -> u64 {
            let per_cpu =
                counters.as_ref().and_then(|map| map.lookup_percpu(&reason.to_ne_bytes(), MapFlags::ANY).ok()?);
            let value = |bytes: &Vec<u8>| bytes.first_chunk().map_or(0, |chunk| u64::from_ne_bytes(*chunk));
            per_cpu.iter().flatten().map(value).sum()
        };
        Self {
            events: counter(0),
            states: counter(1),
            keys: counter(2),
            stacks: counter(3),
            strings: counter(4),
            scratch: counter(5),
            clock: counter(6),
            unseen: counter(7),
            missed_runs: object.progs_mut().map(|program| recursion_misses(&program)).sum(),
        }
    }

    /// Whether nothing was lost.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// One phrase for each reason that occurred.
    pub fn phrases(&self) -> Vec<String> {
        let reasons = [
            (self.events, "events (the buffer was full)"),
            (self.states, Self::STATES),
            (self.keys, "values (the table was full)"),
            (self.stacks, "stacks (not readable or not storable)"),
            (self.strings, "strings cut or unreadable"),
            (self.scratch, "events (no scratch buffer was free)"),
            (self.clock, "intervals (the clock went backwards)"),
            (self.unseen, "events that the kernel did not show"),
            (self.missed_runs, "program runs skipped by the kernel"),
        ];
        reasons.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect()
    }
}

/// `bpf_prog_info.recursion_misses` (5.12), or zero where it cannot be read.
fn recursion_misses(program: &ProgramMut<'_>) -> u64 {
    if !program.autoload() {
        return 0;
    }
    kernel::program_info(program.as_fd()).map_or(0, |info| info.recursion_misses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_occurred_is_named() {
        assert!(Lost::default().is_zero());
        let lost = Lost { events: 3, keys: 1, ..Lost::default() };
        assert_eq!(lost.phrases(), ["3 events (the buffer was full)", "1 values (the table was full)"]);
    }
}
