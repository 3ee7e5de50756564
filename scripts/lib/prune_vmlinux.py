#!/usr/bin/env python3
"""Prune a bpftool-made vmlinux.h to what BPF sources mention: prune_vmlinux.py FULL OUT SOURCE...

Kept: every type or enumerator whose name occurs in the sources, what those hold by value, and the targets of pointer
members whose name occurs in the sources. Everything else that is only pointed to becomes a forward declaration.
"""
import re
import sys

full, out, sources = sys.argv[1], sys.argv[2], sys.argv[3:]
blocks = open(full).read().split("\n\n")
tags, typedefs, enumerators, preprocessor = {}, {}, {}, []


def typedef_name(text):
    if "{" in text:
        found = re.search(r"(\w+)(\s*\[[^\]]*\])*;\s*$", text)
    else:
        found = (
            re.search(r"\(\*+(\w+)\)\s*[\(\[]", text)
            or re.search(r"(\w+)\(", text)
            or re.search(r"(\w+)(\s*\[[^\]]*\])*;\s*$", text)
        )
    return found.group(1) if found else None


for index, block in enumerate(blocks):
    text = block.strip()
    if tag := re.match(r"(struct|union|enum) (\w+) \{", text):
        tags[f"{tag.group(1)} {tag.group(2)}"] = index
    if text.startswith("typedef ") and (name := typedef_name(text)):
        typedefs[name] = index
    if re.match(r"(typedef )?enum\b", text) and "{" in text:
        for name in re.findall(r"^\s*(\w+) = ", text, re.M):
            enumerators[name] = index
    if text.startswith("#") or not text:
        preprocessor.append(index)


def references(block):
    """(blocks needed by value, tags only pointed to)"""
    need, forward = set(), set()
    for line in block.split("\n"):
        depth = 0
        for token in re.finditer(r"(struct|union|enum) (\w+)(\s*\**)|[()]|(\w+)", line):
            if token.group(0) in "()":
                depth += 1 if token.group(0) == "(" else -1
            elif token.group(1):
                key = f"{token.group(1)} {token.group(2)}"
                if token.group(1) != "enum" and ("*" in token.group(3) or depth > 0):
                    forward.add(key)
                elif key in tags:
                    need.add(tags[key])
                else:
                    forward.add(key)
            elif token.group(4) in typedefs:
                need.add(typedefs[token.group(4)])
    return need, forward


# libbpf's bpf_helper_defs.h uses these.
words = {"__be16", "__be32", "__wsum"}
for path in sources:
    words |= set(re.findall(r"[A-Za-z_]\w*", re.sub(r"/\*.*?\*/|//[^\n]*", " ", open(path).read(), flags=re.S)))
todo = [index for key, index in tags.items() if key.split()[1] in words]
todo += [index for table in (typedefs, enumerators) for name, index in table.items() if name in words]
keep, forwards = set(preprocessor), set()
while todo:
    index = todo.pop()
    if index in keep:
        continue
    keep.add(index)
    need, forward = references(blocks[index])
    forwards |= forward
    for member in re.finditer(r"(struct|union) (\w+) \*+(\w+)", blocks[index]):
        key = f"{member.group(1)} {member.group(2)}"
        if member.group(3) in words and key in tags:
            need.add(tags[key])
    todo += need - keep

result, declared = [], False
for index in sorted(keep):
    if not declared and not blocks[index].strip().startswith("#"):
        result.append("\n".join(f"{key};" for key in sorted(forwards) if not key.startswith("enum")))
        declared = True
    result.append(blocks[index])
open(out, "w").write("\n\n".join(result))
print(f"{out}: {len(keep)} of {len(blocks)} declarations", file=sys.stderr)
