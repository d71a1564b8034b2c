"""How much a text repeats itself: two measures that tell a steered text from a broken one."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Sequence
from itertools import pairwise


def bigram_repetition(tokens: Sequence[Hashable]) -> float:
    """Share of the pairs of neighbouring tokens that have stood earlier in the text.

    Args:
        tokens: Ids or words, in order.

    Returns:
        0 where no pair comes twice, near 1 for a loop; 0 for a text with no pair.

    >>> bigram_repetition("wait , hold on . wait , hold on .".split())
    0.4444444444444444
    """
    found = list(pairwise(tokens))
    return 1 - len(set(found)) / len(found) if found else 0.0


def compression_ratio(text: str) -> float:
    """Compressed size of a text as a share of its size, both in bytes, with zlib at its highest level.

    Short texts compress badly (the ratio may exceed 1), so compare texts of similar length.

    Args:
        text: Any text.

    Returns:
        The ratio: small for a text that repeats itself; 1 for an empty one.

    >>> compression_ratio("wait, hold on. " * 20) < 0.1 < compression_ratio("71 - 31 - 12 = 40 - 12 = 28")
    True
    """
    data = text.encode()
    return len(zlib.compress(data, 9)) / len(data) if data else 1.0
