"""What is measured, and what must hold."""
from dataclasses import dataclass, field

FSDIST_BT = (
    "tracepoint:syscalls:sys_enter_pread64 { @since[tid] = nsecs; }"
    " tracepoint:syscalls:sys_exit_pread64 /@since[tid]/ { @usecs = hist((nsecs - @since[tid]) / 1000); delete(@since, tid); }"
)
FILETOP_BT = (
    "tracepoint:syscalls:sys_enter_pread64 { @fd[tid] = args.fd; }"
    " tracepoint:syscalls:sys_exit_pread64 { @reads[pid, comm, @fd[tid]] = count(); @bytes[pid, comm, @fd[tid]] = sum(args.ret); }"
)
STACK_TOOLS = ("profile", "offcputime", "offwaketime", "memleak", "tcpdrop")


@dataclass
class Case:
    """One tool, one kind of work. {pid} in arguments is the process that works, {libc} its C library."""

    title: str
    tool: str
    args: list
    work: str
    batches: int
    size: int
    event: str
    peers: dict = field(default_factory=dict)
    # Ours may add at most so much of what libbpf-tools adds.
    limit: float | None = None


SWITCH = "tracepoint:sched:sched_switch"
OFFCPU_BT = (
    SWITCH + " { @since[args.prev_pid] = nsecs; @user[args.prev_pid] = ustack; @kernel[args.prev_pid] = kstack;"
    " if (@since[args.next_pid]) { @time[@user[args.next_pid], @kernel[args.next_pid]] = sum(nsecs - @since[args.next_pid]); } }"
)
MEMLEAK_BT = (
    "uprobe:{libc}:malloc /pid == {pid}/ { @size[tid] = arg0; }"
    " uretprobe:{libc}:malloc /pid == {pid}/ { @of[retval] = ustack; @bytes[retval] = @size[tid]; }"
    " uprobe:{libc}:free /pid == {pid}/ { delete(@of, arg0); delete(@bytes, arg0); }"
)

COSTS = [
    Case("opensnoop", "opensnoop", [], "open", 150, 2000, "open and close", {
        "libbpf-tools": ["opensnoop"], "bpftrace": ["/usr/sbin/opensnoop.bt"],
        "perf": ["trace", "-a", "-e", "open,openat", "-o", "/dev/null"],
    }, 0.5),
    Case("opensnoop, of an unrelated system call", "opensnoop", [], "getppid", 150, 20000, "getppid", {
        "libbpf-tools": ["opensnoop"], "bpftrace": ["/usr/sbin/opensnoop.bt"],
    }),
    Case("execsnoop", "execsnoop", [], "spawn", 60, 25, "spawn and wait", {
        "libbpf-tools": ["execsnoop"], "bpftrace": ["/usr/sbin/execsnoop.bt"],
        "perf": ["trace", "-a", "-e", "execve,execveat", "-o", "/dev/null"],
    }, 0.5),
    Case("fsslower", "fsslower", [], "pread", 150, 20000, "cached read", {"libbpf-tools": ["fsslower", "-t", "ext4"]}, 0.5),
    Case("fsdist", "fsdist", [], "pread", 150, 20000, "cached read", {
        "libbpf-tools": ["fsdist", "-t", "ext4"], "bpftrace": ["-e", FSDIST_BT],
    }, 0.5),
    Case("filetop", "filetop", ["60"], "pread", 150, 20000, "cached read", {
        "libbpf-tools": ["filetop", "60"], "bpftrace": ["-e", FILETOP_BT],
    }, 0.5),
    Case("exitsnoop", "exitsnoop", [], "spawn", 60, 25, "spawn and wait", {"libbpf-tools": ["exitsnoop"]}, 0.5),
    Case("syscount", "syscount", [], "getppid", 150, 20000, "getppid", {
        "libbpf-tools": ["syscount"], "bpftrace": ["/usr/sbin/syscount.bt"],
    }, 0.5),
    Case("syscount -P", "syscount", ["-P"], "getppid", 150, 20000, "getppid", {"libbpf-tools": ["syscount", "-P"]}),
    Case("syscount -L", "syscount", ["-L"], "getppid", 150, 20000, "getppid", {"libbpf-tools": ["syscount", "-L"]}, 0.5),
    Case("tcplife", "tcplife", [], "connect", 80, 100, "end of a session", {"libbpf-tools": ["tcplife"]}, 0.5),
    Case("tcpconnect", "tcpconnect", [], "connect", 80, 100, "connection", {
        "libbpf-tools": ["tcpconnect"], "bpftrace": ["/usr/sbin/tcpconnect.bt"],
    }),
    Case("tcpconnlat", "tcpconnlat", [], "connect", 80, 100, "connection", {"libbpf-tools": ["tcpconnlat"]}),
    Case("tcpaccept", "tcpaccept", [], "connect", 80, 100, "connection", {"bpftrace": ["/usr/sbin/tcpaccept.bt"]}),
    Case("tcptop", "tcptop", ["1"], "connect", 80, 100, "connection", {"libbpf-tools": ["tcptop"]}),
    # Alone: the peers look at the C library of their own root, which the work here does not use.
    Case("gethostlatency", "gethostlatency", [], "lookup", 150, 2000, "lookup of a number"),
    Case("runqlat", "runqlat", [], "switch", 150, 2000, "context switch", {
        "libbpf-tools": ["runqlat"], "bpftrace": ["/usr/sbin/runqlat.bt"], "perf": ["sched", "record", "-o", "/dev/null"],
    }, 0.5),
    Case("runqslower", "runqslower", [], "switch", 150, 2000, "context switch", {
        "libbpf-tools": ["runqslower"], "bpftrace": ["/usr/sbin/runqlat.bt"],
    }, 0.5),
    Case("cpudist", "cpudist", [], "switch", 150, 2000, "context switch", {"libbpf-tools": ["cpudist"]}, 0.5),
    Case("offcputime", "offcputime", ["60"], "switch", 60, 1000, "context switch", {
        "libbpf-tools": ["offcputime", "60"], "bpftrace": ["-e", OFFCPU_BT],
        "perf": ["sched", "record", "-g", "-o", "/dev/null"],
    }, 0.85),
    Case("offcputime -m 1000", "offcputime", ["-m", "1000", "60"], "switch", 60, 1000, "context switch", {
        "libbpf-tools": ["offcputime", "-m", "1000", "60"],
    }, 0.1),
    Case("offcputime -p of another process", "offcputime", ["-p", "1", "60"], "switch", 60, 1000, "context switch", {
        "libbpf-tools": ["offcputime", "60"],
    }, 0.1),
    Case("offwaketime", "offwaketime", ["60"], "switch", 60, 1000, "context switch"),
    Case("funclatency", "funclatency", ["-p", "{pid}", "c:malloc"], "malloc", 60, 500, "malloc and free, the first timed", {
        "libbpf-tools": ["funclatency", "-p", "{pid}", "{libc}:malloc"],
    }),
    Case("memleak", "memleak", ["-p", "{pid}"], "malloc", 60, 500, "malloc and free", {
        "libbpf-tools": ["memleak", "-p", "{pid}", "-O", "{libc}"], "bpftrace": ["-e", MEMLEAK_BT],
    }, 0.3),
]

# These cost less than the work itself varies: the kernel's account of their run time, over the events.
ACCOUNTED = [
    Case("biolatency", "biolatency", [], "disk", 40, 100, "direct read", {"libbpf-tools": ["biolatency"]}),
    Case("biosnoop", "biosnoop", [], "disk", 40, 100, "direct read", {"libbpf-tools": ["biosnoop"]}),
    Case("biotop", "biotop", [], "disk", 40, 100, "direct read", {"libbpf-tools": ["biotop"]}),
    Case("hardirqs", "hardirqs", [], "disk", 40, 100, "direct read", {"libbpf-tools": ["hardirqs"]}),
    Case("softirqs", "softirqs", [], "disk", 40, 100, "direct read", {"libbpf-tools": ["softirqs"]}),
]

# Sampled ten times as often as it will be, because at 99 Hz the cost drowns in what the work varies.
SAMPLED_HZ, HZ = 990, 99
SAMPLED = Case("profile", "profile", ["-F", str(SAMPLED_HZ), "60"], "deep", 25, 80000, "sample of a stack of 40", {
    "libbpf-tools": ["profile", "-F", str(SAMPLED_HZ), "60"],
    "bpftrace": ["-e", f"profile:hz:{SAMPLED_HZ} {{ @[ustack, kstack, comm] = count(); }}"],
    "perf": ["record", "-q", "-F", str(SAMPLED_HZ), "-a", "-g", "-e", "cpu-clock", "-o", "/dev/null"],
})
SAMPLED_AT_HZ = ["-F", str(HZ), "60"]
PROFILE_LIMIT_PERCENT = 0.25

# What an event costs that a filter rejects, beyond one that is of no interest whoever it is of (an open that did not
# fail, with -x). {cgroup} is an empty one.
FILTERED = Case("opensnoop", "opensnoop", [], "open", 100, 2000, "open and close")
UNINTERESTING = ["-x"]
FILTERS = {
    "-p, one process": ["-p", "1"],
    "-p, several": ["-p", "1,{self}"],
    "-p --follow": ["-p", "{other}", "--follow"],
    "-t, one thread": ["-t", "1"],
    "--uid": ["--uid", "65534"],
    "--comm, an exact name": ["--comm", "zz"],
    "--comm, a pattern": ["--comm", "*z*z*"],
    "--cgroup, one": ["--cgroup", "{cgroup}/one"],
    "--cgroup, several": ["--cgroup", "{cgroup}/*"],
}
FILTER_NS = 25

# Start, end and memory. What a stream's first row is found by, and the work that causes it.
LIVES = {
    "opensnoop": ([], ("open", 1)),
    "execsnoop": ([], ("spawn", 1)),
    "exitsnoop": ([], ("spawn", 1)),
    "tcplife": ([], ("connect", 1)),
    "tcpconnect": ([], ("connect", 1)),
    "tcpconnlat": ([], ("connect", 1)),
    "tcpaccept": ([], ("connect", 1)),
    "tcptop": ([], None),
    "gethostlatency": ([], None),
    "tcpdrop": ([], None),
    "tcpretrans": ([], None),
    "runqlat": ([], None),
    "runqslower": ([], None),
    "cpudist": ([], None),
    "offcputime": ([], None),
    "offwaketime": ([], None),
    "hardirqs": ([], None),
    "softirqs": ([], None),
    "biolatency": ([], None),
    "biosnoop": ([], None),
    "biotop": ([], None),
    "filetop": ([], None),
    "fsdist": ([], None),
    "fsslower": ([], None),
    "cachestat": ([], None),
    "oomkill": ([], None),
    "syscount": ([], None),
    "profile": ([], None),
    "funclatency": (["-p", "{pid}", "c:malloc"], None),
    "memleak": (["-p", "{pid}"], None),
}
FIRST_MS, EXIT_MS = 20, 20
PEAK_MB = {tool: 32 if tool in STACK_TOOLS else 5 for tool in LIVES}

LOSSLESS_PER_SECOND = 350_000
KEYS, KEYS_MS = 10_000, 3
UPROBES, UPROBES_MS = 1000, 60
PROCESSES = 10_000
CPUS = 128
ALLOCATIONS = 1_000_000
