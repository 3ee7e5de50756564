"""The command line of scripts/bench."""
import argparse
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile

from . import bpf, cases, peers, report
from .measure import Bench
from .run import Work

TOP = os.path.realpath(os.path.join(os.path.dirname(__file__), "../../.."))
RELEASE = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(TOP, "target")), "release")
PAGE = f"{TOP}/docs/performance.md"
PARTS = ["cost", "profile", "accounted", "programs", "filters", "stream", "life", "scale"]


def arguments(usage):
    options = argparse.ArgumentParser(usage=usage)
    options.add_argument("--peers", nargs="?", const="")
    options.add_argument("--get-peers", metavar="DIR")
    options.add_argument("--only", action="append", metavar="TOOL")
    options.add_argument("--part", action="append", choices=PARTS)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--json", metavar="FILE")
    options.add_argument("--from", dest="source", metavar="FILE")
    options.add_argument("--write", action="store_true")
    options.add_argument("--check", action="store_true")
    return options.parse_args()


def machine():
    with open("/proc/cpuinfo") as cpuinfo:
        model = next((line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")), platform.machine())
    with open("/proc/meminfo") as meminfo:
        memory = int(next(line for line in meminfo if line.startswith("MemTotal")).split()[1]) // 1024
    return {
        "kernel": platform.release(), "cpus": os.cpu_count(), "model": model, "memory_mib": memory,
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def say(lines):
    print("\n".join(lines), flush=True)


def measure(options, bench):
    """All that was asked for; each table is shown as soon as it is there."""
    results = {
        "date": datetime.datetime.now().isoformat(timespec="minutes"), "machine": machine(),
        "versions": bench.peers.versions(), "command": "scripts/bench --peers DIR" if options.peers else "scripts/bench",
    }
    wanted = lambda part: not options.part or part in options.part
    tools = [tool for tool in cases.LIVES if not options.only or tool in options.only]
    calibration = results["calibration_ns"] = bench.calibrate()
    say([f"{results['machine']}, an empty program counts as {calibration:.0f} ns", ""])
    chosen = [case for case in cases.COSTS if case.tool in tools]
    if wanted("cost"):
        results["cost"] = {}
        for case in chosen:
            results["cost"][case.title] = {"event": case.event, "cost": bench.cost(case)}
            print(f"{case.title}: {json.dumps(results['cost'][case.title]['cost'])}", file=sys.stderr, flush=True)
    if wanted("accounted"):
        results["accounted"] = {}
        for case in (case for case in cases.ACCOUNTED if case.tool in tools):
            totals = {}
            for kind in ("ours", "libbpf-tools"):
                rounds = [bench.account(case, calibration, kind) for _ in range(3)]
                sums = sorted(sum(program["event_ns"] for program in programs) for programs in rounds if programs is not None)
                if sums:
                    totals[kind] = {"added_ns": sums[len(sums) // 2]}
            results["accounted"][case.title] = {"event": case.event, "cost": totals}
    say(report.added(results))
    if wanted("profile") and "profile" in tools:
        results["profile"] = bench.sampled()
        say(report.sampled(results))
    if wanted("programs"):
        all_of = chosen + [case for case in [*cases.ACCOUNTED, cases.SAMPLED] if case.tool in tools]
        results["programs"] = {case.title: bench.account(case, calibration) or [] for case in all_of}
        say(report.attribution(results))
    if wanted("filters") and "opensnoop" in tools:
        results["filters"] = bench.rejected(calibration)
        say(report.rejected(results))
    if wanted("stream") and "opensnoop" in tools:
        found = {"at the target's rate": bench.stream(cases.LOSSLESS_PER_SECOND), "at full speed": bench.stream(None)}
        results["stream"] = {title: stream for title, stream in found.items() if stream}
        say(report.streams(results))
    if wanted("life"):
        results["life"] = {}
        for tool in tools:
            args, occasion = cases.LIVES[tool]
            entry = results["life"][tool] = {"ours": bench.life(bench.ours(tool, []), args, occasion)}
            if entry["ours"]:
                entry["ours"]["binary_bytes"] = os.path.getsize(f"{RELEASE}/{tool}")
            if command := bench.peers.command("libbpf-tools", [tool]):
                args = args + (["-O", "{libc}"] if tool == "memleak" else [])
                if theirs := bench.life(command, args, occasion):
                    entry["libbpf-tools"] = theirs | {"binary_bytes": bench.peers.size(tool)}
        say(report.lives(results))
    if wanted("scale"):
        results["scale"] = {"processes": bench.crowd(tools)}
        if not options.only:
            results["scale"] |= {
                "keys": {str(count): bench.scale("keys", count) for count in (cases.KEYS // 10, cases.KEYS, 5 * cases.KEYS)},
                "uprobes": bench.scale("uprobes", cases.UPROBES),
                "cpus": {str(count): bench.scale("cpus", count) for count in (bpf.possible_cpus(), cases.CPUS)},
            }
        if "memleak" in tools:
            results["scale"]["hoard"] = bench.hoard()
        say(report.grown(results))
    return results


def write_page(results):
    with open(PAGE) as page:
        head, rest = page.read().split("<!-- bench -->\n", 1)
        _, tail = rest.split("<!-- end -->\n", 1)
    with open(PAGE, "w") as page:
        page.write(head + "<!-- bench -->\n" + "\n".join(report.page(results)) + "\n<!-- end -->\n" + tail)


def run(options):
    build = ["cargo", "build", "--quiet", "--release", "--package", "tools", "--package", "tests", "--bins"]
    subprocess.run(build, cwd=TOP, check=True)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        Work.program = f"{scratch}/bench"
        source = f"{TOP}/tests/workloads/bench.c"
        flags = ["-O2", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"]
        subprocess.run(["cc", *flags, "-o", Work.program, source], check=True)
        # The tools run on CPU 0, the work on CPU 1: what measures must not be in the way of what starts.
        os.sched_setaffinity(0, {os.cpu_count() - 1})
        return measure(options, Bench(RELEASE, peers.Peers(options.peers), options.rounds, scratch))


def main(usage):
    options = arguments(usage)
    # An end by a signal is one that cleans up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if options.peers == "":
        return print(peers.HOW)
    if options.source:
        with open(options.source) as source:
            results = json.load(source)
        say(report.page(results))
    elif os.geteuid() != 0:
        sys.exit("bench: needs root")
    elif options.get_peers:
        return peers.get(options.get_peers)
    else:
        results = run(options)
    if options.json:
        with open(options.json, "w") as out:
            json.dump(results, out, indent=1)
    if options.write:
        write_page(results)
    if options.check:
        rows = report.verdicts(results)
        for what, value, limit, verdict in rows:
            print(f"{verdict:6}  {what}: {value} (at most {limit})")
        if not results["versions"]:
            print("not measured: what is held against libbpf-tools (--peers)")
        return any(row[-1] != "held" for row in rows)
