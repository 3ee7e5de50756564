//! tcpdrop: TCP packets that the kernel dropped, why and where.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result};
use bpf::tcpdrop::types::tcpdrop_event;
use bpf::tcpdrop::{TcpdropSkel, TcpdropSkelBuilder};
use clap::Parser;
use common::cli::{Output, Tool};
use common::event::{Clock, EventView, Events};
use common::inet::{self, FamilyArgs};
use common::kernel::Btf;
use common::load::{Loader, hook};
use common::out::{self, Cell, Column};
use common::privilege;
use common::schema::{self, Kind, Record};
use common::session::Run;
use common::sockowner::Owners;
use common::stack::{StackArgs, Style};
use common::target::{Target, TargetArgs};
use common::text::Text;

/// Show TCP packets that the kernel drops: between whom, why, and the kernel stack that dropped them
#[derive(Parser)]
#[command(name = "tcpdrop", version)]
pub struct Args {
    #[command(flatten)]
    family: FamilyArgs,
    /// Only packets of the network namespace with this id (an inode number, as lsns shows it)
    #[arg(long, value_name = "INODE", conflicts_with = "pid_netns")]
    netns_id: Option<u32>,
    /// Only packets of the network namespace that this process is in
    #[arg(long, value_name = "PID", value_parser = common::cli::pid)]
    pid_netns: Option<u32>,
    /// Show those too that the kernel freed without a reason (some of them it had used), and those without data that
    /// were in the queue of a socket when it was closed
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    stacks: StackArgs,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    tool: Tool,
}

const COLUMNS: &[Column] = &[
    Column::left("time_unix_ns", "TIME", 8, "when it was dropped").of(Kind::Count),
    Column::left("pid", "PID", 7, "process that its socket belongs to").of(Kind::Count).or_null(),
    Column::left("comm", "COMM", 16, "its name").or_null(),
    Column::left("ip_version", "IP", 2, "4 or 6").of(Kind::Count),
    Column::left("source", "SADDR:SPORT", 20, "where it came from; port 0 where it could not be read"),
    Column::left("destination", "> DADDR:DPORT", 20, "where it was to go"),
    Column::left("state", "STATE", 12, "state of its socket").or_null(),
    Column::left("flags", "(FLAGS)", 12, "flags of TCP").or_null(),
    Column::left("reason", "REASON", 20, "why, as the kernel names it"),
    Column::left("reason_code", "(CODE)", 0, "its number in this kernel").of(Kind::Count).or_null(),
    Column::right("length_bytes", "LEN", 0, "its length in bytes, headers included as far as they were there"),
    Column::right("netns", "NETNS", 0, "network namespace, an inode number; 0 where it is not known"),
    Column::left("source_address", "SADDR", 0, "address of the sender"),
    Column::right("source_port", "SPORT", 0, "port of the sender"),
    Column::left("destination_address", "DADDR", 0, "address of the receiver"),
    Column::right("destination_port", "DPORT", 0, "port of the receiver"),
    Column::left("stack", "STACK", 0, "kernel stack, innermost frame first").of(Kind::Texts),
];

/// TCPDROP_HAS_FLAGS of tcpdrop.bpf.c.
const HAS_FLAGS: u32 = 1 << 8;
/// What is in place of a reason on kernels that have none.
const UNTOLD: &str = "not told before 5.17";

/// Rows of drops.
struct Drops<'a> {
    skel: Option<&'a TcpdropSkel<'a>>,
    /// None where the kernel gives no reasons.
    reasons: Option<HashMap<u32, String>>,
}

impl Drops<'_> {
    fn reason(&self, code: u32) -> [Cell<'static>; 2] {
        let Some(reasons) = &self.reasons else { return [Cell::Str(UNTOLD), Cell::Unknown] };
        let name = reasons.get(&code).cloned().unwrap_or_else(|| format!("REASON_{code:#x}"));
        [Cell::Own(name), Cell::Uint(code.into())]
    }
}

impl Events for Drops<'_> {
    type Event = tcpdrop_event;

    fn cells<'e>(&mut self, event: &'e tcpdrop_event, _: &'e [u8], clock: &mut Clock) -> Result<Option<Vec<Cell<'e>>>> {
        let ends = &event.ends;
        let (from, to) = (inet::address(ends.family, &ends.local), inet::address(ends.family, &ends.remote));
        let known = event.pid != 0;
        let state = inet::state(event.state).map_or(Cell::Unknown, Cell::Str);
        let flags = if event.flags & HAS_FLAGS != 0 { Cell::Own(flags(event.flags)) } else { Cell::Unknown };
        let [reason, code] = self.reason(event.reason);
        Ok(Some(vec![
            clock.time(event.time_ns),
            if known { Cell::Uint(event.pid.into()) } else { Cell::Unknown },
            if known { Cell::Text(Text::from_c(&event.comm)) } else { Cell::Unknown },
            Cell::Uint(if from.is_ipv4() { 4 } else { 6 }),
            Cell::Own(inet::end(ends.family, &ends.local, ends.local_port)),
            Cell::Own(inet::end(ends.family, &ends.remote, ends.remote_port)),
            state,
            flags,
            reason,
            code,
            Cell::Uint(event.length.into()),
            Cell::Uint(event.netns.into()),
            Cell::Own(from.to_string()),
            Cell::Uint(ends.local_port.into()),
            Cell::Own(to.to_string()),
            Cell::Uint(ends.remote_port.into()),
        ]))
    }

    fn stack_ids(&self, event: &tcpdrop_event) -> [u64; 2] {
        [0, event.stack_id]
    }

    fn ended(&mut self) -> Result<()> {
        let Some(skel) = self.skel else { return Ok(()) };
        let counters = skel.maps.bss_data.as_deref().context("no counters")?;
        // SAFETY: a plain integer in memory that the kernel writes: read it anew.
        let unexplained = unsafe { std::ptr::read_volatile(&raw const counters.tcpdrop_unexplained) };
        if unexplained > 0 {
            out::warn(format_args!(
                "{unexplained} packets were freed without a reason, dropped or used: not shown (-a)"
            ));
        }
        Ok(())
    }
}

/// The flags of TCP by name, as far as any are set.
fn flags(flags: u32) -> String {
    const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    let set = NAMES.iter().enumerate().filter(|(bit, _)| flags & 1 << bit != 0).map(|(_, name)| *name);
    set.collect::<Vec<_>>().join("|")
}

const CORE: &str = "SKB_DROP_REASON_";
const SUBSYSTEM: &str = "SKB_DROP_REASON_SUBSYS_";

/// The names that this kernel gives to reasons. The upper half of a number is that of a subsystem (6.4, 071c0fc6fb91), whose
/// reasons are in an enum of its own, of the kernel or of a module that is called as the subsystem begins.
fn reasons(btf: &Btf) -> HashMap<u32, String> {
    let subsystems = btf.enumerators(&[], |name| name == "skb_drop_reason_subsys");
    let modules: Vec<String> = subsystems
        .iter()
        .filter_map(|(_, name)| Some(name.strip_prefix(SUBSYSTEM)?.split('_').next()?.to_lowercase()))
        .collect();
    let modules: Vec<&str> = modules.iter().map(String::as_str).collect();
    let all = btf.enumerators(&modules, |name| name.ends_with("drop_reason"));
    let mut names = HashMap::new();
    for (code, name) in all {
        let is_mark = name.starts_with("__") && !name.starts_with("___") || name.starts_with(SUBSYSTEM);
        if !is_mark {
            let name = name.trim_start_matches('_');
            names.entry(code).or_insert_with(|| name.strip_prefix(CORE).unwrap_or(name).to_owned());
        }
    }
    names
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
    let owners = Owners::new(&target)?;
    let netns = match args.pid_netns {
        Some(pid) => {
            let inode =
                std::fs::metadata(format!("/proc/{pid}/ns/net")).with_context(|| format!("no such PID: {pid}"))?;
            Some(inode.ino() as u32)
        }
        None => args.netns_id,
    };
    let arguments = loader.btf().tracepoint_arguments("kfree_skb").unwrap_or(2);
    let mut object = MaybeUninit::uninit();
    let mut open = loader.open(TcpdropSkelBuilder::default(), &mut object)?;
    inet::configure(&mut open, args.family, &[], &[])?;
    args.stacks.configure(&mut open)?;
    let knobs = open.maps.rodata_data.as_deref_mut().context("no constants")?;
    knobs.tcpdrop_has_reason = arguments > 2;
    knobs.tcpdrop_has_socket = arguments > 3;
    knobs.tcpdrop_all = args.all;
    knobs.tcpdrop_netns = netns.unwrap_or(0);
    let numbers = loader.btf().enumerators(&[], |name| name == "skb_drop_reason");
    let number = |name: &str| numbers.iter().find(|(_, known)| known == name).map_or(u32::MAX, |(number, _)| *number);
    knobs.tcpdrop_unspecified = number("SKB_DROP_REASON_NOT_SPECIFIED");
    knobs.tcpdrop_purged = number("SKB_DROP_REASON_QUEUE_PURGE");
    knobs.tcpdrop_consumed = number("SKB_CONSUMED");
    if arguments <= 2 {
        loader.degrade("packets have no reason (5.17), and those are shown too that the kernel had used");
    }
    let reasons = (arguments > 2).then(|| reasons(loader.btf()));
    let loaded = loader.load(open, &[hook("sock_owner"), hook("tcpdrop")], target)?;

    privilege::warn_of_names(false, true);
    let shown = |key: &str| {
        let hidden = ["comm", "length_bytes", "netns", "stack"];
        !hidden.contains(&key) && !key.ends_with("_address") && !key.ends_with("_port")
    };
    let drops = Drops { skel: Some(&loaded.skel), reasons };
    let style = Style { offsets: true, ..Style::default() };
    let mut view =
        EventView::new(args.output, COLUMNS, shown, drops).with_stacks(style, true).about(loaded.subjects.as_ref());
    let run = Run { keeps: Some(privilege::NAMES), ..Run::default() };
    loaded.run_with(&run, &mut view, None, |skel: &TcpdropSkel<'_>| owners.tell(skel).map(|()| Vec::new()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::events;

    proptest! {
        #[test]
        fn any_event_is_a_row(record in events::record()) {
            let drops = || Drops { skel: None, reasons: Some(HashMap::from([(2, "NO_SOCKET".to_owned())])) };
            events::check_each(COLUMNS, &[record], |_| true, drops)?;
        }
    }

    #[test]
    fn flags_have_their_names() {
        assert_eq!(flags(HAS_FLAGS | 0x12), "SYN|ACK");
        assert_eq!(flags(HAS_FLAGS), "");
    }

    #[test]
    fn reasons_are_those_of_this_kernel() {
        let Ok(btf) = Btf::open(None) else { return };
        let names = reasons(&btf);
        let Some(code) = btf.enumerator("SKB_DROP_REASON_NO_SOCKET") else { return assert!(names.is_empty()) };
        assert_eq!(names[&code], "NO_SOCKET");
        assert!(names.values().all(|name| !name.starts_with('_') && !name.starts_with("SUBSYS")), "{names:?}");
    }
}
