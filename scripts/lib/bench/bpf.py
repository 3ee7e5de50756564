"""The kernel's accounts of BPF programs and maps: bpf(2) by hand, and what fdinfo says."""
import contextlib
import ctypes
import os
import platform
import struct

SYS_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
# include/uapi/linux/bpf.h
PROG_LOAD, PROG_GET_FD_BY_ID, OBJ_GET_INFO_BY_FD, RAW_TRACEPOINT_OPEN, ENABLE_STATS = 5, 13, 15, 17, 32
RAW_TRACEPOINT = 17
PER_CPU_MAPS = {5, 6, 10}
NAME_OFFSET, NAME_SIZE, INFO_SIZE = 64, 16, 232


def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes, max(len(attributes), 120))
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(SYS_BPF, command, buffer, len(buffer))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf({command}): {os.strerror(ctypes.get_errno())}")
    return result


@contextlib.contextmanager
def descriptor(fd):
    try:
        yield fd
    finally:
        os.close(fd)


def statistics():
    """Run-time statistics of all programs, as long as the context lasts."""
    return descriptor(bpf(ENABLE_STATS, struct.pack("I", 0)))


@contextlib.contextmanager
def empty_program(tracepoint):
    """A program that does nothing, at a raw tracepoint; its descriptor."""
    code = ctypes.create_string_buffer(struct.pack("<QQ", 0xB7, 0x95), 16)
    license = ctypes.create_string_buffer(b"Dual BSD/GPL")
    name = ctypes.create_string_buffer(tracepoint.encode())
    load = struct.pack("IIQQ", RAW_TRACEPOINT, 2, ctypes.addressof(code), ctypes.addressof(license))
    with descriptor(bpf(PROG_LOAD, load)) as program:
        with descriptor(bpf(RAW_TRACEPOINT_OPEN, struct.pack("QI", ctypes.addressof(name), program))):
            yield program


def program_name(id):
    info = ctypes.create_string_buffer(INFO_SIZE)
    with descriptor(bpf(PROG_GET_FD_BY_ID, struct.pack("I", id))) as program:
        bpf(OBJ_GET_INFO_BY_FD, struct.pack("IIQ", program, INFO_SIZE, ctypes.addressof(info)))
    return info.raw[NAME_OFFSET : NAME_OFFSET + NAME_SIZE].split(b"\0")[0].decode()


def fdinfo(pid):
    """What the kernel says of each descriptor of a process, by field."""
    for fd in os.listdir(f"/proc/{pid}/fdinfo"):
        try:
            with open(f"/proc/{pid}/fdinfo/{fd}") as info:
                yield dict(line.rstrip("\n").split(":\t", 1) for line in info if ":\t" in line)
        except OSError:
            continue


def programs(pid):
    """(runs, nanoseconds) of each program that a process holds, by id."""
    found = {}
    for fields in fdinfo(pid):
        if "run_time_ns" in fields:
            found[int(fields["prog_id"])] = (int(fields["run_cnt"]), int(fields["run_time_ns"]))
    return found


def map_bytes(pid, cpus):
    """Kernel memory of the maps that a process holds, here and as it would be with so many possible CPUs."""
    here, there, seen = 0, 0, set()
    for fields in fdinfo(pid):
        if "map_id" not in fields or fields["map_id"] in seen:
            continue
        seen.add(fields["map_id"])
        here += int(fields["memlock"])
        if int(fields["map_type"]) in PER_CPU_MAPS:
            there += int(fields["max_entries"]) * (int(fields["value_size"]) + 7 & ~7) * (cpus - possible_cpus())
    return here, here + there


def possible_cpus():
    with open("/sys/devices/system/cpu/possible") as ranges:
        pairs = [part.split("-") for part in ranges.read().strip().split(",")]
    return sum(int(pair[-1]) - int(pair[0]) + 1 for pair in pairs)
