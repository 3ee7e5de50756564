"""Results as tables, as the page docs/performance.md, and held against what must be."""
from . import cases
from .peers import KINDS


def number(value, digits=0):
    if value is None:
        return "-"
    if digits == 0 and 0 < abs(value) < 10:
        digits = 1
    return f"{value:.{digits}f}"


def table(heads, rows):
    aligned = ["---" if index == 0 else "---:" for index in range(len(heads))]
    lines = [heads, aligned, *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines] + [""]


def get(results, *path):
    for key in path:
        results = results.get(key) if isinstance(results, dict) else None
    return results


def pair(entry, key, digits=0, divisor=1):
    """Ours / theirs."""
    values = [get(entry, kind, key) for kind in ("ours", "libbpf-tools")]
    return " / ".join(number(value and value / divisor, digits) for value in values)


def ratio(cost):
    ours, theirs = get(cost, "ours", "added_ns"), get(cost, "libbpf-tools", "added_ns")
    return max(0, ours) / theirs if ours is not None and theirs and theirs > 0 else None


def added(results):
    rows = []
    for title, entry in results.get("cost", {}).items():
        cost = entry["cost"]
        base = get(cost, "ours", "base_ns")
        with_ours = get(cost, "ours", "added_ns")
        rows.append([
            title, entry["event"], number(base), number(with_ours),
            number(base and with_ours is not None and (base + with_ours) / base, 2),
            *(number(get(cost, kind, "added_ns")) for kind in KINDS), number(ratio(cost), 2),
            pair(cost, "tool_ns"), pair(cost, "lost"),
        ])
    for title, entry in results.get("accounted", {}).items():
        cost = entry["cost"]
        rows.append([
            f"{title} (BPF run time)", entry["event"], "-", number(get(cost, "ours", "added_ns")), "-",
            number(get(cost, "libbpf-tools", "added_ns")), "-", "-", number(ratio(cost), 2), "-", "-",
        ])
    heads = ["tool", "event", "without, ns", "corescope adds, ns", "slowdown", *(f"{kind} adds, ns" for kind in KINDS),
             "ratio to libbpf-tools", "tool's own CPU, ns per event", "lost"]
    return table(heads, rows) if rows else []


def sampled(results):
    entry = results.get("profile")
    if not entry:
        return []
    rows = [
        [f"{'corescope' if kind == 'ours' else kind}", number(cost["sample_ns"]), number(cost["percent"], 3),
         number(cost.get("tool_percent"), 3)]
        for kind, cost in entry.items()
    ]
    return table(["profile", "ns per sample", "% of each busy CPU at 99 Hz", "tool's own CPU, %"], rows)


def lives(results):
    rows = []
    for tool, entry in results.get("life", {}).items():
        rows.append([
            tool, pair(entry, "attached_ms", 1), pair(entry, "first_row_ms", 1), pair(entry, "exit_ms", 1),
            pair(entry, "peak_kib"), pair(entry, "map_bytes", 0, 1024), number(get(entry, "ours", "map_bytes_128") / 1024)
            if get(entry, "ours", "map_bytes_128") else "-", pair(entry, "binary_bytes", 0, 1000),
        ])
    heads = ["tool: ours / libbpf-tools", "start to attached, ms", "start to first row, ms", "SIGINT to exit, ms",
             "peak memory, KiB", "maps in the kernel, KiB", f"maps of ours with {cases.CPUS} CPUs, KiB", "binary, kB"]
    return table(heads, rows) if rows else []


def attribution(results):
    rows = [
        [title, program["program"].rstrip("_"), number(program["runs"], 2), number(program["run_ns"]), number(program["event_ns"])]
        for title, programs in results.get("programs", {}).items() for program in programs
    ]
    return table(["tool", "program", "runs per event", "ns per run", "ns per event"], rows) if rows else []


def rejected(results):
    rows = [[f"`{title}`" if " " not in title else title, number(found["added_ns"], 1)] for title, found in results.get("filters", {}).items()]
    return table(["opensnoop, filter", "adds to a rejected event, ns"], rows) if rows else []


def streams(results):
    rows = []
    for title, stream in results.get("stream", {}).items():
        rows.append([title, number(stream["per_second"]), stream["sent"], stream["arrived"], stream["lost"],
                     number(stream["tool_percent"])])
    return table(["opensnoop, both CPUs opening", "opens a second", "opens", "rows", "said to be lost", "tool's CPU, %"], rows) if rows else []


def grown(results):
    rows = []
    for count, found in (get(results, "scale", "keys") or {}).items():
        rows.append([
            f"{count} keys", f"{number(found.get('drain_ms'), 1)} ms to drain, {number(found.get('report_ms'), 1)} ms as a histogram each",
        ])
    if found := get(results, "scale", "uprobes"):
        rows.append([f"{cases.UPROBES} uprobes", f"{number(found.get('attach_ms'), 1)} ms to attach, {number(found.get('detach_ms'), 1)} ms to detach"])
    for count, found in (get(results, "scale", "cpus") or {}).items():
        rows.append([f"a histogram of {count} CPUs read", f"{number(found.get('ms'), 1)} ms"])
    if found := get(results, "scale", "hoard"):
        rows.append([
            f"memleak, {cases.ALLOCATIONS} outstanding allocations",
            f"{found['reported']} reported, {found['lost']} lost; {number(found['exit_ms'])} ms to report and end, "
            f"{number(found['peak_kib'] / 1024)} MiB of memory, {number(found['map_bytes'] / 2**20)} MiB of maps",
        ])
    for tool, found in (get(results, "scale", "processes") or {}).items():
        rows.append([
            f"{tool} beside {cases.PROCESSES} processes",
            f"attached after {number(found['attached_ms'], 1)} ms, ends in {number(found['exit_ms'], 1)} ms, {number(found['peak_kib'])} KiB",
        ])
    return table(["what there is much of", "what it costs"], rows) if rows else []


def page(results):
    """The generated part of docs/performance.md."""
    versions = ", ".join(f"{kind} {version}" for kind, version in results["versions"].items())
    machine = results["machine"]
    lines = [
        f"Measured on {results['date']} with `{results['command']}`: kernel {machine['kernel']}, {machine['cpus']} CPUs "
        f"({machine['model']}), {machine['memory_mib']} MiB, load {machine['load']}."
        + (f" Peers: {versions}." if versions else ""),
        "",
    ]
    parts = [
        ("Added to each event", added), ("Sampling", sampled), ("Which program costs what", attribution),
        ("Filters", rejected),
        ("Lossless", streams), ("Start, end, memory", lives), ("What there can be much of", grown),
    ]
    for title, part in parts:
        if rows := part(results):
            lines += [f"### {title}", "", *rows]
    if rows := verdicts(results):
        lines += ["### Targets", "", *table(["target", "measured", "limit", ""], rows)]
    return lines[:-1]


def verdicts(results):
    """[what, measured, limit, held or missed] of each target that this run could measure."""
    rows = []

    def judge(what, value, limit, digits=2, unit=""):
        if value is not None:
            rows.append([what, number(value, digits) + unit, f"{limit}{unit}", "held" if value <= limit else "MISSED"])

    for case in cases.COSTS:
        if case.limit:
            judge(f"{case.title}: cost to libbpf-tools'", ratio(get(results, "cost", case.title, "cost")), case.limit)
    if ours := get(results, "profile", "ours"):
        judge("profile at 99 Hz: share of a busy CPU", ours["percent"], cases.PROFILE_LIMIT_PERCENT, 3, " %")
        # Its own time serves all CPUs.
        own = ours.get("tool_percent", 0) / results["machine"]["cpus"]
        judge("profile at 99 Hz: the same with its own time", ours["percent"] + own, cases.PROFILE_LIMIT_PERCENT, 3, " %")
    for title, found in results.get("filters", {}).items():
        judge(f"filter {title}: a rejected event", found["added_ns"], cases.FILTER_NS, 1, " ns")
    for tool in cases.LIVES:
        life = get(results, "life", tool, "ours")
        if not life:
            continue
        judge(f"{tool}: start to attached", life["attached_ms"], cases.FIRST_MS, 1, " ms")
        judge(f"{tool}: start to first row", life.get("first_row_ms"), cases.FIRST_MS, 1, " ms")
        judge(f"{tool}: exit", life["exit_ms"], cases.EXIT_MS, 1, " ms")
        judge(f"{tool}: peak memory", life["peak_kib"] * 1024 / 1e6, cases.PEAK_MB[tool], 1, " MB")
    for title, stream in results.get("stream", {}).items():
        if title == "at the target's rate":
            judge(f"opensnoop: lost of {cases.LOSSLESS_PER_SECOND} opens a second", stream["sent"] - stream["arrived"], 0, 0)
        if title == "at the target's rate" and stream["per_second"] < 0.98 * cases.LOSSLESS_PER_SECOND:
            rows.append([f"opensnoop: the machine was too busy for so many opens", number(stream["per_second"]), cases.LOSSLESS_PER_SECOND, "MISSED"])
        judge(f"opensnoop {title}: neither shown nor said to be lost", abs(stream["sent"] - stream["arrived"] - stream["lost"]), 0, 0)
    scale = results.get("scale", {})
    judge(f"{cases.KEYS} keys drained", get(scale, "keys", str(cases.KEYS), "drain_ms"), cases.KEYS_MS, 1, " ms")
    if found := get(scale, "uprobes"):
        judge(f"{cases.UPROBES} uprobes attached and detached", found["attach_ms"] + found["detach_ms"], cases.UPROBES_MS, 1, " ms")
    if hoard := scale.get("hoard"):
        judge(f"memleak: not reported of {cases.ALLOCATIONS} allocations", cases.ALLOCATIONS - hoard["reported"], 0, 0)
        judge(f"memleak: peak memory with {cases.ALLOCATIONS} allocations", hoard["peak_kib"] * 1024 / 1e6, 32, 1, " MB")
    for tool, found in (scale.get("processes") or {}).items():
        judge(f"{tool} beside {cases.PROCESSES} processes: start to attached", found["attached_ms"], cases.FIRST_MS, 1, " ms")
        judge(f"{tool} beside {cases.PROCESSES} processes: peak memory", found["peak_kib"] * 1024 / 1e6, cases.PEAK_MB[tool], 1, " MB")
    return rows
