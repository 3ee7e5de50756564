"""Tools that run, ours or a peer's, and the work that they watch."""
import os
import pty
import re
import select
import signal
import statistics
import subprocess
import tempfile
import time

PATIENCE = 30


class Tool:
    """A tool that runs, what it prints discarded."""

    def __init__(self, command, stdout=subprocess.DEVNULL, pinned=True):
        self.said = tempfile.TemporaryFile()
        self.begin = time.monotonic()
        self.process = subprocess.Popen(
            [*(["taskset", "-c", "0"] if pinned else []), *command], stdin=subprocess.DEVNULL, stdout=stdout, stderr=self.said
        )
        self.pid = self.process.pid

    def attachments(self):
        """How many BPF links and perf events it holds: the sign that it is attached."""
        count = 0
        try:
            for fd in os.listdir(f"/proc/{self.pid}/fd"):
                target = os.readlink(f"/proc/{self.pid}/fd/{fd}")
                count += "bpf" in target and "link" in target or "perf_event" in target
        except OSError:
            pass
        return count

    def settle(self):
        """Wait until it is attached: until what it holds has not changed for a while. 0 where it does not run."""
        before, since = 0, time.monotonic()
        while not before and time.monotonic() - since < PATIENCE / 2 or time.monotonic() - since < 0.7:
            time.sleep(0.02)
            now = self.attachments()
            if now != before:
                before, since = now, time.monotonic()
            if self.process.poll() is not None:
                return 0
        if not before:
            self.kill()
        return before

    def attached_after_ms(self, attachments):
        while self.attachments() < attachments and time.monotonic() - self.begin < PATIENCE:
            pass
        return (time.monotonic() - self.begin) * 1000

    def peak_kib(self):
        try:
            with open(f"/proc/{self.pid}/status") as status:
                return next((int(line.split()[1]) for line in status if line.startswith("VmHWM:")), 0)
        except OSError:
            return 0

    def cpu_ns(self):
        """CPU time of all its threads so far."""
        total = 0
        for task in os.listdir(f"/proc/{self.pid}/task"):
            with open(f"/proc/{self.pid}/task/{task}/schedstat") as stat:
                total += int(stat.read().split()[0])
        return total

    def stop_ms(self):
        """Interrupt it and wait for its end."""
        begin = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
        return (time.monotonic() - begin) * 1000

    def stop_peak(self):
        """(ms, KiB) of an end with much to report: the peak is looked for while it does so."""
        begin, peak = time.monotonic(), 0
        self.process.send_signal(signal.SIGINT)
        while self.process.poll() is None and time.monotonic() - begin < PATIENCE:
            peak = max(peak, self.peak_kib())
        self.kill()
        return (time.monotonic() - begin) * 1000, peak

    def kill(self):
        self.process.kill()
        self.process.wait()

    def lost(self):
        """What it said that it lost: ours in one line that begins with `lost:`, others in words like `Lost 12 events`."""
        self.said.seek(0)
        total = 0
        for line in self.said.read().decode(errors="replace").splitlines():
            if line.startswith("lost: "):
                total += sum(map(int, re.findall(r"(?:^lost: |, )(\d+) ", line)))
            elif found := re.search(r"\blost:? (\d+)", line, re.IGNORECASE):
                total += int(found[1])
        return total


def first_row_ms(command, sign):
    """From the start of a tool to its first line with `sign`, on a terminal."""
    master, terminal = pty.openpty()
    tool = Tool(command, stdout=terminal)
    os.close(terminal)
    text, found = b"", None
    while found is None and time.monotonic() - tool.begin < 10:
        if not select.select([master], [], [], 1)[0]:
            continue
        try:
            text += os.read(master, 65536)
        except OSError:
            break
        if sign in text:
            found = (time.monotonic() - tool.begin) * 1000
    tool.process.send_signal(signal.SIGINT)
    # Who writes to a terminal that nobody reads does not end.
    while tool.process.poll() is None and time.monotonic() - tool.begin < 2 * PATIENCE:
        if select.select([master], [], [], 0.05)[0]:
            try:
                os.read(master, 65536)
            except OSError:
                pass
    tool.kill()
    os.close(master)
    return found


class Work:
    """A process of tests/workloads/bench.c, which works on request."""

    program = None

    def __init__(self, kind, size, file=None, cpu=None):
        environment = dict(os.environ, **({} if cpu is None else {"BENCH_CPU": str(cpu)}))
        self.process = subprocess.Popen(
            [Work.program, kind, str(size), *([file] if file else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )
        self.process.stdout.readline()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def begin(self, batches, period_ns=0):
        self.process.stdin.write(f"{batches} {period_ns}\n")
        self.process.stdin.flush()

    def end(self):
        """(ns per event in quick batches, events, ns that all took)."""
        low, _, events, elapsed = self.process.stdout.readline().split()
        return float(low), int(events), int(elapsed)

    def do(self, batches):
        self.begin(batches)
        return self.end()


def median(values):
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else None


def low(values):
    """The lower quartile: what else the machine does can only add to a time."""
    values = sorted(value for value in values if value is not None)
    return values[len(values) // 4] if values else None
