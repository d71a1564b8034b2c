"""Path patching: what one component says to another, with everything said in between held back.

Four runs of the model go through its layers in lockstep, side by side on an axis `worlds`, and edits at the taps read
across them, so that the whole experiment is one forward pass and one compiled program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from penzai import pz

from jaxinterp import axes
from jaxinterp.activations.metrics import Measure, Metric, bind_metric, normalise
from jaxinterp.activations.run import Inputs, compiled_form
from jaxinterp.analysis.aligned_pairs import align_pairs, padded_length
from jaxinterp.interventions.edit import Edit, NamedArray, find_places
from jaxinterp.models.decoder import side_inputs
from jaxinterp.models.language_model import LanguageModel
from jaxinterp.sites.positions import Positions, everywhere
from jaxinterp.sites.selectors import Site, head, head_name
from jaxinterp.sites.taps import Address, attach, find_taps

Ends = Site | Sequence[Site]
"""One end of a path: a site, or several that are patched together."""

_CLEAN, _CORRUPTED = 0, 1
_WRITERS = ("embed", "z", "attn_out", "mlp_out", "resid_pre", "resid_mid", "resid_post")
_READERS = (
    *("q", "k", "v", "attn_scores", "pattern", "mlp_gate", "mlp_pre"),
    *("resid_pre", "resid_mid", "resid_post", "ln_final", "logits"),
)
_CHOICE = {"q": axes.HEAD, "k": axes.KV_HEAD, "v": axes.KV_HEAD, "attn_scores": axes.HEAD, "pattern": axes.HEAD}
_CHOICE |= {"z": axes.HEAD, "mlp_gate": axes.NEURONS, "mlp_pre": axes.NEURONS}


@pz.pytree_dataclass(has_implicitly_inherited_fields=True)
class TakeWorld(Edit):
    """Lets some worlds take what passes a tap in others.

    Attributes:
        source: The world that each world takes from, int [worlds].
    """

    source: NamedArray

    def edited(self, value: NamedArray, **_: Any) -> NamedArray:
        """See `Edit.edited`."""
        return pz.nx.nmap(lambda worlds, source: worlds[source])(value.untag(axes.WORLDS), self.source)


def head_input(part: str, layer: int, *indices: int) -> Site:
    """What some heads of a layer read, as the receiving end of a path.

    Args:
        part: `"q"`, `"k"` or `"v"`.
        layer: Block index.
        *indices: Heads for `"q"`; key-value heads, which several heads may share, for `"k"` and `"v"`.

    Returns:
        A selector.

    Raises:
        ValueError: There is no such part, or no index was given.

    Examples:
        >>> str(head_input("q", 9, 6))
        'L9.q[head 6]'
    """
    if part not in ("q", "k", "v"):
        raise ValueError(f"a head reads its 'q', 'k' or 'v', not {part!r}")
    if not indices:
        raise ValueError("head_input() needs at least one head index after the layer")
    return Site(part, (layer,), _CHOICE[part], tuple(int(index) for index in indices))


def path_patch(
    model: LanguageModel,
    clean: Inputs,
    corrupted: Inputs,
    metric: Metric | Callable[[jax.Array], jax.Array],
    senders: Sequence[Ends] | None = None,
    receivers: Sequence[Ends] = (),
    *,
    sender_at: Positions | None = None,
    receiver_at: Positions | None = None,
    freeze_mlps: bool = False,
    rows_at_once: int = 256,
) -> pl.DataFrame:
    """Measures the path from each sender to each receiver that runs through no other head, exactly.

    Four worlds pass through the layers together. `clean` and `corrupted` are plain runs. In `path`, which starts as
    the clean run, the sender takes what it is in `corrupted` and every other head's z what it is in `clean`; MLPs
    are computed anew, as in Wang et al., unless `freeze_mlps`. In `final`, which starts as the clean run too,
    nothing is held but the receiver, which takes what it is in `path`; the metric is read there. Behind the norm of
    Gemma's attention output a sender changes what the heads beside it write, as it does in the model.

    The senders and receivers are masks: other ones of the same site names compile nothing new, and a long table goes
    through one program block by block.

    Args:
        model: The model, edited or not; its edits act in all worlds.
        clean: Texts, lists of token ids, or ids [batch, seq].
        corrupted: As many, each as long in tokens as its partner.
        metric: `logit_diff(...)`, `log_prob(...)`, or a function of last-token logits.
        senders: What the paths start from, each a site that writes to the residual stream or a list of such sites
            taken together; by default every head by itself.
        receivers: Where the paths end, each a site that reads the residual stream, or a list of such sites taken
            together: `head_input("q", 9, 6)`, `[ji.mlp_gate(5), ji.mlp_pre(5)]`, `ji.resid_post(-1)`. By default
            the end of the last block, which gives the direct effect on the logits.
        sender_at: At which tokens senders are exchanged; by default all.
        receiver_at: At which tokens receivers are exchanged; by default all.
        freeze_mlps: Whether MLPs, too, are held at their clean outputs in `path`.
        rows_at_once: Rows, over all worlds, in one forward pass; at least four for each prompt.

    Returns:
        One row for each sender, receiver and prompt: `sender`, `sender_layer` and `sender_head` (null where it is
        not one head), `receiver`, `prompt`, `clean`, `corrupted`, `value`, `effect` (value minus clean) and
        `normalised` (effect over corrupted minus clean: 1 is the whole way to `corrupted`; null where the two
        are equal).

    Raises:
        ValueError: The texts do not pair up, a site does not exist, or it does not write to (or read from) the
            residual stream.

    References:
        Wang et al. 2022, Interpretability in the wild, arXiv:2211.00593; Goldowsky-Dill et al. 2023, Localizing
        model behavior with path patching, arXiv:2304.05969.
    """
    sizes = model.architecture
    every_head = [head(layer, index) for layer in range(sizes.layers) for index in range(sizes.heads)]
    starts = _Choices.read(model, every_head if senders is None else senders, _WRITERS, "sender", "writes to")
    ends = _Choices.read(model, receivers or [Site("resid_post", (-1,))], _READERS, "receiver", "reads from")
    pairs = align_pairs(model, clean, corrupted)
    rows = len(pairs)
    ((batch, _),) = pairs.batches(rows, padded_length(model, pairs))
    measure = bind_metric(metric, model, rows)
    plan = _Plan.make(len(starts.labels), len(ends.labels), max(4, rows_at_once // rows))
    body = compiled_form(model.body)
    values = np.empty((len(starts.labels), len(ends.labels), rows), np.float32)
    bounds = np.empty((2, rows), np.float32)
    for first in range(0, len(starts.labels), plan.senders):
        chosen = np.arange(first, min(first + plan.senders, len(starts.labels)))
        for begin in range(0, len(ends.labels), plan.receivers):
            met = np.arange(begin, min(begin + plan.receivers, len(ends.labels)))
            layers = plan.freeze(model, freeze_mlps)
            layers += plan.send(starts, chosen, sender_at or everywhere())
            layers += plan.receive(ends, met, receiver_at or everywhere())
            out = np.asarray(
                _measure_worlds(attach(body, layers), plan.worlds(batch.clean, batch.corrupted), batch.valid, measure)
            )
            bounds = out[:2]
            final = out[2 + plan.senders :].reshape(plan.senders, plan.receivers, rows)
            values[np.ix_(chosen, met)] = final[: len(chosen), : len(met)]
    return _table(starts, ends, bounds, values)


@dataclasses.dataclass(frozen=True)
class _Choices:
    """One end of all paths, as masks.

    Attributes:
        labels: What each choice is called.
        heads: Layer and head of each, where it is one head.
        masks: For every tap of the sites concerned: what each choice takes there, boolean [choice] or [choice, unit].
    """

    labels: list[str]
    heads: list[tuple[int | None, int | None]]
    masks: Mapping[Address, np.ndarray]

    @classmethod
    def read(
        cls, model: LanguageModel, asked: Sequence[Ends], allowed: Sequence[str], what: str, does: str
    ) -> _Choices:
        groups = [[each] if isinstance(each, Site) else list(each) for each in asked]
        for site in (site for group in groups for site in group):
            if site.name not in allowed:
                raise ValueError(
                    f"a {what} {does} the residual stream, and {site} is held or does not; choose among "
                    f"{', '.join(allowed)}"
                )
        groups = [[_with_layers(model, site) for site in group] for group in groups]
        places = [find_places(model, group) for group in groups]
        names = {place.address[0] for group in places for place in group}
        sizes = model.architecture.axis_sizes()
        masks = {}
        for address in find_taps(model.body):
            if address[0] in names:
                units = (sizes[_CHOICE[address[0]]],) if address[0] in _CHOICE else ()
                masks[address] = np.zeros((len(groups), *units), bool)
        for number, group in enumerate(places):
            for place in group:
                masks[place.address][number] |= np.asarray(place.selected.data_array)
        labels = [" + ".join(_name(site) for site in group) for group in groups]
        return cls(labels, [_single_head(group) for group in groups], masks)


def _with_layers(model: LanguageModel, site: Site) -> Site:
    """The same site with its layers counted from 0."""
    found = [layer for _, layer in site.addresses(model.body) if layer is not None]
    return site if site.layers is None else dataclasses.replace(site, layers=tuple(found))


def _single_head(group: Sequence[Site]) -> tuple[int | None, int | None]:
    match group:
        case [Site(name="z", layers=(layer,), indices=(index,))]:
            return layer, index
        case _:
            return None, None


def _name(site: Site) -> str:
    match site:
        case Site(axis=axes.HEAD, layers=(layer,), indices=(index,)):
            return head_name(layer, index) + ("" if site.name == "z" else f".{site.name}")
        case _:
            return str(site)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Which worlds there are: clean, corrupted, a `path` for each sender, a `final` for each sender and receiver.

    Attributes:
        senders: Senders in one forward pass.
        receivers: Receivers in one forward pass.
    """

    senders: int
    receivers: int

    @classmethod
    def make(cls, senders: int, receivers: int, most: int) -> _Plan:
        """The largest pass of at most `most` worlds."""
        met = min(receivers, max(1, most - 3))
        return cls(min(senders, max(1, (most - 2) // (1 + met))), met)

    @property
    def count(self) -> int:
        """Number of worlds."""
        return 2 + self.senders * (1 + self.receivers)

    @property
    def paths(self) -> np.ndarray:
        """Whether a world is a `path`, boolean [worlds]."""
        number = np.arange(self.count)
        return (number >= 2) & (number < 2 + self.senders)

    def worlds(self, clean: np.ndarray, corrupted: np.ndarray) -> np.ndarray:
        """Token ids [worlds, batch, seq]."""
        ids = np.repeat(clean[None], self.count, axis=0)
        ids[_CORRUPTED] = corrupted
        return ids

    def freeze(self, model: LanguageModel, mlps: bool) -> list[tuple[Address, pz.nn.Layer]]:
        """Holds all heads of the paths, and the MLPs if asked, at what they are in the clean world."""
        held = ("z", "mlp_out") if mlps else ("z",)
        edit = _take(self.paths, np.where(self.paths, _CLEAN, np.arange(self.count)), everywhere(), None)
        return [(address, edit) for address in find_taps(model.body) if address[0] in held]

    def send(self, ends: _Choices, chosen: np.ndarray, at: Positions) -> list[tuple[Address, pz.nn.Layer]]:
        """Gives each path its sender from the corrupted world."""
        source = np.where(self.paths, _CORRUPTED, np.arange(self.count))
        filled = np.resize(chosen, self.senders)
        layers: list[tuple[Address, pz.nn.Layer]] = []
        for address, masks in ends.masks.items():
            selected = np.zeros((self.count, *masks.shape[1:]), bool)
            selected[self.paths] = masks[filled]
            layers.append((address, _take(selected, source, at, _CHOICE.get(address[0]))))
        return layers

    def receive(self, ends: _Choices, chosen: np.ndarray, at: Positions) -> list[tuple[Address, pz.nn.Layer]]:
        """Gives each final world its receiver from its path."""
        source = np.arange(self.count)
        source[2 + self.senders :] = np.repeat(np.arange(2, 2 + self.senders), self.receivers)
        filled = np.tile(np.resize(chosen, self.receivers), self.senders)
        layers: list[tuple[Address, pz.nn.Layer]] = []
        for address, masks in ends.masks.items():
            selected = np.zeros((self.count, *masks.shape[1:]), bool)
            selected[2 + self.senders :] = masks[filled]
            layers.append((address, _take(selected, source, at, _CHOICE.get(address[0]))))
        return layers


def _take(selected: np.ndarray, source: np.ndarray, at: Positions, unit: str | None) -> Edit:
    names = (axes.WORLDS,) if unit is None or selected.ndim == 1 else (axes.WORLDS, unit)
    which = pz.nx.wrap(jnp.asarray(source, jnp.int32), axes.WORLDS)
    return TakeWorld(pz.nx.wrap(jnp.asarray(selected), *names), at, which)


@jax.jit
def _measure_worlds(body: pz.nn.Layer, tokens: jax.Array, mask: jax.Array, measure: Measure) -> jax.Array:
    """The metric in every world, [worlds, batch]; tokens [worlds, batch, seq]."""
    ids = pz.nx.wrap(tokens, axes.WORLDS, axes.BATCH, axes.SEQ)
    read = pz.nx.wrap(jnp.full(tokens.shape[1], tokens.shape[2] - 1), axes.BATCH)
    inputs = side_inputs(tokens[_CLEAN], mask) | {"tokens": ids, "read": read}
    values = body(ids, **inputs).unwrap(axes.WORLDS, axes.BATCH, axes.VOCABULARY)
    if measure.tokens is not None:
        chosen = jnp.broadcast_to(measure.tokens, (len(values), *measure.tokens.shape))
        values = jnp.take_along_axis(values, chosen, axis=2)
    return jax.vmap(measure)(values)


def _table(starts: _Choices, ends: _Choices, bounds: np.ndarray, values: np.ndarray) -> pl.DataFrame:
    senders, receivers, rows = values.shape
    each = receivers * rows
    clean, corrupted = (np.tile(bound, senders * receivers) for bound in bounds)
    table = pl.DataFrame(
        {
            "sender": [label for label in starts.labels for _ in range(each)],
            "sender_layer": [layer for layer, _ in starts.heads for _ in range(each)],
            "sender_head": [index for _, index in starts.heads for _ in range(each)],
            "receiver": [label for label in ends.labels for _ in range(rows)] * senders,
            "prompt": np.tile(np.arange(rows), senders * receivers),
            "clean": clean,
            "corrupted": corrupted,
            "value": values.reshape(-1),
        },
        schema_overrides={"sender_layer": pl.Int64, "sender_head": pl.Int64},
    ).with_columns(effect=pl.col("value") - pl.col("clean"))
    return table.with_columns(normalised=normalise(pl.col("effect")))
