"""Tools of others to compare with: libbpf-tools, bpftrace and perf of Debian sid, in a directory of its own."""
import atexit
import os
import re
import shutil
import subprocess
import sys

PACKAGES = ["libbpf-tools", "bpftrace", "linux-perf"]
KINDS = ("libbpf-tools", "bpftrace", "perf")

HOW = """To compare with libbpf-tools, bpftrace and perf of Debian sid:

    apt-get install debootstrap
    scripts/bench --get-peers DIR      # about 1.5 GB below DIR; nothing is installed on this system
    scripts/bench --peers DIR

They run in a chroot there, with this system's /proc, /sys and /dev mounted below DIR for as long as the run takes.
Remove DIR to be rid of them."""


def get(directory):
    if not shutil.which("debootstrap"):
        sys.exit("bench: needs debootstrap (apt-get install debootstrap)")
    if not os.path.exists(f"{directory}/usr/bin/apt-get"):
        subprocess.run(["debootstrap", "--variant=minbase", "sid", directory, "http://deb.debian.org/debian"], check=True)
    install = ["chroot", directory, "apt-get", "install", "-y", "--no-install-recommends"]
    subprocess.run(install + PACKAGES, check=True)


class Peers:
    """Those of a directory; none where there is no directory."""

    def __init__(self, directory):
        self.directory = directory and os.path.realpath(directory)
        if not self.directory:
            return
        if not os.path.exists(f"{self.directory}/usr/bin"):
            sys.exit(f"bench: no peers in {directory}\n\n{HOW}")
        for source in ("proc", "sys", "dev"):
            self.mount(["--rbind", f"/{source}"], source)
            subprocess.run(["mount", "--make-rslave", f"{self.directory}/{source}"], check=True)
        if not os.path.exists(f"{self.directory}/sys/kernel/tracing/events"):
            self.mount(["-t", "tracefs", "tracefs"], "sys/kernel/tracing")

    def mount(self, what, below):
        target = f"{self.directory}/{below}"
        if not os.path.ismount(target):
            subprocess.run(["mount", *what, target], check=True)
            atexit.register(subprocess.run, ["umount", "--recursive", "--lazy", target])

    def command(self, kind, words):
        """The command line of a peer, or None where it is not there."""
        if not self.directory or not words:
            return None
        program = {"libbpf-tools": f"/usr/sbin/{words[0]}-libbpf", "bpftrace": "/usr/bin/bpftrace", "perf": "/usr/bin/perf"}[kind]
        if not os.path.exists(self.directory + program):
            return None
        return ["chroot", self.directory, program, *(words[1:] if kind == "libbpf-tools" else words)]

    def size(self, tool):
        path = f"{self.directory}/usr/sbin/{tool}-libbpf"
        return os.path.getsize(path) if self.directory and os.path.exists(path) else None

    def versions(self):
        if not self.directory:
            return {}
        query = ["chroot", self.directory, "dpkg-query", "-W", "-f", "${Package} ${Version}\n", *PACKAGES]
        lines = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
        versions = dict(line.split(" ", 1) for line in lines if " " in line)
        short = lambda package: re.split(r"[+~-]", versions.get(package, "?").split(":")[-1])[0]
        return {kind: short(package) for kind, package in zip(KINDS, PACKAGES) if package in versions}
