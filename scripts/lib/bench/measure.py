"""The measurements themselves."""
import contextlib
import json
import os
import subprocess
import tempfile
import time
from dataclasses import replace

from . import bpf, cases
from .run import Tool, Work, first_row_ms, low, median

AGREE = 0.03
ATTEMPTS = 4


class Bench:
    """What a run has at hand."""

    def __init__(self, release, peers, rounds, scratch):
        self.release, self.peers, self.rounds, self.scratch = release, peers, rounds, scratch
        self.file = f"{scratch}/bench-file"
        with open(self.file, "wb") as data:
            data.write(os.urandom(16 << 20))
            os.fsync(data.fileno())

    def ours(self, tool, args):
        return [f"{self.release}/{tool}", *args]

    def commands(self, case):
        """Ours and those of the peers that are there, by kind."""
        found = {"ours": self.ours(case.tool, case.args)}
        for kind, words in case.peers.items():
            if command := self.peers.command(kind, words):
                found[kind] = command
        return found

    def work(self, case):
        return Work(case.work, case.size, self.file if case.work == "disk" else None)

    def calibrate(self):
        """What the kernel's account of a run says of a program that does nothing, in ns."""
        with bpf.statistics(), bpf.empty_program("sys_enter") as program, Work("getppid", 20000) as work:
            account = lambda: next(
                (int(fields["run_cnt"]), int(fields["run_time_ns"]))
                for fields in bpf.fdinfo("self") if fields.get("prog_type") == str(bpf.RAW_TRACEPOINT)
            )
            work.do(20)
            results = []
            for _ in range(7):
                before = account()
                work.do(20)
                after = account()
                results.append((after[1] - before[1]) / (after[0] - before[0]))
        return min(results)

    def cost(self, case):
        """What each command adds to an event: without, with and without it, in turn, until enough agree."""
        rounds = {kind: [] for kind in self.commands(case)}
        wanted = lambda kind: self.rounds if kind in ("ours", "libbpf-tools") else min(self.rounds, 3)
        dead = set()
        with self.work(case) as work:
            work.do(case.batches)
            for _ in range(ATTEMPTS * self.rounds):
                for kind, command in self.commands(case).items():
                    if kind in dead or len(rounds[kind]) >= wanted(kind):
                        continue
                    result = one_round(fill(command, work), work, case)
                    if result == "dead":
                        dead.add(kind)
                    elif result:
                        rounds[kind].append(result)
        middle = lambda results, key: median([result[key] for result in results])
        keys = ("base_ns", "added_ns", "tool_ns", "lost")
        return {
            kind: {key: middle(results, key) for key in keys} | {"rounds": len(results)}
            for kind, results in rounds.items() if results
        }

    def account(self, case, calibration_ns, kind="ours"):
        """Runs and net ns of each program, for each event, by the kernel's own account; None where it does not run."""
        command = self.commands(case).get(kind)
        if not command:
            return None
        with self.work(case) as work, bpf.statistics():
            tool = Tool(fill(command, work))
            if not tool.settle():
                return None
            work.do(2)
            before = bpf.programs(tool.pid)
            _, events, _ = work.do(case.batches)
            after = bpf.programs(tool.pid)
            names = {id: bpf.program_name(id) for id in after}
            tool.stop_ms()
        found = []
        for id, (runs, ns) in sorted(after.items()):
            runs, ns = runs - before.get(id, (0, 0))[0], ns - before.get(id, (0, 0))[1]
            if runs * 100 >= events:
                net = max(0, ns - runs * calibration_ns)
                found.append({"program": names[id], "runs": runs / events, "run_ns": net / runs, "event_ns": net / events})
        return found

    def rejected(self, calibration_ns):
        """What each filter costs a rejected event, in ns: the median of some rounds, in each of which it is held against a run
        without. Each run loads the program anew, and where it comes to lie makes some ns."""
        with empty_cgroups() as cgroup, idle_process() as other:
            values = {"{self}": str(os.getpid()), "{other}": str(other), "{cgroup}": cgroup or ""}

            def event_ns(args):
                for name, value in values.items():
                    args = [word.replace(name, value) for word in args]
                programs = self.account(replace(cases.FILTERED, args=args), calibration_ns)
                # Not what follows forks, of which there are others' too.
                return None if programs is None else sum(program["event_ns"] for program in programs if program["runs"] > 0.9)

            filters = {title: args for title, args in cases.FILTERS.items() if cgroup or "{cgroup}" not in " ".join(args)}
            rounds = [
                (event_ns(cases.UNINTERESTING), {title: event_ns(args) for title, args in filters.items()})
                for _ in range(2 * self.rounds + 2)
            ]
        found = {}
        for title in filters:
            pairs = [(base, costs[title]) for base, costs in rounds if None not in (base, costs[title])]
            if pairs:
                found[title] = {
                    "base_ns": median([base for base, _ in pairs]), "added_ns": median([cost - base for base, cost in pairs]),
                }
        return found

    def life(self, command, args, occasion):
        """ms to where it is attached, to the first row and to its end, peak KiB, map memory."""
        results = []
        with Work("malloc", 1) as target:
            command = fill(command + args, target)
            probe = Tool(command)
            attachments = probe.settle()
            if not attachments:
                return None
            here, there = bpf.map_bytes(probe.pid, cases.CPUS)
            probe.stop_ms()
            for _ in range(2 * self.rounds + 1):
                tool = Tool(command)
                attached = tool.attached_after_ms(attachments)
                time.sleep(0.1)
                peak = tool.peak_kib()
                results.append((attached, tool.stop_ms(), peak))
            first = []
            if occasion:
                kind, size = occasion
                for _ in range(2 * self.rounds + 1):
                    with Work(kind, size, self.file if kind == "open" else None) as work:
                        # Something every half millisecond, on another CPU; the sign stands in path, argument or name.
                        work.begin(4000, 500_000)
                        first.append(first_row_ms(["taskset", "-c", "0", *command], b"bench"))
        attached, exit_ms, peak = zip(*results)
        return {
            "attached_ms": low(attached), "first_row_ms": low(first), "exit_ms": low(exit_ms), "peak_kib": max(peak),
            "map_bytes": here, "map_bytes_128": there,
        }

    def sampled(self):
        """What a sample costs and which share of a CPU that is at 99 Hz; the tool's own time at 99 Hz."""
        case = cases.SAMPLED
        costs = self.cost(case)
        commands = self.commands(case)
        for kind, cost in costs.items():
            # Of a CPU that works all the time, this share goes to samples.
            share = cost["added_ns"] / (cost["base_ns"] + cost["added_ns"])
            cost["sample_ns"] = share * 1e9 / cases.SAMPLED_HZ
            cost["percent"] = share * 100 * cases.HZ / cases.SAMPLED_HZ
        at_hz = [word.replace(str(cases.SAMPLED_HZ), str(cases.HZ)) for word in commands["ours"]]
        with self.work(case) as work:
            tool = Tool(at_hz)
            if tool.settle():
                before = tool.cpu_ns()
                _, _, elapsed = work.do(30)
                costs["ours"]["tool_percent"] = (tool.cpu_ns() - before) / elapsed * 100
                tool.stop_ms()
        return costs

    def stream(self, rate):
        """opensnoop while all CPUs open files, so many a second in all or (None) as fast as they can."""
        cpus = sorted(os.sched_getaffinity(1))[:2]
        with tempfile.TemporaryFile(dir="/dev/shm") as rows:
            tool = Tool(self.ours("opensnoop", []), stdout=rows, pinned=False)
            if not tool.settle():
                return None
            works = [Work("open", 500, self.file, cpu) for cpu in cpus]
            before = tool.cpu_ns()
            batches = int((rate or 800_000) * 3 / 500 / len(works))
            for work in works:
                work.begin(batches, int(500 * len(works) / rate * 1e9) if rate else 0)
            ends = [work.end() for work in works]
            spent = tool.cpu_ns() - before
            for work in works:
                work.__exit__()
            tool.stop_ms()
            sent, elapsed = sum(end[1] for end in ends), max(end[2] for end in ends)
            rows.seek(0)
            arrived = sum(line.endswith(b"/bench-file\n") for line in rows)
        return {
            "sent": sent, "arrived": arrived, "lost": tool.lost(), "per_second": sent / elapsed * 1e9,
            "tool_percent": spent / elapsed * 100,
        }

    def scale(self, *words):
        """One measurement of tests/src/bin/scale.rs."""
        out = subprocess.run([f"{self.release}/scale", *map(str, words)], capture_output=True, text=True)
        return json.loads(out.stdout) if out.returncode == 0 else {"error": out.stderr.strip()}

    def crowd(self, tools):
        """Start, end and peak of tools beside so many processes."""
        found = {}
        with Work("crowd", 100) as crowd:
            crowd.do(cases.PROCESSES // 100)
            for tool in tools:
                found[tool] = self.once(tool, cases.LIVES[tool][0])
        return found

    def once(self, tool, args):
        results = []
        with Work("malloc", 1) as target:
            command = fill(self.ours(tool, args), target)
            probe = Tool(command)
            attachments = probe.settle()
            probe.stop_ms()
            for _ in range(3):
                running = Tool(command)
                attached = running.attached_after_ms(attachments)
                time.sleep(0.3)
                results.append((attached, *running.stop_peak()))
        attached, exit_ms, peak = zip(*results)
        return {"attached_ms": low(attached), "exit_ms": low(exit_ms), "peak_kib": max(peak)}

    def hoard(self):
        """memleak of a process that keeps a million allocations."""
        with Work("hoard", 1000) as work, tempfile.TemporaryFile(dir="/dev/shm") as rows:
            command = self.ours("memleak", ["-p", str(work.process.pid), "-o", "0", "--json", "3600"])
            tool = Tool(command, stdout=rows)
            if not tool.settle():
                return None
            alloc_ns, _, _ = work.do(cases.ALLOCATIONS // 1000)
            map_bytes, _ = bpf.map_bytes(tool.pid, cases.CPUS)
            exit_ms, peak = tool.stop_peak()
            rows.seek(0)
            reported = 0
            for line in rows:
                reported += sum(stack["count"] for stack in json.loads(line).get("stacks", []))
        return {
            "alloc_ns": alloc_ns, "reported": reported, "lost": tool.lost(), "exit_ms": exit_ms, "peak_kib": peak,
            "map_bytes": map_bytes,
        }


@contextlib.contextmanager
def idle_process():
    """The id of a process that does nothing."""
    with subprocess.Popen(["sleep", "infinity"]) as process:
        try:
            yield process.pid
        finally:
            process.kill()


@contextlib.contextmanager
def empty_cgroups():
    """The path of a cgroup of v2 with two in it, as --cgroup takes it; none where there is no v2 hierarchy."""
    with open("/proc/self/mounts") as mounts:
        roots = [fields[1] for fields in map(str.split, mounts) if fields[2] == "cgroup2"]
    if not roots:
        yield None
        return
    paths = [f"{roots[0]}/corescope-bench{below}" for below in ("", "/one", "/two")]
    for path in paths:
        os.makedirs(path, exist_ok=True)
    try:
        yield paths[0]
    finally:
        for path in reversed(paths):
            os.rmdir(path)


def fill(command, work):
    """The command for the process that works and its C library."""
    values = {"{pid}": str(work.process.pid)}
    if any("{libc}" in word for word in command):
        with open(f"/proc/{work.process.pid}/maps") as maps:
            path = next(line.split()[-1] for line in maps if "/libc.so" in line)
        # A chroot sees it through /proc; by another name, because libbpf-tools end a path at its first dash.
        values["{libc}"] = "/tmp/bench_libc"
        link = f"{command[1]}/tmp/bench_libc"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(link)
        os.symlink(f"/proc/{work.process.pid}/root{path}", link)
    for name, value in values.items():
        command = [word.replace(name, value) for word in command]
    return command


def one_round(command, work, case):
    """One measurement, None where the machine was not quiet, or "dead" where the tool does not run."""
    first, _, _ = work.do(case.batches)
    tool = Tool(command)
    if not tool.settle():
        return "dead"
    before = tool.cpu_ns()
    measured, events, _ = work.do(case.batches)
    spent = tool.cpu_ns() - before
    tool.stop_ms()
    second, _, _ = work.do(case.batches)
    if abs(first - second) > AGREE * min(first, second):
        return None
    base = (first + second) / 2
    return {"base_ns": base, "added_ns": measured - base, "tool_ns": spent / events, "lost": tool.lost()}
