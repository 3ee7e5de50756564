#!/usr/bin/env python3
"""Carve the raw BTF out of a kernel image of any architecture, without booting it: carve_btf.py IMAGE OUT"""
import struct
import subprocess
import sys
import zlib

MAGICS = ((b"\x28\xb5\x2f\xfd", ["zstd", "-dcq"]), (b"\xfd7zXZ\x00", ["xz", "-dcq", "--single-stream"]), (b"\x1f\x8b\x08", None))


def find_btf(data):
    """The first blob that has a plausible BTF header (struct btf_header of include/uapi/linux/btf.h)."""
    at = -1
    while (at := data.find(b"\x9f\xeb\x01", at + 1)) >= 0:
        if at + 24 > len(data):
            return None
        _, _, _, header, type_off, type_len, str_off, str_len = struct.unpack("<HBBIIIII", data[at : at + 24])
        end = at + header + str_off + str_len
        if header == 24 and type_off == 0 and str_off == type_len and type_len > 100_000 and end <= len(data):
            return data[at:end]
    return None


def payloads(data):
    """The image itself, then everything in it that decompresses."""
    yield data
    for magic, command in MAGICS:
        at = -1
        while (at := data.find(magic, at + 1)) >= 0:
            if command:
                yield subprocess.run(command, input=data[at:], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
                continue
            try:
                yield zlib.decompressobj(31).decompress(data[at:])
            except zlib.error:
                pass


image = open(sys.argv[1], "rb").read()
for payload in payloads(image):
    if len(payload) > 1 << 20 and (btf := find_btf(payload)):
        open(sys.argv[2], "wb").write(btf)
        break
else:
    sys.exit(f"{sys.argv[1]}: no BTF found")
