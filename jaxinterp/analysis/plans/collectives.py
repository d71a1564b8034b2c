"""What chips send to each other, read off a compiled program."""

from __future__ import annotations

import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
_CALL = re.compile(r"= (.+?) (" + "|".join(KINDS) + r")(-start)?\(")
_SHAPE = re.compile(r"\b(pred|bf16|[suf]\d+\w*)\[([\d,]*)\]")
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\])")
_FUSED = "all-reduce-scatter"


def count(text: str) -> dict[str, tuple[float, float]]:
    r"""Counts what a program sends.

    Args:
        text: The compiled program, as `as_text` gives it; what stands in a loop counts once.

    Returns:
        Kind -> how many there are, and the bytes that each chip sends in all of them. With `g` chips that take part and
        `n` bytes, an all-reduce sends `2 n (g - 1) / g`, a gather, scatter or exchange `n (g - 1) / g` of the whole,
        and a permutation `n`.

    Examples:
        >>> line = "  %r = bf16[8,128]{1,0} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add"
        >>> count("ENTRY %main (x: bf16[8,128]) -> bf16[8,128] {\\n" + line + "\\n}")
        {'all-reduce': (1.0, 3072.0)}
    """
    found: dict[str, list[float]] = {}
    computation = ""
    for line in text.splitlines():
        begins = None if line.startswith(" ") else _COMPUTATION.match(line)
        computation = begins.group(1) if begins else computation
        call = _CALL.search(line)
        if call is None:
            continue
        shapes, kind, start = call.groups()
        sent = _bytes(shapes, kind, bool(start), _chips(line))
        if _FUSED in computation:
            kind, sent = "reduce-scatter", sent / 2
        entry = found.setdefault(kind, [0.0, 0.0])
        entry[0] += 1
        entry[1] += sent
    return {kind: (found[kind][0], found[kind][1]) for kind in KINDS if kind in found}


def _chips(line: str) -> int:
    groups = _GROUPS.search(line)
    if groups is None:
        return 2
    return len(groups.group(1).split(",")) if groups.group(1) else int(groups.group(2))


def _bytes(shapes: str, kind: str, is_start: bool, chips: int) -> float:
    sizes = [
        _width(kind_of) * math.prod(map(int, filter(None, axes.split(",")))) for kind_of, axes in _SHAPE.findall(shapes)
    ]
    if is_start and kind in ("all-gather", "collective-permute"):
        sizes = sizes[len(sizes) // 2 :] if kind == "all-gather" else sizes[1:2]
    whole = float(sum(sizes))
    if kind == "collective-permute":
        return whole
    if kind == "reduce-scatter":
        whole *= chips
    return whole * (chips - 1) / chips * (2 if kind == "all-reduce" else 1)


def _width(dtype: str) -> float:
    bits = re.search(r"\d+", dtype)
    return int(bits.group()) / 8 if bits else 1.0
