"""TPU generations and slices: what a chip can do at most, by Google's public figures."""

from __future__ import annotations

import dataclasses
import math

_PAGES = "https://docs.cloud.google.com/tpu/docs/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One generation.

    Attributes:
        flops: Operations per second of matrix products in bfloat16.
        memory: GiB that a program may take, as the compiler says; a little less than the chip has.
        bandwidth: Bytes per second between a chip and its memory.
        links: Bytes per second over all links of a chip, both directions together.
        dimensions: Of the grid that chips stand in.
        source: Where Google states `flops`, `bandwidth` and `links`.
    """

    flops: float
    memory: float
    bandwidth: float
    links: float
    dimensions: int
    source: str


CHIPS = {
    "v5e": Chip(
        flops=197e12, memory=15.75, bandwidth=819e9, links=400e9, dimensions=2, source=f"{_PAGES}v5e, read in 2026-11"
    ),
    "v5p": Chip(
        flops=459e12, memory=95.74, bandwidth=2765e9, links=1200e9, dimensions=3, source=f"{_PAGES}v5p, read in 2026-11"
    ),
    "v6e": Chip(
        flops=918e12, memory=31.25, bandwidth=1638e9, links=800e9, dimensions=2, source=f"{_PAGES}v6e, read in 2026-11"
    ),
}
"""Generation -> its figures."""

SLICES = {
    "v5e": ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8"),
    "v6e": ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
}
"""Generation -> slices that are proposed, from small to large."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice.

    Attributes:
        generation: A key of `CHIPS`.
        shape: Chips along each dimension.
    """

    generation: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str) -> Topology:
        """Reads a slice's name.

        Args:
            name: Such as `"v5e:2x4"` or `"v5p:2x2x1"`.

        Returns:
            The slice.

        Raises:
            ValueError: The generation is not known, or its chips do not stand so.

        Examples:
            >>> Topology.of("v5e:2x4").chips
            8
            >>> Topology.of("v5p:2x2")
            Traceback (most recent call last):
            ValueError: topology v5p:2x2: write three numbers of chips, as in v5p:2x2x1
        """
        generation, _, grid = name.partition(":")
        if generation not in CHIPS:
            raise ValueError(
                f"topology {name}: there is no generation {generation!r} here; there are {', '.join(CHIPS)}, as in "
                "v5e:2x4"
            )
        sides = grid.split("x")
        count = CHIPS[generation].dimensions
        if len(sides) != count or not all(side.isdecimal() and int(side) for side in sides):
            words = {2: "two", 3: "three"}[count]
            raise ValueError(
                f"topology {name}: write {words} numbers of chips, as in {generation}:{SLICES[generation][0]}"
            )
        return cls(generation, tuple(map(int, sides)))

    def __str__(self) -> str:
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """How many chips there are."""
        return math.prod(self.shape)

    @property
    def chip(self) -> Chip:
        """What each of them can do."""
        return CHIPS[self.generation]
