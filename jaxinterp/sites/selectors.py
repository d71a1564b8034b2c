"""Selectors: which taps of a model are meant, and which heads or units there.

Each site of `jaxinterp.axes.SITES` is a function of layer numbers; without any, or with `...`, it means all layers.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from types import EllipsisType

from penzai import pz

from jaxinterp import axes
from jaxinterp.sites import taps


@dataclasses.dataclass(frozen=True)
class Site:
    """A choice of taps, and of indices on one axis there.

    Attributes:
        name: Site name, a key of `jaxinterp.axes.SITES`.
        layers: Block indices, negative ones counted from the end; `None` for all.
        axis: Axis on which `indices` choose, if any.
        indices: Chosen heads, key-value heads, units or vocabulary entries; empty for all.
    """

    name: str
    layers: tuple[int, ...] | None = None
    axis: str | None = None
    indices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in axes.SITES:
            near = difflib.get_close_matches(self.name, axes.SITES, n=1)
            hint = f"did you mean {near[0]!r}" if near else f"the sites are {', '.join(axes.SITES)}"
            raise ValueError(f"there is no site {self.name!r}; {hint}")

    def __str__(self) -> str:
        where = "" if self.layers is None else ".".join(f"L{layer}" for layer in self.layers) + "."
        chosen = f"[{self.axis} {','.join(map(str, self.indices))}]" if self.indices else ""
        return f"{where}{self.name}{chosen}"

    def addresses(self, body: pz.nn.Layer) -> tuple[taps.Address, ...]:
        """The taps of a tree that are meant.

        Args:
            body: Model tree.

        Returns:
            Their addresses, in the order asked for.

        Raises:
            ValueError: The tree has no such tap; the sentence lists those it has.
        """
        existing = tuple(taps.find_taps(body))
        here = [address for address in existing if address[0] == self.name]
        depth = 1 + max((layer for _, layer in existing if layer is not None), default=-1)
        if self.name in axes.UNLAYERED:
            wanted = [(self.name, None)]
        elif self.layers is None:
            wanted = here or [(self.name, None)]
        else:
            wanted = [(self.name, layer + depth if layer < 0 else layer) for layer in self.layers]
        missing = [address for address in wanted if address not in here]
        if missing:
            others = f"choose among its sites: {taps.describe(existing)}" if existing else "nor any other site"
            raise ValueError(f"this model has no {taps.describe(missing)}; {others}")
        return tuple(wanted)


SiteFunction = Callable[..., Site]


def _site_function(name: str) -> SiteFunction:
    def select(*layers: int | EllipsisType) -> Site:
        everywhere = not layers or any(layer is ... for layer in layers)
        chosen = None if everywhere else tuple(int(layer) for layer in layers if not isinstance(layer, EllipsisType))
        return Site(name, chosen)

    names, meaning = axes.SITES[name]
    select.__name__ = select.__qualname__ = name
    select.__doc__ = f"""The site `{name}`: {meaning}.

    Args:
        *layers: Block indices, negative ones from the end; none or `...` for all.

    Returns:
        A selector; the array there is [{", ".join(names)}].
    """
    return select


embed = _site_function("embed")
resid_pre = _site_function("resid_pre")
ln_scale = _site_function("ln_scale")
q = _site_function("q")
k = _site_function("k")
v = _site_function("v")
attn_scores = _site_function("attn_scores")
pattern = _site_function("pattern")
z = _site_function("z")
head_out = _site_function("head_out")
attn_out = _site_function("attn_out")
resid_mid = _site_function("resid_mid")
ln_scale_mlp = _site_function("ln_scale_mlp")
mlp_gate = _site_function("mlp_gate")
mlp_pre = _site_function("mlp_pre")
mlp_post = _site_function("mlp_post")
mlp_out = _site_function("mlp_out")
resid_post = _site_function("resid_post")
ln_final = _site_function("ln_final")
logits_site = _site_function("logits")


def head(layer: int, *heads: int) -> Site:
    """Attention heads of one layer, at their weighted values `z`.

    Zeroing `z` removes exactly what the head adds to the residual stream.

    Args:
        layer: Block index.
        *heads: Head indices within the block.

    Returns:
        A selector; `head(17, 10)` is the head printed `L17.H10`.
    """
    return Site("z", (layer,), axes.HEAD, _chosen("head", heads))


def unit(layer: int, *units: int) -> Site:
    """MLP units of one layer, at their activations `mlp_post`.

    Args:
        layer: Block index.
        *units: Unit indices within the block.

    Returns:
        A selector.
    """
    return Site("mlp_post", (layer,), axes.NEURONS, _chosen("unit", units))


def _chosen(what: str, indices: Iterable[int]) -> tuple[int, ...]:
    chosen = tuple(int(index) for index in indices)
    if not chosen:
        raise ValueError(f"{what}() needs at least one {what} index after the layer")
    return chosen


def head_name(layer: int, index: int) -> str:
    """Prints a head as the field does.

    Examples:
        >>> head_name(17, 10)
        'L17.H10'
    """
    return f"L{layer}.H{index}"
