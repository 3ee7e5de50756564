"""The licences of all that is linked into the static corescope, for the packages: licences.py TARGET [--without-gpl] > FILE.

The crates are those that Cargo.lock has linked in, not what only builds them. Where one may be used under MIT or BSD
terms, those are taken. A crate or library without a licence text is an error. Debian wants the
texts of the GNU GPL to be those that every system of its has; --without-gpl names them instead.
"""

import json
import pathlib
import re
import subprocess
import sys

TOP = pathlib.Path(__file__).resolve().parents[2]
RULE = "-" * 78


def read(path):
    return path.read_text(encoding="utf-8", errors="replace").strip("\n")


def metadata(target):
    command = ["cargo", "metadata", "--format-version=1", "--locked", f"--filter-platform={target}"]
    return json.loads(subprocess.run(command, cwd=TOP, check=True, capture_output=True, text=True).stdout)


def linked(meta):
    """The packages whose code is in the file: normal dependencies of `tools`, but macros, which run in the compiler."""
    packages = {package["id"]: package for package in meta["packages"]}
    nodes = {node["id"]: node for node in meta["resolve"]["nodes"]}
    seen = set()
    todo = [package["id"] for package in meta["packages"] if package["name"] == "tools" and package["source"] is None]
    while todo:
        at = todo.pop()
        if at in seen or any("proc-macro" in target["kind"] for target in packages[at]["targets"]):
            continue
        seen.add(at)
        for dependency in nodes[at]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                todo.append(dependency["pkg"])
    return sorted((packages[at] for at in seen), key=lambda package: (package["name"], package["version"]))


def texts(package):
    """The licence files of a crate, without those of terms that are not taken."""
    folder = pathlib.Path(package["manifest_path"]).parent
    files = sorted(path for path in folder.iterdir() if path.is_file() and re.match(r"(licen[cs]e|copying|copyright|unlicense)", path.name, re.I))
    alternatives = re.split(r"\s+OR\s+|/", package["license"] or "")
    if len(alternatives) > 1:
        taken = [path for path in files if re.search(r"mit|bsd|zlib", path.name, re.I)]
        files = taken or files
    return [read(path) for path in files]


def libraries(meta):
    """What is linked in that is no crate: name, licence, texts."""
    sys_crate = next(package for package in meta["packages"] if package["name"] == "libbpf-sys")
    source = pathlib.Path(sys_crate["manifest_path"]).parent
    lgpl21 = read(source / "libbpf/LICENSE.LGPL-2.1")
    sysroot = subprocess.run(["rustc", "--print", "sysroot"], check=True, capture_output=True, text=True).stdout.strip()
    rust = pathlib.Path(sysroot) / "share/doc/rust"
    # A distribution's own Rust keeps its texts elsewhere; the terms of this crate are the same.
    like = next(package for package in meta["packages"] if package["name"] == "anyhow")
    mit = next(path for path in (rust / "licenses/MIT.txt", pathlib.Path(like["manifest_path"]).parent / "LICENSE-MIT") if path.exists())
    exception = [read(path) for path in (rust / "licenses/GCC-exception-3.1.txt",) if path.exists()]
    gpl3 = read(source / "elfutils/COPYING")
    if "--without-gpl" in sys.argv:
        gpl3 = "On Debian systems the text of the GNU General Public License lies in /usr/share/common-licenses/GPL-3."
    return [
        ("libbpf", "LGPL-2.1-only OR BSD-2-Clause", [read(source / "libbpf/LICENSE.BSD-2-Clause")]),
        ("libelf of elfutils", "LGPL-3.0-or-later OR GPL-2.0-or-later", [read(source / "elfutils/COPYING-LGPLV3"), gpl3]),
        ("zlib", "Zlib", [read(source / "zlib/LICENSE")]),
        ("GNU C library", "LGPL-2.1-or-later", [lgpl21]),
        ("libgcc (the unwinder)", "GPL-3.0-or-later WITH GCC-exception-3.1", [gpl3, *exception]),
        ("the Rust standard library", "MIT OR Apache-2.0", [read(mit)]),
    ]


def main():
    meta = metadata(sys.argv[1])
    crates = [package for package in linked(meta) if package["source"] is not None]
    entries = libraries(meta) + [(f"{p['name']} {p['version']}", p["license"] or "see its text", texts(p)) for p in crates]
    # Each text once, with all that it is the licence of.
    unique = {}
    for name, licence, files in entries:
        if not files:
            sys.exit(f"no licence text comes with {name} ({licence})")
        for text in files:
            unique.setdefault(" ".join(text.split()), (text, []))[1].append(name)

    print("corescope: diagnostic tools for Linux on eBPF\n")
    print("Copyright (c) 2026, the corescope authors. Licence: BSD-2-Clause; the BPF programs also GPL-2.0.\n")
    print(read(TOP / "LICENSE"))
    print(f"\n{RULE}\nLinked into /usr/sbin/corescope, under the terms below:\n")
    for name, licence, _ in entries:
        print(f"    {name:<34} {licence}")
    print(
        "\nlibelf and the GNU C library are linked statically under the GNU Lesser General Public License. Whoever wants\n"
        "to link corescope with other versions of them can do so: its source is complete, and scripts/package builds it\n"
        "with the libraries that are there. On Debian systems the GNU licences lie in /usr/share/common-licenses."
    )
    for text, names in unique.values():
        print(f"\n{RULE}\n{', '.join(dict.fromkeys(names))}\n{RULE}\n\n{text}")


if __name__ == "__main__":
    main()
