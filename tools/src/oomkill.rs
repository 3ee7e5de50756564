//! oomkill: whom the kernel kills for want of memory, and for whose sake.

use std::mem::MaybeUninit;

use anyhow::{Context, Result};
use bpf::oomkill::OomkillSkelBuilder;
use bpf::oomkill::types::oomkill_event;
use clap::Parser;
use common::cgroup::Tree;
use common::cli::{Output, Tool};
use common::event::{Clock, EventView, Events};
use common::kernel;
use common::load::{Hook, Loader, hook, way};
use common::out::{Cell, Column};
use common::proc;
use common::schema::{self, Kind, Record};
use common::session::Run;
use common::target::{Target, TargetArgs};
use common::text::Text;

/// Trace the processes that the kernel kills when memory runs out, on the whole machine or in a cgroup
///
/// The options of whose events choose among the victims.
#[derive(Parser)]
#[command(name = "oomkill", version)]
pub struct Args {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

const COLUMNS: &[Column] = &[
    Column::left("time_unix_ns", "TIME", 8, "when the victim was chosen").of(Kind::Count),
    Column::left("trigger_pid", "TPID", 7, "process whose need of memory it was").of(Kind::Count),
    Column::left("trigger_tid", "TTID", 7, "its thread").of(Kind::Count),
    Column::left("trigger_comm", "TCOMM", 16, "its name"),
    Column::left("pid", "PID", 7, "the victim").of(Kind::Count).or_null(),
    Column::left("tid", "TID", 7, "its thread that was chosen").of(Kind::Count),
    Column::left("comm", "COMM", 16, "its name").or_null(),
    Column::left("uid", "UID", 7, "its user").of(Kind::Count).or_null(),
    Column::right("score_adj", "ADJ", 5, "its oom_score_adj").of(Kind::Int).or_null(),
    Column::left("how", "HOW", 7, "killed, or exiting where it was about to end anyway"),
    Column::left("scope", "SCOPE", 6, "what had no memory left: global for the machine, or a cgroup"),
    Column::right("anon_kib", "ANON_KB", 9, "KiB of memory of its own").or_null(),
    Column::right("file_kib", "FILE_KB", 8, "KiB of files that it had mapped").or_null(),
    Column::right("shmem_kib", "SHMEM_KB", 8, "KiB of shared memory that it had mapped").or_null(),
    Column::right("total_pages", "PAGES", 9, "pages that victims were weighed against; null where that is not known")
        .or_null(),
    Column::left("loadavg", "LOADAVG", 14, "load averages over 1, 5 and 15 minutes"),
    Column::left("limit_cgroup", "LIMIT", 0, "cgroup whose limit was reached").or_null(),
    Column::left("victim_cgroup", "VICTIM_CGROUP", 0, "cgroup of the victim in the hierarchy of the memory controller")
        .or_null(),
];

/// Rows of victims.
struct Kills {
    /// What cgroups are called, where any are.
    tree: Option<Tree>,
    /// How many KiB a page has.
    page_kib: u64,
}

impl Kills {
    /// The path of a cgroup; where it has gone before anybody asked, its own name as far as that is known.
    fn path(&mut self, id: u64, name: &[i8]) -> Cell<'static> {
        let path = self.tree.as_mut().and_then(|tree| tree.path(id));
        match path {
            _ if id == 0 => Cell::Unknown,
            Some(path) => Cell::Text(Text::new(path.into_bytes())),
            None if name.first().is_none_or(|byte| *byte == 0) => Cell::Own(format!("#{id}")),
            None => Cell::Text(Text::from_c(name)),
        }
    }
}

impl Events for Kills {
    type Event = oomkill_event;

    fn cells<'e>(&mut self, event: &'e oomkill_event, _: &'e [u8], clock: &mut Clock) -> Result<Option<Vec<Cell<'e>>>> {
        let known = |cell: Cell<'static>| if event.pid == 0 { Cell::Unknown } else { cell };
        let kib = |pages: i64| Cell::Uint(u64::try_from(pages).unwrap_or(0).saturating_mul(self.page_kib));
        let load = proc::load_average();
        let load = load.splitn(4, ' ').take(3).collect::<Vec<_>>().join(" ");
        Ok(Some(vec![
            clock.time(event.time_ns),
            Cell::Uint(event.trigger_pid.into()),
            Cell::Uint(event.trigger_tid.into()),
            Cell::Text(Text::from_c(&event.trigger_comm)),
            known(Cell::Uint(event.pid.into())),
            Cell::Uint(event.tid.into()),
            known(Cell::Text(Text::from_c(&event.comm))),
            known(Cell::Uint(event.uid.into())),
            known(Cell::Int(event.score_adj.into())),
            Cell::Str(if event.killed == 0 { "exiting" } else { "killed" }),
            Cell::Str(if event.in_cgroup == 0 { "global" } else { "cgroup" }),
            known(kib(event.anon_pages)),
            known(kib(event.file_pages)),
            known(kib(event.shmem_pages)),
            if event.total_pages == 0 { Cell::Unknown } else { Cell::Uint(event.total_pages) },
            Cell::Own(load),
            self.path(event.cgroup, &event.cgroup_name),
            self.path(event.victim_cgroup, &[]),
        ]))
    }
}

/// The objects that it writes as JSON.
pub fn records() -> Vec<Record> {
    schema::events(COLUMNS)
}

/// Run the tool.
///
/// # Errors
/// As [`common::fault`] classifies them.
pub fn run(args: Args) -> Result<()> {
    let loader = Loader::new(&args.tool)?;
    let target = Target::new(&args.target)?;
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(OomkillSkelBuilder::default(), &mut object)?;
    let cause = loader.first_accepted(&open, &[way(&[CAUSE], ""), way(&[], WITHOUT_CAUSE)])?;
    let knobs = open.maps.rodata_data.as_deref_mut().context("no constants")?;
    knobs.task_given = loader.btf().tracepoint_arguments("mark_victim") > Some(1);
    knobs.cause_known = !cause.is_empty();
    let hooks: Vec<Hook> = cause.iter().copied().chain([hook("oomkill_signal"), hook("oomkill_victim")]).collect();
    let loaded = loader.load(open, &hooks, target)?;

    let shown =
        |key: &str| !matches!(key, "trigger_tid" | "tid" | "uid" | "score_adj" | "total_pages" | "victim_cgroup");
    let kills = Kills { tree: Tree::of_controller("memory").ok(), page_kib: page_kib() };
    let mut view = EventView::new(args.output, COLUMNS, shown, kills).about(loaded.subjects.as_ref());
    loaded.run(&Run::default(), &mut view)
}

/// How many KiB a page has.
fn page_kib() -> u64 {
    kernel::page_size() as u64 >> 10
}

/// The function that says what memory is wanted for.
const CAUSE: Hook = hook("oomkill_begin");
const WITHOUT_CAUSE: &str =
    "whose limit was reached is told by the state of the victim's cgroups, and PAGES is not known";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::events;

    proptest! {
        #[test]
        fn any_event_is_a_row(record in events::record()) {
            events::check_each(COLUMNS, &[record], |_| true, || Kills { tree: None, page_kib: 4 })?;
        }
    }
}
